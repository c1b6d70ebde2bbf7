"""From folder to folder: small models of transformers, loaded back and held against dictionaries."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from small_vectors import source
from taskvec_mini import TaskVector, merging
from taskvec_mini.merging import (
    RULES,
    _pieces,
    compare_models,
    complete_analogy,
    from_files,
    merge_models,
    model_files,
    models,
    negate_model,
)

CONFIGS = {
    "bert": (
        transformers.BertForMaskedLM,
        transformers.BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=8,
        ),
    ),
    "clip": (
        transformers.CLIPModel,
        transformers.CLIPConfig(
            text_config={
                "vocab_size": 40,
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 24,
                "max_position_embeddings": 8,
            },
            vision_config={
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 24,
                "image_size": 16,
                "patch_size": 8,
            },
            projection_dim=8,
        ),
    ),
}
NAMES = ["base", "cars", "mnist", "svhn"]


def moved(model, *, seed, scale=0.05):
    """The model itself, after a step in a random direction."""
    numbers = source(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (torch.randn(parameter.shape, generator=numbers) * scale).to(parameter.dtype)
    return model


def family(folder, kind, *, dtype=torch.float32, shard=None):
    """Folders of a pretrained and three finetuned models."""
    made, config = CONFIGS[kind]
    for seed, name in enumerate(NAMES):
        model = moved(made(config), seed=0, scale=0.0).to(dtype)
        for parameter in model.parameters():  # the same start, whatever the library draws
            parameter.data = torch.zeros_like(parameter)
        model = moved(model, seed=99, scale=1.0)
        if seed:
            moved(model, seed=seed)
        model.save_pretrained(folder / name, **({"max_shard_size": shard} if shard else {}))
        (folder / name / "vocab.txt").write_text("a\nb\n")
    return folder / NAMES[0], [folder / name for name in NAMES[1:]]


def content(path):
    """All tensors of a model, read by safetensors and torch themselves."""
    state = {}
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.suffix == ".safetensors":
            state |= safetensors.torch.load_file(file)
        elif file.suffix in (".bin", ".pt"):
            state |= torch.load(file, weights_only=True)
    return state


def plain_mean(start, ends, *, coef):
    """What one writes with dictionaries: sums in float32, rounded to the dtype of the start."""
    result = {}
    for name, first in start.items():
        wide = first.float()
        total = sum((end[name].float() - wide for end in ends[1:]), ends[0][name].float() - wide)
        result[name] = (total / len(ends) * coef + wide).to(first.dtype)
    return result


def save(state, path):
    path.parent.mkdir(exist_ok=True)
    safetensors.torch.save_file(state, path)
    return path


def quiet(*given, **options):
    return merge_models(*given, progress=False, **options)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So that even small models have several pieces."""
    monkeypatch.setattr(from_files, "_ENTRIES", 50)
    monkeypatch.setattr(_pieces, "PIECE", 50)
    monkeypatch.setattr(from_files, "_WHOLE", 300)
    monkeypatch.setattr(model_files, "_CHUNK", 40)


# --- as dictionaries would -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", [None, "8KB"])
def test_the_merged_folder_loads_and_holds_what_dictionaries_give(tmp_path, kind, dtype, shard):
    pretrained, finetuned = family(tmp_path, kind, dtype=dtype, shard=shard)
    record = quiet(pretrained, finetuned, out=tmp_path / "merged", scaling_coef=0.7)
    start, merged = content(pretrained), content(tmp_path / "merged")
    expected = plain_mean(start, [content(path) for path in finetuned], coef=0.7)
    assert merged.keys() == start.keys()
    for name, part in merged.items():
        assert part.dtype == start[name].dtype == dtype
        assert torch.equal(part, expected[name]), name

    files = {each.name for each in pretrained.iterdir()}
    assert {each.name for each in (tmp_path / "merged").iterdir()} == files | {"merge.json"}
    assert (len([name for name in files if name.endswith(".safetensors")]) > 1) == bool(shard)
    if shard:
        index = "model.safetensors.index.json"
        ours, theirs = (json.loads((path / index).read_text()) for path in (tmp_path / "merged", pretrained))
        assert ours["weight_map"] == theirs["weight_map"]
        assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    for name in ("config.json", "vocab.txt"):
        assert (tmp_path / "merged" / name).read_bytes() == (pretrained / name).read_bytes()

    loaded, about = CONFIGS[kind][0].from_pretrained(
        tmp_path / "merged", dtype=dtype, output_loading_info=True
    )
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    assert not about["mismatched_keys"]
    state = loaded.state_dict()
    assert all(torch.equal(state[name], part) for name, part in expected.items())
    assert record == json.loads((tmp_path / "merged" / "merge.json").read_text())


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_makes_the_model_that_it_makes_in_memory(tmp_path, rule):
    pretrained, finetuned = family(tmp_path, "bert", shard="8KB")
    start, *ends = (dict(sorted(content(path).items())) for path in (pretrained, *finetuned))
    options = {"dare": {"drop_rate": 0.0}, "ties": {"density": 0.3}}.get(rule, {})
    draws = {"generator": source(1)} if RULES[rule].draws else {}
    quiet(pretrained, finetuned, out=tmp_path / "merged", rule=rule, scaling_coef=0.4, **options, **draws)
    vectors = [TaskVector.between(start, end) for end in ends]
    expected = RULES[rule].function(vectors, **options, **draws).apply_to(start, scaling_coef=0.4)
    for name, part in content(tmp_path / "merged").items():
        torch.testing.assert_close(part, expected[name], rtol=2e-5, atol=2e-6)


def test_strict_loading_into_a_module(tmp_path):
    pretrained, finetuned = family(tmp_path, "clip")
    quiet(pretrained, finetuned, out=tmp_path / "merged")
    made, config = CONFIGS["clip"]
    made(config).load_state_dict(content(tmp_path / "merged"), strict=True)


