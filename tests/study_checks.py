"""What must hold in the results of every study, tiny or recorded: a broken record violates it."""

from __future__ import annotations

import itertools
import math

import pytest

SLACK = 0.003  # two of 800 images, whose answers may hang on how a sum was rounded


def check_shares(accuracies, names):
    """One share of images for each name."""
    assert sorted(accuracies) == sorted(names)
    assert all(0 <= score <= 1 for score in accuracies.values())


def check_tuned(row, grids, names):
    """A merge whose coefficient comes from the rule's grid."""
    assert row["scaling_coef"] in grids[row["rule"]]
    assert 0 <= row["val_mean"] <= 1
    check_shares(row["test"], names)


# --- 06_minilm_tasks -------------------------------------------------------------------------------------


def check_task_choice(results, settings, names):
    """A row a task; the rate with the best mean; and the tasks that beat their probe by the margin at it."""
    rows, rates = results["rows"], [f"{rate:g}" for rate in settings["rates"]]
    assert [row["task"] for row in rows] == list(names)
    for row in rows:
        assert list(row["individual"]) == rates
        assert all(0 <= score <= 1 for score in (row["start"], row["probe"], *row["individual"].values()))
    means = {rate: sum(row["individual"][rate] for row in rows) for rate in rates}
    best = f"{results['rate']:g}"
    assert means[best] == max(means.values())
    gains = {row["task"]: row["individual"][best] - row["probe"] for row in rows}
    assert results["tasks"] == [name for name in names if gains[name] >= settings["margin"]]


def check_image_search(results, settings, names):
    """Every size with every centre; a probe on the start does not hang on the movement of the centre."""
    studies = results["studies"]
    assert (
        list(studies)
        == list(settings)
        == [f"{size} pixels, centre {centre}" for size in (64, 96) for centre in ("frozen", "moved")]
    )
    for name, found in studies.items():
        check_task_choice(found, settings[name], names)
        assert settings[name]["image_size"] == int(name[:2])
        assert (settings[name]["recentre"] > 0) == (settings[name]["recipe"]["centre"] == "batch")
    for size in (64, 96):
        pair = [studies[f"{size} pixels, centre {centre}"]["rows"] for centre in ("frozen", "moved")]
        assert [row["probe"] for row in pair[0]] == [row["probe"] for row in pair[1]]


# --- 06_minilm, and what else its specialists tell ---------------------------------------------------------


def check_good_start(results, settings, seeds):
    """Every reference and every merge of every seed."""
    names, epochs, keys = results["tasks"], [f"{e:g}" for e in results["epochs"]], [str(s) for s in seeds]
    assert list(results["start"]) == list(results["probe"]) == list(results["individual"]) == keys
    for key in keys:
        check_shares(results["start"][key], names)
        check_shares(results["probe"][key], names)
        for reference in ("individual", *(["joint"] if results["joint"] else [])):
            assert list(results[reference][key]) == epochs
            for scores in results[reference][key].values():
                check_shares(scores, names)
    parts = settings["recipe"]["parts"]
    if settings["recipe"]["schedule"] == "constant":  # a longer plan begins in the same way
        assert settings["recipe"]["epochs"] >= parts * results["epochs"][-1]
    else:
        assert settings["recipe"]["epochs"] == parts * results["epochs"][-1]
    merges = [(m["seed"], m["epoch"], m["rule"]) for m in results["merged"]]
    candidates = settings["candidates"]
    assert merges == [
        (seed, epoch, rule)
        for seed in seeds
        for epoch in results["epochs"]
        for rule in results["rules"]
        if candidates[rule]["every_age"] or epoch in (1, results["epochs"][-1])
    ]
    for merge in results["merged"]:
        assert merge["scaling_coef"] in settings["scaling_coefs"]
        assert 0 <= merge["val_mean"] <= 1
        check_shares(merge["test"], names)


def check_weaker_starts(results, settings, seeds, *, names):
    """Every start with every seed, after one pass, on the same tasks; the less pretrained, the lower."""
    studies = results["studies"]
    assert list(studies) == list(settings)
    for name, found in studies.items():
        assert found["tasks"] == list(names)
        assert found["epochs"] == [1.0]
        check_good_start(found, settings[name], seeds)
    level = {name: sum(sum(of.values()) for of in found["start"].values()) for name, found in studies.items()}
    assert max(level, key=level.get) != "nothing pretrained"


def check_pairs(results, seeds):
    pairs = [list(pair) for pair in itertools.combinations(results["tasks"], 2)]
    assert [(row["seed"], row["pair"]) for row in results["rows"]] == list(itertools.product(seeds, pairs))
    for row in results["rows"]:
        check_shares(row["test"], row["pair"])


def check_paths_between_ages(results, seeds):
    """Triangles close: steps add up to vectors, and cosines fit norms."""
    rows, count = results["rows"], len(results["epochs"])
    assert [(r["seed"], r["task"]) for r in rows] == list(itertools.product(seeds, results["tasks"]))
    for row in rows:
        norms, steps = row["task_vector_norms"], row["displacement_norms"]
        assert len(norms) == len(steps) == len(row["cosine_vector_final"]) == count
        assert steps[0] == pytest.approx(norms[0], rel=1e-4)
        assert row["cosine_vector_final"][-1] == pytest.approx(1, abs=1e-5)
        last = norms[-1] ** 2 + norms[-2] ** 2 - 2 * norms[-1] * norms[-2] * row["cosine_vector_final"][-2]
        assert steps[-1] == pytest.approx(math.sqrt(last), rel=1e-3)
        assert all(-1 <= c <= 1 for by in ("downhill", "sign_downhill") for c in row[f"cosine_{by}"].values())


def check_forgotten(results, settings, seeds):
    """Every example is in one group; the specialist of the end has all of its groups right but the last."""
    rows, end = results["rows"], f"{results['epochs'][-1]:g}"
    for seed, name in itertools.product(seeds, results["tasks"]):
        groups = [row for row in rows if (row["seed"], row["task"]) == (seed, name)]
        assert 0 < sum(row["examples"] for row in groups) <= settings["examples"]
        for row in groups:
            right = row["right"]
            assert right[f"individual, {end}"] == (0 if row["learnt"] == "never" else row["examples"])
            assert row["learnt"] != "0" or right["start"] == row["examples"]
            assert all(0 <= count <= row["examples"] for count in right.values())
            assert {f"{rule}, {age}" for rule in settings["rules"] for age in ("1", end)} <= set(right)


def check_readings(results, seeds, *, each):
    """The start is wrong and the specialist right; the merge in some rows, not in others."""
    rows = results["rows"]
    assert {(row["seed"], row["task"]) for row in rows} <= set(itertools.product(seeds, results["tasks"]))
    assert rows
    for row in rows:
        assert row["specialist"] == row["class"] != row["start"]
        assert row["example"]
    kinds = [(row["seed"], row["task"], row["merge"] == row["class"]) for row in rows]
    assert all(kinds.count(kind) <= each for kind in kinds)


# --- 10_exchange -----------------------------------------------------------------------------------------


def check_exchange(results, settings, seeds):
    """Every optimiser with joint training and each kind of rounds; an exchange doubles what is sent."""
    names, budget = results["tasks"], results["budget"]
    assert results["splits"] == [rounds for rounds in (1, 2, 4) if rounds <= budget]
    kinds = [(None, None), *itertools.product(results["splits"], (False, True))]
    assert [
        (row["seed"], row["optimizer"], (row.get("rounds"), row.get("exchange"))) for row in results["rows"]
    ] == list(itertools.product(seeds, settings["recipes"], kinds))
    for seed in seeds:
        check_shares(results["start"][str(seed)], names)
    for row in results["rows"]:
        check_shares(row["test"], names)
        if row["training"] == "joint":
            assert row["steps"] > 0
            continue
        assert row["test"] == row["history"][-1]["test"]
        assert row["history"][0]["test"] == results["start"][str(row["seed"])]
        sent = 2 * len(names) * results["parameters"] * row["rounds"] * (2 if row["exchange"] else 1)
        assert row["history"][-1]["floats_communicated"] == sent
        extra = len(names) * row["rounds"] if row["exchange"] else 0
        assert row["history"][-1]["gradient_evaluations"] == len(names) * budget + extra


WAYS = (
    "joint",
    "one merge",
    "corrected at the start",
    "corrected along the path",
    "one merge after an exchange",
    "rounds",
    "rounds with an exchange",
)