@pytest.mark.parametrize("way", ["file", "wrapped", "folder", "sharded"])
def test_files_of_torch_come_out_as_files_of_torch(tmp_path, way):
    """Tied tensors share their memory in the result as well."""
    numbers = source(5)
    table = torch.randn(6, 4, generator=numbers)
    base = {"a": torch.randn(3, 4, generator=numbers), "table": table, "head": table, "n": torch.tensor([7])}
    states = [base]
    for _ in range(2):
        step = torch.randn(6, 4, generator=numbers)
        states.append(
            {"a": base["a"] + 1, "table": table + step, "head": table + step, "n": torch.tensor([8])}
        )
    paths = []
    for place, state in enumerate(states):
        folder = tmp_path / str(place)
        folder.mkdir()
        if way == "file":
            torch.save(state, folder / "weights.pt")
            paths.append(folder / "weights.pt")
        elif way == "wrapped":
            torch.save({"state_dict": state, "epoch": 3}, folder / "weights.ckpt")
            paths.append(folder / "weights.ckpt")
        elif way == "folder":
            torch.save(state, folder / "pytorch_model.bin")
            paths.append(folder)
        else:
            shards = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
            torch.save({"a": state["a"], "n": state["n"]}, folder / shards[0])
            torch.save({"table": state["table"], "head": state["head"]}, folder / shards[1])
            places = {"a": shards[0], "n": shards[0], "table": shards[1], "head": shards[1]}
            index = {"metadata": {"total_size": 1}, "weight_map": places}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
            paths.append(folder)
    record = quiet(paths[0], paths[1:], out=tmp_path / "merged")
    assert any("tied weights" in note for note in record["notes"])
    assert any("whole numbers" in note and "'n'" in note for note in record["notes"])
    written = sorted(each.name for each in (tmp_path / "merged").iterdir() if each.suffix != ".json")
    if way == "wrapped":
        found = torch.load(tmp_path / "merged" / "weights.ckpt", weights_only=True)
        assert found.keys() == {"state_dict"}
        found = found["state_dict"]
    else:
        found = content(tmp_path / "merged")
    assert written == sorted(
        {path.name for path in paths[0].iterdir() if path.suffix != ".json"}
        if paths[0].is_dir()
        else {paths[0].name}
    )
    assert found.keys() == base.keys()
    assert found["n"].item() == 7
    torch.testing.assert_close(found["a"], base["a"] + 1)
    torch.testing.assert_close(found["table"], (states[1]["table"] + states[2]["table"]) / 2)
    assert found["table"].data_ptr() == found["head"].data_ptr()


# --- dtypes ----------------------------------------------------------------------------------------------


def test_half_weights_with_wide_norms_keep_their_dtypes(tmp_path):
    states = [
        {"w": torch.full((3, 2), 1.0 + seed).bfloat16(), "norm": torch.full((2,), 1.0 + seed / 1024)}
        for seed in range(3)
    ]
    paths = [save(state, tmp_path / f"{place}.safetensors") for place, state in enumerate(states)]
    quiet(paths[0], paths[1:], out=tmp_path / "merged")
    merged = content(tmp_path / "merged")
    assert {name: part.dtype for name, part in merged.items()} == {"w": torch.bfloat16, "norm": torch.float32}
    assert merged["norm"].tolist() == [1 + 1.5 / 1024] * 2
    assert merged["w"].tolist() == [[2.5, 2.5]] * 3


def test_sums_are_rounded_once(tmp_path):
    """Eight steps of 2⁻⁷ at λ = 0.3: in bfloat16 throughout a sixth of the edit would be lost."""
    states = [{"w": torch.ones(1).bfloat16()}] + [{"w": torch.tensor([1 + 2**-7]).bfloat16()}] * 8
    paths = [save(state, tmp_path / f"{place}.safetensors") for place, state in enumerate(states)]
    options = {"rule": "task_arithmetic", "scaling_coef": 0.3}
    quiet(paths[0], paths[1:], out=tmp_path / "wide", dtype=torch.float32, **options)
    assert content(tmp_path / "wide")["w"].item() == pytest.approx(1 + 0.3 * 8 * 2**-7, rel=1e-7)
    record = quiet(paths[0], paths[1:], out=tmp_path / "half", **options)
    assert content(tmp_path / "half")["w"].item() == 1 + 2 * 2**-7, "the nearest number"
    assert record["lost_to_rounding"] == pytest.approx(0.4 / 2.4, rel=1e-4)
    assert any("changes the edit by 17% of its length" in note for note in record["notes"])


def test_another_dtype_is_written_and_said_in_the_configuration(tmp_path):
    pretrained, finetuned = family(tmp_path, "bert", dtype=torch.bfloat16)
    quiet(pretrained, finetuned, out=tmp_path / "merged", dtype=torch.float32)
    assert {part.dtype for part in content(tmp_path / "merged").values()} == {torch.float32}
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "float32"
    loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert loaded.dtype == torch.float32


def test_float64_stays_float64(tmp_path):
    states = [{"w": torch.tensor([1.0, 3.0], dtype=torch.float64) / 3 * (seed + 1)} for seed in range(3)]
    paths = [save(state, tmp_path / f"{place}.safetensors") for place, state in enumerate(states)]
    quiet(paths[0], paths[1:], out=tmp_path / "merged")
    expected = (states[1]["w"] + states[2]["w"]) / 2
    torch.testing.assert_close(content(tmp_path / "merged")["w"], expected, rtol=1e-15, atol=0)


def test_what_does_not_fit_into_half_precision_is_an_error_and_leaves_nothing(tmp_path):
    states = [{"w": torch.tensor([value]).half()} for value in (0.0, 6e4, 6e4)]
    paths = [save(state, tmp_path / f"{place}.safetensors") for place, state in enumerate(states)]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(
        ValueError, match=r"'w' of the merged model is beyond the range of torch\.float16.*dtype"
    ):
        quiet(paths[0], paths[1:], out=tmp_path / "merged", rule="task_arithmetic")
    assert sorted(os.listdir(tmp_path)) == before
    quiet(paths[0], paths[1:], out=tmp_path / "merged", rule="task_arithmetic", dtype=torch.float32)
    assert content(tmp_path / "merged")["w"].item() == 120_000.0


def test_dtypes_that_differ_between_models_have_to_be_asked_for(tmp_path):
    paths = [
        save({"w": torch.ones(2)}, tmp_path / "base.safetensors"),
        save({"w": torch.full((2,), 2.0).bfloat16()}, tmp_path / "cars.safetensors"),
    ]
    with pytest.raises(TypeError, match=r"dtypes differ at 'w': F32 in .* BF16 in .*mixed_dtypes=True"):
        quiet(paths[0], paths[1:], out=tmp_path / "merged")
    quiet(paths[0], paths[1:], out=tmp_path / "merged", mixed_dtypes=True)
    assert content(tmp_path / "merged")["w"].tolist() == [2.0, 2.0]
    with pytest.raises(TypeError, match=r"dtype must be one of torch\.float32, .*got torch\.int8"):
        quiet(paths[0], paths[1:], out=tmp_path / "other", dtype=torch.int8)


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: name.replace("layer.", "layer._checkpoint_wrapped_module."),
        lambda name: f"_fsdp_wrapped_module.{name.replace('layer.', 'layer._fsdp_wrapped_module.')}",
        lambda name: f"bert.{name}",
        lambda name: f"base_model.model.{name}",
    ],
)
@pytest.mark.parametrize("which", ["pretrained", "finetuned"])
def test_a_wrapper_around_the_names_is_seen_through_and_said(tmp_path, rename, which):
    names = ["layer.0.weight", "layer.1.weight", "bias"]
    start, end = ({name: torch.full((2,), value) for name in names} for value in (1.0, 3.0))
    if which == "pretrained":
        start = {rename(name): part for name, part in start.items()}
    else:
        end = {rename(name): part for name, part in end.items()}
    paths = [save(start, tmp_path / "base.safetensors"), save(end, tmp_path / "cars.safetensors")]
    record = quiet(paths[0], paths[1:], out=tmp_path / "merged", scaling_coef=0.5)
    merged = content(tmp_path / "merged")
    assert merged.keys() == start.keys()
    assert all(part.tolist() == [2.0, 2.0] for part in merged.values())
    assert len(record["notes"]) == 1
    assert "names" in record["notes"][0]


def test_a_part_of_a_model_is_an_error_that_names_the_remedy(tmp_path):
    """A classifier on top of the pretrained model, under a prefix, as transformers saves it."""
    start = {"embed.weight": torch.zeros(3, 2), "out.weight": torch.zeros(2, 2)}
    end = {f"bert.{name}": part + 1 for name, part in start.items()} | {"classifier.weight": torch.ones(5, 2)}
    paths = [save(start, tmp_path / "base.safetensors"), save(end, tmp_path / "cars.safetensors")]
    with pytest.raises(ValueError, match=r"cars.* has 'classifier\.weight'.*--exclude 'classifier\.\*'"):
        quiet(paths[0], paths[1:], out=tmp_path / "merged")
    record = quiet(paths[0], paths[1:], out=tmp_path / "merged", exclude="classifier.*")
    assert all(bool((part == 1).all()) for part in content(tmp_path / "merged").values())
    assert any("left away" in note and "classifier" in note for note in record["notes"])
    with pytest.raises(ValueError, match=r"base.* has 'out\.weight', .*--exclude 'out\.\*'"):
        quiet(
            paths[0],
            [save({"embed.weight": torch.ones(3, 2)}, tmp_path / "x.safetensors")],
            out=tmp_path / "o",
        )


def test_what_is_excluded_stays_as_it_is_and_is_written_in_the_dtype_asked_for(tmp_path):
    states = [
        {"a.w": torch.full((70,), 1.0 + seed), "b.w": torch.full((7, 30), 1.0 + seed)} for seed in range(2)
    ]
    paths = [save(state, tmp_path / f"{place}.safetensors") for place, state in enumerate(states)]
    record = quiet(
        paths[0], paths[1:], out=tmp_path / "merged", exclude=["b.*"], dtype=torch.bfloat16, rule="mean"
    )
    merged = content(tmp_path / "merged")
    assert merged["a.w"].tolist() == [2.0] * 70
    assert torch.equal(merged["b.w"], torch.ones(7, 30).bfloat16())
    assert record["exclude"] == ["b.*"]
    assert any("excluded" in note and "'b.w'" in note for note in record["notes"])
    with pytest.raises(ValueError, match=r"exclude.*'b\.weigth'"):
        quiet(paths[0], paths[1:], out=tmp_path / "other", exclude=["b.weigth"])


@pytest.mark.parametrize("has", ["pretrained", "finetuned", "both"])
def test_position_ids_that_only_some_versions_save_are_carried(tmp_path, has):
    ids = {"embeddings.position_ids": torch.arange(4)[None]}
    start, end = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    paths = [
        save(start | (ids if has != "finetuned" else {}), tmp_path / "base.safetensors"),
        save(end | (ids if has != "pretrained" else {}), tmp_path / "cars.safetensors"),
    ]
    record = quiet(paths[0], paths[1:], out=tmp_path / "merged")
    merged = content(tmp_path / "merged")
    assert merged.pop("w").tolist() == [1.0, 1.0]
    assert set(merged) == (set(ids) if has != "finetuned" else set())
    assert any("embeddings.position_ids" in note for note in record["notes"])


def test_dare_that_drops_everything_is_an_error(tmp_path, pair):
    with pytest.raises(ValueError, match=r"drop_rate has left nothing of 1 task vector"):
        quiet(pair[0], pair[1:], out=tmp_path / "o", rule="dare", drop_rate=0.99999, generator=source())