def check_corrected(results, settings, seeds):
    """Every way to the merge at every rate; two steps with an exchange are joint descent, up to rounding."""
    names = results["tasks"]
    keys = [(row["seed"], row["learning_rate"], row["training"]) for row in results["rows"]]
    assert keys == list(itertools.product(seeds, settings["rates"], WAYS))
    assert results["steps"] == settings["recipe"]["epochs"]
    for seed in seeds:
        check_shares(results["start"][str(seed)], names)
    for row in results["rows"]:
        check_shares(row["test"], names)
        assert row["train_loss"] > 0
        if row["training"] == "joint":
            assert row["distance_to_joint"] == 0
        elif row["training"] == "rounds with an exchange":
            assert row["distance_to_joint"] < 2e-3
        else:
            assert row["distance_to_joint"] > 0


# --- 05_first_epoch --------------------------------------------------------------------------------------


def check_first_epoch(results, settings, seeds):
    tasks, epochs, runs = results["tasks"], results["epochs"], results["runs"]
    keys = [(run["seed"], run["task"], run["optimizer"]) for run in runs]
    assert keys == list(itertools.product(seeds, tasks, settings["recipes"]))
    sizes = results.get("images") or results["texts"]
    batch = min(32, *(recipe["batch_size"] for recipe in settings["recipes"].values()))
    assert results["steps_per_epoch"] == {name: math.ceil(sizes[name] / batch) for name in tasks}
    rates = {name: recipe["learning_rate"] for name, recipe in settings["recipes"].items()}
    assert results["learning_rate"] == rates
    assert all(recipe["epochs"] == epochs for recipe in settings["recipes"].values())
    for run in runs:
        check_lengths(run, epochs)
        check_geometry(run)
        if run["optimizer"] == "gd":
            check_gradient_descent(run, rates["gd"])
    for name in tasks:
        check_one_start([run for run in runs if run["task"] == name])
    check_paths(results, seeds)


def check_lengths(run, epochs):
    points = ("gradient_norms", "cosine_gradient_first", "cosine_gradient_final", "val_accuracy")
    for name, values in run.items():
        if isinstance(values, list):
            assert len(values) == epochs + (name in points), name
            assert all(math.isfinite(value) for value in values)
            if name.startswith("cosine"):
                assert all(-1 <= value <= 1 for value in values), name
    assert all(0 <= score <= 1 for score in run["val_accuracy"])
    assert all(loss > 0 for loss in run["train_loss"])
    assert all(norm > 0 for norm in (*run["gradient_norms"], *run["displacement_norms"]))


def check_geometry(run):
    """Displacements add up to the task vector: norms and cosines have to agree with one another."""
    steps, vectors = run["displacement_norms"], run["task_vector_norms"]
    assert steps[0] == vectors[0]
    assert run["cosine_displacement_first"][0] == run["cosine_vector_final"][-1] == 1
    assert run["cosine_displacement_final"][0] == run["cosine_vector_final"][0]
    along = sum(d * cosine for d, cosine in zip(steps, run["cosine_displacement_final"], strict=True))
    assert along == pytest.approx(vectors[-1], rel=1e-3, abs=1e-5)
    for before, after, step in zip(vectors, vectors[1:], steps[1:], strict=False):
        assert abs(after - before) <= step * 1.001 + 1e-5
    bend = run["cosine_displacement_first"][1]
    second = steps[0] ** 2 + steps[1] ** 2 + 2 * steps[0] * steps[1] * bend
    assert math.sqrt(second) == pytest.approx(vectors[1], rel=1e-3, abs=1e-5)


def check_gradient_descent(run, rate):
    """One exact step an epoch: the displacement is the rate times the gradient at its start, downhill."""
    gradients = run["gradient_norms"][:-1]
    assert run["minibatch_gradient_norms"] == pytest.approx(gradients, rel=1e-3)
    assert run["displacement_norms"] == pytest.approx([rate * each for each in gradients], rel=1e-2, abs=1e-6)
    assert run["cosine_gradient_first"][0] == pytest.approx(1, abs=1e-3)
    found = run["cosine_gradient_final"][:-1]
    assert found == pytest.approx(run["cosine_displacement_final"], abs=1e-3)


def check_one_start(runs):
    """All optimisers of a seed begin with one encoder, one head and one set of images."""
    for seed in {run["seed"] for run in runs}:
        same = [run for run in runs if run["seed"] == seed]
        assert len({(run["gradient_norms"][0], run["val_accuracy"][0]) for run in same}) == 1