def test_running_statistics_stay_and_a_word_is_said(tmp_path):
    states = [
        {"bn.weight": torch.ones(2) * (1 + s), "bn.running_var": torch.ones(2) * (1 + s)} for s in range(2)
    ]
    paths = [save(state, tmp_path / f"{place}.safetensors") for place, state in enumerate(states)]
    record = quiet(paths[0], paths[1:], out=tmp_path / "merged", scaling_coef=-3)
    merged = content(tmp_path / "merged")
    assert (merged["bn.weight"].tolist(), merged["bn.running_var"].tolist()) == ([-2.0, -2.0], [1.0, 1.0])
    assert any("update_bn" in note for note in record["notes"])


# --- tied weights ----------------------------------------------------------------------------------------


def tied_states(which):
    """A table and a head; in the pretrained model one tensor, in a finetuned one what `which` says."""
    numbers = source(3)
    table = torch.randn(5, 3, generator=numbers)
    ends = [table + torch.randn(5, 3, generator=numbers) for _ in range(3)]
    start = {
        "wte.weight": table,
        "lm_head.weight": table.clone(),
        "zeros": torch.zeros(3),
        "noughts": torch.zeros(3),
    }
    states = [start]
    for place, end in enumerate(ends):
        states.append(
            {
                "wte.weight": end,
                "lm_head.weight": end.clone(),
                "zeros": torch.ones(3),
                "noughts": -torch.ones(3),
            }
        )
        if which == "left out":
            del states[-1]["lm_head.weight"]
        elif which == "untied" and place == 1:
            states[-1]["lm_head.weight"] = end + 1
        elif which == "alone":
            del states[-1]["wte.weight"]
    if which == "spurious":
        del start["lm_head.weight"]
    return states


@pytest.mark.parametrize("which", ["copied", "left out", "alone", "spurious"])
@pytest.mark.parametrize("rule", ["mean", "dare"])
def test_tied_weights_are_merged_once(tmp_path, which, rule):
    """However the files hold them; DARE would draw other masks for a second copy."""
    states = tied_states(which)
    paths = [save(state, tmp_path / f"{place}.safetensors") for place, state in enumerate(states)]
    draws = {"generator": source(1), "drop_rate": 0.5} if rule == "dare" else {}
    record = quiet(paths[0], paths[1:], out=tmp_path / "merged", rule=rule, **draws)
    merged = content(tmp_path / "merged")
    assert merged.keys() == states[0].keys()
    if which != "spurious":
        assert torch.equal(merged["wte.weight"], merged["lm_head.weight"])
    assert any("tied weights" in note for note in record["notes"])
    if rule == "mean":
        key = "lm_head.weight" if which == "alone" else "wte.weight"
        expected = sum(state[key] for state in states[1:]) / 3
        torch.testing.assert_close(merged["wte.weight"], expected)
        assert (merged["zeros"].tolist(), merged["noughts"].tolist()) == ([1.0] * 3, [-1.0] * 3)
    found = compare_models(paths[0], paths[1:], progress=False)
    assert sum(found.entries.values()) == 15 + 6, "counted once in norms and cosines"


def test_tied_in_one_model_and_untied_in_another_is_an_error(tmp_path):
    states = tied_states("untied")
    paths = [save(state, tmp_path / f"{place}.safetensors") for place, state in enumerate(states)]
    message = r"'wte\.weight' and 'lm_head\.weight' are one tensor in .*0\.saf.*two in .*2\.saf"
    with pytest.raises(ValueError, match=message):
        quiet(paths[0], paths[1:], out=tmp_path / "merged")
    quiet(paths[0], paths[1:], out=tmp_path / "merged", exclude="lm_head.weight")
    merged = content(tmp_path / "merged")
    assert torch.equal(merged["lm_head.weight"], states[0]["lm_head.weight"])
    del states[0]["lm_head.weight"]
    save(states[0], paths[0])
    with pytest.raises(ValueError, match=r"2\.saf.* has 'lm_head\.weight'.*is tied and the other is not"):
        quiet(paths[0], paths[1:], out=tmp_path / "other")


# --- what is no model, or not all of one -----------------------------------------------------------------


def test_a_vocabulary_that_grew(tmp_path):
    paths = [
        save({"emb.weight": torch.zeros(rows, 4), "w": torch.zeros(2)}, tmp_path / f"{rows}.safetensors")
        for rows in (10, 12)
    ]
    with pytest.raises(
        ValueError, match=r"'emb\.weight': \(10, 4\) .*\(12, 4\).*resize_token_embeddings\(12\).*--exclude"
    ):
        quiet(paths[0], paths[1:], out=tmp_path / "merged")
    quiet(paths[0], paths[1:], out=tmp_path / "merged", exclude="emb.weight")


def test_other_tokenizers_deserve_a_word(tmp_path):
    pretrained, finetuned = family(tmp_path, "bert")
    (finetuned[1] / "vocab.txt").write_text("b\na\n")
    record = quiet(pretrained, finetuned, out=tmp_path / "merged")
    (note,) = record["notes"]
    assert "mnist: its vocab.txt differs" in note


def test_a_tokenizer_that_was_called_to_pad_is_the_same(tmp_path):
    pretrained, finetuned = family(tmp_path, "bert")
    told = {"model": {"vocab": {"a": 0, "b": 1}}, "padding": None, "truncation": None}
    for folder in (pretrained, finetuned[1]):
        (folder / "tokenizer.json").write_text(json.dumps(told))
        told["padding"] = {"strategy": "BatchLongest", "pad_id": 0}
    assert quiet(pretrained, finetuned, out=tmp_path / "merged")["notes"] == []
    told["model"]["vocab"] = {"a": 1, "b": 0}
    (finetuned[1] / "tokenizer.json").write_text(json.dumps(told))
    (note,) = quiet(pretrained, finetuned, out=tmp_path / "second")["notes"]
    assert "mnist: its tokenizer.json differs" in note


def test_shards_are_all_there_and_as_the_index_says(tmp_path):
    pretrained, finetuned = family(tmp_path, "bert", shard="8KB")
    shards = sorted(pretrained.glob("*.safetensors"))
    index = pretrained / "model.safetensors.index.json"
    told = index.read_text()
    hidden = shards[1].rename(tmp_path / "hidden")
    with pytest.raises(FileNotFoundError, match=rf"a shard is missing: .*tensors are in {shards[1].name}"):
        quiet(pretrained, finetuned, out=tmp_path / "merged")
    hidden.rename(shards[1])
    places = json.loads(told)
    first = next(iter(places["weight_map"]))
    for change, message in (
        (lambda: places["weight_map"].pop(first), "disagree about the tensor"),
        (lambda: places["weight_map"].update({first: "../outside.safetensors"}), "outside of its folder"),
        (lambda: places.pop("weight_map"), "has no weight_map"),
    ):
        change()
        index.write_text(json.dumps(places))
        with pytest.raises(ValueError, match=message):
            quiet(pretrained, finetuned, out=tmp_path / "merged")
    index.write_text(told)
    quiet(index, [path / index.name for path in finetuned], out=tmp_path / "merged")
    assert content(tmp_path / "merged").keys() == content(pretrained).keys()
    assert (tmp_path / "merged" / "config.json").exists(), "an index stands for its folder"


def test_factors_alone_and_adapters_in_the_place_of_a_model_are_refused(tmp_path):
    base = save({"q.weight": torch.ones(2, 2)}, tmp_path / "base.safetensors")
    factors = {f"base_model.model.q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    lora = save(factors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(
        TypeError, match=r"adapter_model\.safetensors holds factors .*'base_.*give its folder"
    ):
        quiet(base, [lora], out=tmp_path / "merged")
    folder = tmp_path / "lora"
    save(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": False})
    )
    message = r"lora is an adapter, and a whole model is wanted here.* merge MODEL .*lora --out NEW"
    with pytest.raises(TypeError, match=message):
        quiet(folder, [base], out=tmp_path / "merged")
    other = save({"q.weight": torch.full((2, 2), 2.0)}, tmp_path / "other.safetensors")
    with pytest.raises(TypeError, match=message):
        complete_analogy(folder, other, third=base, out=tmp_path / "merged", progress=False)
    quiet(base, [folder], out=tmp_path / "merged")
    assert content(tmp_path / "merged")["q.weight"].tolist() == [[3.0, 3.0], [3.0, 3.0]]


# --- adapters --------------------------------------------------------------------------------------------

GPT2 = {"vocab_size": 30, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 10}


def adapted(made, base, folder, *, seed, **settings):
    """A LoRA adapter with random factors, saved by peft, and the state dict that peft merges it into."""
    peft = pytest.importorskip("peft")
    settings = {"target_modules": ["query", "value", "dense"], "r": 2, **settings}
    wrapped = peft.get_peft_model(made.from_pretrained(base), peft.LoraConfig(**settings))
    numbers = source(seed)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=numbers)
    wrapped.save_pretrained(folder)
    return folder, {name: part.clone() for name, part in wrapped.merge_and_unload().state_dict().items()}


def assert_near(path, expected):
    found = content(path)
    assert set(found) <= set(expected)
    for name, part in found.items():
        torch.testing.assert_close(part, expected[name], rtol=1e-5, atol=2e-6, msg=name)