def check_paths(results, seeds):
    paths, runs = results["paths"], results["runs"]
    first = [run for run in runs if run["seed"] == seeds[0]]
    for path, run in zip(paths, first, strict=True):
        assert [path[key] for key in ("optimizer", "task", "seed")] == [
            run[key] for key in ("optimizer", "task", "seed")
        ]
        assert len(path["xy"]) == results["epochs"] + 1
        larger, smaller = path["explained"]
        assert 0 <= smaller <= larger <= larger + smaller <= 1 + 1e-5
        assert math.dist(path["xy"][0], path["xy"][-1]) <= run["task_vector_norms"][-1] * 1.001 + 1e-5


# --- 06_early_or_late ------------------------------------------------------------------------------------


def check_early_or_late(results, settings, seeds):
    tasks, epochs = results["tasks"], results["epochs"]
    assert results["seeds"] == list(seeds)
    assert epochs[-1] == settings["recipes"]["adamw"]["epochs"]
    assert list(results["texts" if "training_texts" in settings else "images"]) == tasks
    assert results["rules"] == list(settings["scaling_coefs"])
    for seed in map(str, seeds):
        check_shares(results["zero_shot"][seed], tasks)
        for kind in ("individual", "joint"):
            assert list(results[kind][seed]) == [str(epoch) for epoch in epochs]
            for scores in results[kind][seed].values():
                check_shares(scores, tasks)
        check_cross(results["cross"][seed], results["zero_shot"][seed])
    keys = [(row["seed"], row["epoch"], row["rule"]) for row in results["merged"]]
    assert keys == list(itertools.product(seeds, epochs, results["rules"]))
    for row in results["merged"]:
        check_tuned(row, settings["scaling_coefs"], tasks)
    check_grid(results, seeds[0])


def check_cross(cross, zero):
    assert list(cross) == list(zero)
    for row in cross.values():
        check_shares({name: round(zero[name] + row[name], 5) for name in row}, zero)


def check_grid(results, seed):
    """With λ = 0 the merge is the pretrained encoder; a tuned λ that lies on the grid tells the same."""
    grid = {(row["epoch"], row["scaling_coef"]): row["test"] for row in results["grid"]}
    assert len(grid) == len(results["grid"])
    assert {row["seed"] for row in results["grid"]} == {seed}
    assert {epoch for epoch, _ in grid} == set(results["epochs"])
    for (_, coef), scores in grid.items():
        check_shares(scores, results["tasks"])
        assert coef or scores == results["zero_shot"][str(seed)]
    for row in results["merged"]:
        key = row["epoch"], row["scaling_coef"]
        if (row["seed"], row["rule"]) == (seed, "mean") and key in grid:
            assert row["test"] == pytest.approx(grid[key], abs=SLACK)


# --- 06_what_a_merge_needs -------------------------------------------------------------------------------


def check_some_tasks(results, settings, seeds, subsets):
    """Merges of a few tasks each, and those of all tasks under heads that do not move."""
    tasks, rows = results["tasks"], results["rows"]
    assert results["seeds"] == list(seeds)
    moved = itertools.product(
        seeds, (1, 8), map(tuple, subsets), ("mean", "regmean_from_vectors"), ("moved",)
    )
    still = itertools.product(seeds, (1, 8), (tuple(tasks),), ("mean",), ("frozen",))
    keys = [(r["seed"], r["epoch"], tuple(r["subset"]), r["rule"], r["centre"]) for r in rows]
    assert len(keys) == len(set(keys))
    assert set(keys) == {*moved, *still}
    for row in rows:
        check_tuned(row, settings["scaling_coefs"], row["subset"])
        check_shares(row["zero_shot"], row["subset"])
        check_shares(row["individual"], row["subset"])
    for kind, key in (("zero_shot", ("seed",)), ("individual", ("seed", "epoch"))):
        references(rows, kind, (*key, "centre"))


def references(rows, kind, keys):
    """The reference accuracies by `keys` and task; each must be the same wherever it is told."""
    found = {}
    for row in rows:
        for name, score in row[kind].items():
            assert found.setdefault((*(row[key] for key in keys), name), score) == score
    return found