@pytest.mark.filterwarnings("ignore")  # of peft about tied embeddings
def test_adapters_are_multiplied_out_and_merged_like_models(tmp_path):
    """Of unlike ranks, rank-stabilised, with DoRA, with biases, beside a model finetuned whole."""
    pretrained, (cars, *_) = family(tmp_path, "bert", shard="8KB")
    start = content(pretrained)
    made = CONFIGS["bert"][0]
    many = [
        adapted(made, pretrained, tmp_path / "a", seed=1, lora_alpha=3),
        adapted(made, pretrained, tmp_path / "b", seed=2, r=4, lora_alpha=3, use_rslora=True),
        adapted(made, pretrained, tmp_path / "c", seed=3, use_dora=True),
        adapted(made, pretrained, tmp_path / "d", seed=4, bias="all"),  # one of them under two names
    ]
    folders = [folder for folder, _ in many]
    sums = {"rule": "task_arithmetic", "scaling_coef": 0.3}
    record = quiet(pretrained, [cars, *folders], out=tmp_path / "merged", **sums)
    ends = [content(cars), *(end for _, end in many)]
    expected = {n: part + 0.3 * sum(end[n] - part for end in ends) for n, part in start.items()}
    assert_near(tmp_path / "merged", expected)
    assert list(record["finetuned"][1]["sha256"]) == ["adapter_model.safetensors", "adapter_config.json"]

    folders = folders[:3]
    for rule, options in {"ties": {"density": 0.3}, "tsv": {}, "breadcrumbs": {}}.items():
        record = quiet(pretrained, folders, out=tmp_path / rule, rule=rule, **options)
        vectors = merging.adapter_vectors(folders, dict(sorted(start.items())))
        merged = RULES[rule].function(vectors, **options).apply_to(dict(sorted(start.items())))
        assert_near(tmp_path / rule, merged)
    assert any("no adapter changes it" in note and "embeddings" in note for note in record["notes"])

    negate_model(pretrained, folders[0], out=tmp_path / "negated", progress=False)
    assert_near(tmp_path / "negated", {n: 2 * part - many[0][1][n] for n, part in start.items()})
    found = compare_models(pretrained, folders, progress=False)
    assert found.norms().tolist() == pytest.approx([vector.norm() for vector in vectors], rel=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["c_attn", "c_proj"]},
        {"target_modules": ["c_attn", "c_proj"], "use_dora": True},
        {"target_modules": ["wte"], "use_dora": True},
        {"target_modules": ["c_fc"], "modules_to_save": ["wpe", "ln_f"]},
    ],
    ids=["transposed", "DoRA", "an embedding", "saved modules"],
)
def test_an_adapter_alone_becomes_the_model_that_peft_merges(tmp_path, settings):
    """Row by row, also where rows of the file are columns of the product."""
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0))
    base.save_pretrained(tmp_path / "base")
    folder, expected = adapted(
        type(base), tmp_path / "base", tmp_path / "lora", seed=1, fan_in_fan_out=True, **settings
    )
    for rule in ("mean", "consensus", "iso_c"):
        options = {"agreeing": 1} if rule == "consensus" else {}
        quiet(tmp_path / "base", [folder], out=tmp_path / rule, rule=rule, **options)
    assert_near(tmp_path / "mean", expected)
    assert_near(tmp_path / "consensus", expected)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_a_classifier_goes_onto_the_encoder_without_its_head(tmp_path):
    """The head was trained whole, and the names of the encoder have a prefix that the folder lacks."""
    _, config = CONFIGS["bert"]
    torch.manual_seed(0)
    whole = transformers.BertForSequenceClassification(config)
    whole.save_pretrained(tmp_path / "whole")
    whole.bert.save_pretrained(tmp_path / "base")
    folder, expected = adapted(
        type(whole), tmp_path / "whole", tmp_path / "lora", seed=1, task_type="SEQ_CLS"
    )
    message = (
        r"lora holds 'classifier\.bias', trained whole.*but .*base has none;.*--exclude 'classifier\.\*'"
    )
    with pytest.raises(ValueError, match=message):
        quiet(tmp_path / "base", [folder], out=tmp_path / "merged")
    record = quiet(tmp_path / "base", [folder], out=tmp_path / "merged", exclude="classifier.*")
    assert_near(tmp_path / "merged", {name.removeprefix("bert."): part for name, part in expected.items()})
    assert any("begin with 'bert.'" in note for note in record["notes"])
    assert any("left away" in note and "classifier" in note for note in record["notes"])
    with pytest.raises(ValueError, match=r"exclude leaves nothing of the adapter .*lora"):
        quiet(tmp_path / "base", [folder], out=tmp_path / "other", exclude="*")


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_model_is_refused_before_the_work(tmp_path):
    pretrained, _ = family(tmp_path, "bert")
    folder, _ = adapted(CONFIGS["bert"][0], pretrained, tmp_path / "a", seed=1)
    other = save({"w": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"the adapter in .*a changes 'bert\..*which pretrained does not have"
    ):
        quiet(other, [folder], out=tmp_path / "merged")
    state = content(pretrained)
    name = "bert.encoder.layer.1.output.dense.weight"
    larger = save(state | {name: torch.ones(16, 25)}, tmp_path / "larger.safetensors")
    message = rf"shapes differ at '{name}': \(16, 25\) in pretrained.*\(16, 24\)"
    with pytest.raises(ValueError, match=message):
        compare_models(larger, [folder], progress=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["wte", "lm_head"]}]
)
def test_an_adapter_that_unties_weights_is_refused(tmp_path, settings):
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0))
    state = {name: part.clone() for name, part in base.state_dict().items()}
    base.save_pretrained(tmp_path / "base")
    settings = {"target_modules": ["c_fc"], **settings}
    folder, _ = adapted(
        type(base), tmp_path / "base", tmp_path / "lora", seed=1, fan_in_fan_out=True, **settings
    )
    message = r"as a tensor of its own, but in pretrained .*lm_head.* are one tensor \(tied weights\)"
    with pytest.raises(ValueError, match=message):
        quiet(save(state, tmp_path / "base.safetensors"), [folder], out=tmp_path / "merged")
    with pytest.raises(ValueError, match=message):
        merging.adapter_vector(folder, state)


@pytest.mark.filterwarnings("ignore")
def test_a_factor_that_is_not_a_number_is_blamed_on_its_adapter(tmp_path):
    pretrained, _ = family(tmp_path, "bert")
    folders = [
        adapted(CONFIGS["bert"][0], pretrained, tmp_path / name, seed=1)[0] for name in ("sound", "broken")
    ]
    weights = folders[1] / "adapter_model.safetensors"
    factors = safetensors.torch.load_file(weights)
    next(part for name, part in factors.items() if "layer.1.output.dense.lora_B" in name)[0, 0] = math.nan
    save(factors, weights)
    for rule in ("mean", "ties", "tsv"):
        with pytest.raises(ValueError, match=r"'bert.*layer\.1\.output\.dense\.weight' in .*broken"):
            quiet(pretrained, folders, out=tmp_path / "merged", rule=rule)


@pytest.mark.parametrize(
    "state",
    [
        {"w.weight": torch.ones(4, 4, dtype=torch.int8), "w.scale": torch.ones(4)},
        {"w.weight": torch.ones(8, dtype=torch.uint8), "w.weight.absmax": torch.ones(4)},
        {"w.qweight": torch.ones(4, 4, dtype=torch.int32), "w.scales": torch.ones(4)},
        {"w.weight": torch.ones(2, 2).to(torch.float8_e4m3fn), "w.scale": torch.ones(2)},
    ],
)
def test_quantised_weights_are_refused(tmp_path, state):
    paths = [save(state, tmp_path / f"{place}.safetensors") for place in range(2)]
    with pytest.raises(TypeError, match=r"quantised weights, whose differences mean nothing"):
        quiet(paths[0], paths[1:], out=tmp_path / "merged")