def check_same_encoders(early, some):
    """Another study judges the encoders of 06_early_or_late on the same images."""
    rows = [row for row in some["rows"] if row["centre"] == "moved"]
    for (seed, name), score in references(rows, "zero_shot", ("seed",)).items():
        assert early["zero_shot"][str(seed)][name] == pytest.approx(score, abs=SLACK)
    for (seed, epoch, name), score in references(rows, "individual", ("seed", "epoch")).items():
        assert early["individual"][str(seed)][str(epoch)][name] == pytest.approx(score, abs=SLACK)


# --- 07_rounds ------------------------------------------------------------------------------------------


def check_rounds(results, settings, seeds):
    tasks, budget, splits = results["tasks"], results["budget"], results["splits"]
    assert results["seeds"] == list(seeds)
    assert settings["recipes"]["adamw"]["epochs"] == budget
    assert list(settings["scaling_coefs"]) == [results["rule"]]
    for kind in ("zero_shot", "individual", "joint"):
        assert list(results[kind]) == list(map(str, seeds))
        for scores in results[kind].values():
            check_shares(scores, tasks)
    assert [(row["seed"], row["rounds"]) for row in results["rounds"]] == list(
        itertools.product(seeds, splits)
    )
    for row in results["rounds"]:
        assert row["rounds"] * row["epochs"] == budget
        assert row["history"][0]["test"] == results["zero_shot"][str(row["seed"])]
        check_history(row, tasks, row["epochs"], results["parameters"])
        check_tuned({**row["tuned"], "rule": results["rule"]}, settings["scaling_coefs"], tasks)
        if row["tuned"]["scaling_coef"] == 1:
            assert row["tuned"]["test"] == pytest.approx(row["history"][-1]["test"], abs=SLACK)
    for row in results.get("post_hoc", []):
        check_history(row, tasks, 1, results["parameters"])
        assert row["history"][0]["test"] == pytest.approx(row["tuned"]["test"], abs=SLACK)
        check_shares(row["joint"], tasks)


def check_history(row, tasks, epochs, parameters):
    """Every round costs the same; the task vectors of round 1 start at the start."""
    history = row["history"]
    assert [each["round"] for each in history] == list(range(len(history)))
    for each in history:
        check_shares(each["test"], tasks)
        assert each["gradient_evaluations"] == each["round"] * epochs * len(tasks)
        assert each["floats_communicated"] == each["round"] * 2 * len(tasks) * parameters
        assert len(each["norms"]) == len(tasks)
        assert each["mean_loss"] > 0
    first = history[1]
    assert first["mean_cosine"] == pytest.approx(first["mean_cosine_from_pretrained"], abs=1e-4)
    assert "mean_cosine" not in history[0]


def check_same_references(early, rounds):
    """Another study judges the same specialists and the same joint model on the same images."""
    assert early["zero_shot"] == rounds["zero_shot"]
    last = str(rounds["budget"])
    for kind in ("individual", "joint"):
        assert {seed: rows[last] for seed, rows in early[kind].items()} == rounds[kind]


# --- 06_search, encoder_probes ---------------------------------------------------------------------------


def check_search(results, settings, tasks):
    rows = {row["variant"]: row for row in results["rows"]}
    assert list(rows) == list(settings["variants"])
    assert len(rows) == len(results["rows"])
    for row in rows.values():
        check_shares(row["zero_shot"], tasks)
        check_shares(row["individual"], tasks)
        assert set(row["merged"]) == {"mean", "regmean_from_vectors"}
        for rule, found in row["merged"].items():
            assert found["scaling_coef"] in settings["grids"][rule]
            check_shares(found["test"], tasks)
    for name, changes in settings["variants"].items():
        if not {"backbone", "recentre", "shots"} & set(changes):  # what decides before any finetuning
            assert rows[name]["zero_shot"] == rows["chosen"]["zero_shot"], name


def check_spread(results, settings, tasks):
    """The same seed with another number of threads: near, and not the same experiment twice by copy."""
    rows = results["rows"]
    assert [row["threads"] for row in rows] == settings["threads"]
    for row in rows:
        check_shares(row["zero_shot"], tasks)
        check_shares(row["individual"], tasks)
    for name in tasks:
        assert rows[0]["zero_shot"][name] == pytest.approx(rows[1]["zero_shot"][name], abs=SLACK)
        assert rows[0]["individual"][name] == pytest.approx(rows[1]["individual"][name], abs=0.05)


def check_probes(results, settings, tasks):
    assert list(results) == settings["encoders"]
    for scores in results.values():
        check_shares(scores, tasks)