def test_a_configuration_that_says_quantised_is_believed(tmp_path):
    pretrained, finetuned = family(tmp_path, "bert")
    config = finetuned[0] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"bits": 4}}))
    with pytest.raises(TypeError, match=r"cars is quantised, says its config\.json"):
        quiet(pretrained, finetuned, out=tmp_path / "merged")


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: torch.save(torch.nn.Linear(2, 2), p), ValueError, "more than tensors and is not loaded"),
        (lambda p: p.write_bytes(b"PK\x03\x04 and nothing more"), ValueError, "truncated or corrupted"),
        (lambda p: torch.save([torch.ones(2)], p), TypeError, "holds no state dict but list"),
        (lambda p: torch.save({"w": torch.ones(2), "epoch": 3}, p), TypeError, "'epoch', which is no tensor"),
        (lambda p: torch.save({"w": torch.eye(2).to_sparse()}, p), TypeError, "'w' in .* is sparse"),
        (lambda p: torch.save({"w": torch.ones(2, device="meta")}, p), TypeError, "without entries"),
        (
            lambda p: torch.save({"w": torch.ones(2)}, p, _use_new_zipfile_serialization=False),
            ValueError,
            "no state dict that torch can map",
        ),
    ],
)
def test_files_of_torch_that_are_no_state_dict(tmp_path, make, error, message):
    base = save({"w": torch.ones(2)}, tmp_path / "base.safetensors")
    make(tmp_path / "other.pt")
    with pytest.raises(error, match=message):
        quiet(base, [tmp_path / "other.pt"], out=tmp_path / "merged")


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"empty holds no weights; give a folder that save_pretrained"
    ):
        quiet(tmp_path / "empty", [tmp_path], out=tmp_path / "merged")


# --- the folder that is made -----------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    return [
        save({"w": torch.full((300,), float(value))}, tmp_path / f"{value}.safetensors") for value in (1, 3)
    ]


def test_a_folder_that_is_not_empty_is_refused_and_an_empty_one_is_taken(tmp_path, pair):
    out = tmp_path / "merged"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match="merged is not empty"):
        quiet(pair[0], pair[1:], out=out)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    quiet(pair[0], pair[1:], out=out)
    assert content(out)["w"].tolist() == [3.0] * 300
    with pytest.raises(OSError, match=r"1\.safetensors is a file"):
        quiet(pair[0], pair[1:], out=pair[0])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        quiet(pair[0], pair[1:], out=tmp_path / "far" / "away")


@pytest.mark.parametrize("moment", ["write", "finish"])
def test_a_failure_leaves_nothing(tmp_path, pair, monkeypatch, moment):
    def full(*given, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(model_files.ModelWriter, moment, full)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OSError, match=r"merged could not be written \(No space left"):
        quiet(pair[0], pair[1:], out=tmp_path / "merged")
    assert sorted(os.listdir(tmp_path)) == before


def test_too_small_a_disk_is_seen_before_the_work(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(models.shutil, "disk_usage", lambda place: os.statvfs_result([0] * 10) and Small())
    with pytest.raises(OSError, match=r"merged needs 0\.0 MB and the disk has 0\.0 MB"):
        quiet(pair[0], pair[1:], out=tmp_path / "merged")


class Small:
    free = 10


KILLED = """
import os, sys
from taskvec_mini import merging
from taskvec_mini.merging import model_files
model_files.ModelWriter.finish = lambda self, aliases: os.kill(os.getpid(), 9)
merging.merge_models(sys.argv[1], sys.argv[2:3], out=sys.argv[3], progress=False)
"""


def test_what_a_kill_leaves_is_swept_by_the_next_merge(tmp_path, pair):
    out = tmp_path / "merged"
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, pair), str(out)], check=False)
    assert done.returncode == -9
    assert not out.exists()
    quiet(pair[0], pair[1:], out=out)
    assert sorted(os.listdir(tmp_path)) == ["1.safetensors", "3.safetensors", "merged"]


def test_the_record_names_what_it_came_from(tmp_path, pair):
    import hashlib

    record = quiet(
        pair[0],
        pair[1:],
        out=tmp_path / "merged",
        rule="dare",
        drop_rate=0.0,
        scaling_coef=0.25,
        generator=source(7),
    )
    assert record["rule"] == "dare"
    assert record["options"] == {"drop_rate": 0.0, "seed": 7}
    assert record["scaling_coef"] == 0.25
    assert record["pretrained"]["sha256"] == {
        "1.safetensors": hashlib.sha256(pair[0].read_bytes()).hexdigest()
    }
    assert [each["path"] for each in record["finetuned"]] == [str(pair[1])]
    assert record["versions"]["torch"] == torch.__version__


def test_inputs_are_not_written_to(tmp_path, pair):
    before = [path.read_bytes() for path in pair]
    for rule in RULES:
        draws = {"generator": source()} if RULES[rule].draws else {}
        options = {"agreeing": 1} if rule == "consensus" else {}
        quiet(pair[0], pair[1:], out=tmp_path / rule, rule=rule, **draws, **options)
    assert [path.read_bytes() for path in pair] == before


# --- negate, analogy, diff -------------------------------------------------------------------------------


def test_negating_and_completing_analogies(tmp_path):
    states = [{"w": torch.randn(120, generator=source(seed))} for seed in range(3)]
    a, b, c = paths = [save(state, tmp_path / f"{place}.safetensors") for place, state in enumerate(states)]
    negate_model(a, b, out=tmp_path / "negated", scaling_coef=0.5, progress=False)
    first, second, third = (content(path)["w"].double() for path in paths)
    found = content(tmp_path / "negated")["w"].double()
    torch.testing.assert_close(found, first - 0.5 * (second - first), rtol=1e-6, atol=1e-6)
    complete_analogy(a, b, third=c, out=tmp_path / "fourth", scaling_coef=0.8, progress=False)
    assert sorted(os.listdir(tmp_path / "fourth")) == ["2.safetensors", "merge.json"]
    found = content(tmp_path / "fourth")["w"].double()
    torch.testing.assert_close(found, third + 0.8 * (second - first), rtol=1e-6, atol=1e-6)


def test_norms_and_cosines_are_those_of_vectors_in_memory(tmp_path):
    pretrained, finetuned = family(tmp_path, "bert", shard="8KB")
    found = compare_models(pretrained, finetuned, progress=False)
    start, *ends = (content(path) for path in (pretrained, *finetuned))
    vectors = [TaskVector.between(start, end) for end in ends]
    assert found.models == ["cars", "mnist", "svhn"]
    assert found.norms().tolist() == pytest.approx([vector.norm() for vector in vectors], rel=1e-7)
    for i, first in enumerate(vectors):
        for j, second in enumerate(vectors):
            assert found.cosines()[i, j].item() == pytest.approx(first.cosine(second), abs=1e-7)
    layer = "bert.encoder.layer.1"
    names = [name for name in start if name.startswith(f"{layer}.")]
    parts = [TaskVector.between({n: start[n] for n in names}, {n: end[n] for n in names}) for end in ends]
    assert found.entries[layer] == len(parts[0])
    assert found.norms(layer).tolist() == pytest.approx([part.norm() for part in parts], rel=1e-7)
    assert found.cosines(layer)[0, 2].item() == pytest.approx(parts[0].cosine(parts[2]), abs=1e-7)
    assert list(found.entries)[-2:] == ["bert.encoder.layer.0", layer], "blocks in their order"
    assert sum(found.entries.values()) == sum(part.numel() for part in start.values())
    assert sum(found.squares.values()) == pytest.approx(
        sum(float(part.double().square().sum()) for part in start.values())
    )


def test_entries_that_rounding_has_left_as_they_were_are_counted(tmp_path):
    start = torch.linspace(1, 2, 200).bfloat16()
    end = start.clone()
    end[:50] += 0.5
    paths = [save({"w": part}, tmp_path / f"{place}.safetensors") for place, part in enumerate((start, end))]
    found = compare_models(paths[0], paths[1:], progress=False)
    assert found.unchanged["w"].tolist() == [150]
    same = save({"w": start}, tmp_path / "same.safetensors")
    assert math.isnan(compare_models(paths[0], [paths[1], same], progress=False).cosines()[0, 1])


def test_models_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("cars", "mnist", "base"):
        save({"w": torch.randn(5, generator=source(len(name)))}, tmp_path / name / "model.safetensors")
    paths = [tmp_path / name / "model.safetensors" for name in ("cars", "mnist")]
    found = compare_models(tmp_path / "base" / "model.safetensors", paths, progress=False)
    assert found.models == ["cars/model", "mnist/model"]


# --- memory ----------------------------------------------------------------------------------------------

PEAK = """
import json, sys, torch
from taskvec_mini import merging
rule, out, base, *models = sys.argv[1:]
options = {"generator": torch.Generator().manual_seed(0)} if rule == "dare" else {}
record = merging.merge_models(base, models, out=out, rule=rule, progress=False, **options)
print(json.dumps(record["memory"]))
"""
TABLE = (10_000, 1_000)  # 40 MB in float32


def peak_of(base, models, *, rule):
    """What a merge with one thread said and took, in a process of its own; it goes beside the base."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, rule, *map(str, (base.parent / rule, base, *models))],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    table = torch.randn(TABLE, generator=source(0))
    for place in range(5):
        safetensors.torch.save_file({"table": table}, folder / f"{place}.safetensors")
        table = table + torch.randn(TABLE, generator=source(place + 1)).mul_(0.01)
    return folder


@pytest.fixture(scope="module")
def large_adapters(tmp_path_factory):
    """Four adapters of one table of 40 MB, one of them with DoRA, in files like those of peft."""
    folder = tmp_path_factory.mktemp("adapters")
    safetensors.torch.save_file({"q.weight": torch.randn(TABLE, generator=source(0))}, folder / "base.st")
    for place in range(4):
        numbers = source(place + 1)
        factors = {
            "q.lora_A.weight": torch.randn(8, TABLE[1], generator=numbers),
            "q.lora_B.weight": torch.randn(TABLE[0], 8, generator=numbers),
        }
        settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "fan_in_fan_out": False}
        if place == 3:
            settings["use_dora"] = True
            factors["q.lora_magnitude_vector"] = torch.full((TABLE[0],), 30.0)
        save(
            {f"base_model.model.{n}": f for n, f in factors.items()},
            folder / f"{place}/adapter_model.safetensors",
        )
        (folder / str(place) / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("rule", ["mean", "ties", "iso_c"])
def test_adapters_are_never_multiplied_out_whole_where_pieces_do(large_adapters, rule):
    memory = peak_of(large_adapters / "base.st", [large_adapters / str(p) for p in range(4)], rule=rule)
    assert memory["measured"] <= memory["expected"] + 30e6, memory
    if rule != "iso_c":
        assert memory["measured"] < 80e6, memory


@pytest.mark.parametrize("rule", ["mean", "task_arithmetic", "ties", "dare", "breadcrumbs", "consensus"])
def test_a_large_table_needs_no_more_memory_than_its_pieces(tables, rule):
    """Five tables of 40 MB, one thread: a measurement of its own process, against what was promised."""
    memory = peak_of(tables / "0.safetensors", [tables / f"{p}.safetensors" for p in range(1, 5)], rule=rule)
    assert memory["measured"] < 80e6, memory
    assert memory["measured"] <= memory["expected"] + 30e6, memory
    merged = content(tables / rule)["table"]
    assert merged.shape == TABLE


def test_the_largest_entries_are_found_as_a_sort_finds_them(tables):
    """TIES of the five large tables in pieces, against a sort of each vector."""
    start, *ends = (content(tables / f"{place}.safetensors")["table"].reshape(-1) for place in range(5))
    rows = []
    for end in ends:
        vector = end - start
        kept = vector.abs().argsort(descending=True, stable=True)[: math.ceil(0.2 * len(vector))]
        rows.append(torch.zeros_like(vector).index_copy(0, kept, vector[kept]))
    expected = merging.ties([TaskVector(row, [("table", TABLE)]) for row in rows], density=1.0).flat + start
    if not (tables / "ties").is_dir():  # in a process of its own, where pieces are not made small
        peak_of(tables / "0.safetensors", [tables / f"{p}.safetensors" for p in range(1, 5)], rule="ties")
    torch.testing.assert_close(content(tables / "ties")["table"].reshape(-1), expected, rtol=0, atol=1e-6)


def test_the_package_has_the_functions_under_its_name():
    assert {"merge_models", "negate_model", "complete_analogy", "compare_models"} <= set(merging.__all__)
    assert Path(models.RECORD).name == "merge.json"
