"""What the studies share: tasks with frozen heads, their finetuned encoders, merges tuned on validation.

A study is a long experiment behind a chapter. Each has a file of its own; `registry.STUDIES` lists them.
"""

from __future__ import annotations

import abc
import copy
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import _files, merging
from taskvec_mini.benchmarks.data import (
    SUITES,
    Task,
    TextTask,
    TextTokenizer,
    file_checksums,
    load_tasks,
    unit_of,
)
from taskvec_mini.benchmarks.encoders import Encoder, state_of, tokenizer_of
from taskvec_mini.benchmarks.evaluation import accuracies, climb, forget_prepared_images, sweep
from taskvec_mini.benchmarks.heads import Head, prototype_head, sentence_tower, zero_shot_head
from taskvec_mini.benchmarks.training import Experiment, Run, Settings, Speed, finetune, finetune_jointly
from taskvec_mini.vectors import TaskVector

SEEDS = (0, 1, 2)
EPOCHS = (1, 2, 4, 8, 16)  # after 16 the specialists have nearly all of their training images right
RUNS = Path("local/studies")  # the finetuned encoders, which the studies share: a finished run is read again

SCALING_COEFS: dict[str, tuple[float, ...]] = {  # what is tried on validation examples, by rule
    "mean": (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0),  # 1: weight averaging; T: the plain sum
    "ties": (0.12, 0.25, 0.5, 1.0, 1.5, 2.0),
    "dare": (0.06, 0.12, 0.2, 0.3, 0.45),
    "breadcrumbs": (0.12, 0.25, 0.5, 0.75, 1.0),
    "tsv": (0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    "regmean_from_vectors": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
}
OPTIONS: dict[str, dict[str, Any]] = {"dare": {"drop_rate": 0.9}, "tsv": {"kernels": "matrix"}}
TWO_RULES = ("mean", "regmean_from_vectors")  # the plainest, and the best of chapter 6
GRID_COEFS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # of the mean, for the slider

RECIPE = Settings(learning_rate=3e-4, epochs=EPOCHS[-1], batch_size=64, centre="batch")
TEXT_EPOCHS = (1, 2, 4, 8)
TEXT_RECIPE = Settings(learning_rate=1e-3, epochs=TEXT_EPOCHS[-1], batch_size=32, centre="batch")


# --- what a study is -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """What a study is asked for. Every field is an option of `record`, with its metadata as help.

    A field whose metadata say `recorded: False` is about one machine, and not part of the record's command.

    Attributes:
        data: the folder of the data; None for the one that the environment variable TASKVEC_MINI_DATA names.
    """

    data: Path | None = field(
        default=None,
        metadata={
            "help": "folder of the data (default: the environment variable TASKVEC_MINI_DATA)",
            "metavar": "FOLDER",
            "recorded": False,
        },
    )


class Study(abc.ABC):
    """A long experiment. `run` gives its results as plain JSON; what else the record says are attributes.

    Attributes:
        description: what it measures, for `list`.
        request: what it takes; another class than `StudyRequest` where it has options of its own.
        seeds: one repetition for each.
        settings: all that decides the outcome, as plain JSON; complete after the run.
        data: the SHA-256 of each file, by name; complete after the run.
        device: where it ran.
    """

    description: str
    request: type[StudyRequest] = StudyRequest
    seeds: tuple[int, ...] = SEEDS
    settings: Mapping[str, Any] = MappingProxyType({})
    data: Mapping[str, str] = MappingProxyType({})
    device: str = "cpu"

    @abc.abstractmethod
    def run(self, request: Any) -> dict[str, Any]:
        """Do all of it, one seed after the other.

        Args:
            request: of the class that `self.request` names.
        """


@dataclass(eq=False)
class Several(Study):
    """Studies of one kind whose results stand side by side in one record.

    Attributes:
        description: what it measures.
        studies: by a name of what differs between them.
        seeds: one repetition of each study for each.
    """

    description: str
    studies: Mapping[str, Study]
    seeds: tuple[int, ...] = SEEDS

    def run(self, request: Any) -> dict[str, Any]:
        """All studies, one after the other, each with all seeds."""
        found = {}
        settings = {}
        for name, study in self.studies.items():
            one: Any = copy.copy(study)
            one.seeds = self.seeds
            found[name] = one.run(request)
            settings[name] = dict(one.settings)
            self.data = {**self.data, **one.data}
        self.settings = settings
        return {"seeds": list(self.seeds), "studies": found}


# --- tasks, heads and how models are judged --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SuiteSettings:
    """Which tasks a study has, how much of them, and how their models are judged.

    Attributes:
        suite: as in `load_tasks`.
        tasks: their names.
        share: of the training examples of every task; sets keep their proportions, so do steps of an epoch.
        limit: at most that many training examples a task.
        validation: examples a task to tune scaling coefficients on.
        test: examples a task to judge by, at most.
        shots: training examples a class from which the heads are made; None for all.
        heads: "prototypes", made from those; or "zero-shot", made of sentences, from no example.
        recentre: training inputs by which the heads' centres are moved when a model is judged; 0 for none.
        precision: of products in finetuning, as in `Speed`.
        judged_in: the same for judging, where no gradient is rounded: bfloat16 takes a third of the time.
        runs: a word in the name of the folder of the runs, beside the encoder's: a study that trains the same
            tasks otherwise keeps its runs apart.
    """

    suite: str = "bundle"
    tasks: tuple[str, ...] = SUITES["bundle"].default_tasks
    share: float = 1.0
    limit: int | None = None
    validation: int = 200
    test: int = 800
    shots: int | None = 5
    heads: str = "prototypes"
    recentre: int = 100
    precision: str = "float32"
    judged_in: str = "float32"
    runs: str = ""


IMAGES = SuiteSettings(share=0.3)
TEXTS = SuiteSettings(
    suite="text",
    tasks=("trec6", "agnews", "dbpedia14", "banking77", "clinc10", "sst2"),  # "subj" has sentences of "sst2"
    limit=1200,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Suite:
    """The tasks of one seed, their heads, the encoder all start from, and how models of them are judged.

    Attributes:
        backbone: the pretrained encoder.
        tasks, heads: by name.
        seed: of splits and training.
        experiment: where the finetuned encoders are.
        about: what the record's settings say of all this.
        data: the SHA-256 of each file.
        test: test examples of a task by which models are judged, at most.
        recentre: training inputs by which the heads' centres are moved before; 0 for none.
        precision, judged_in: of products in finetuning, and in judging.
        keep_prepared: whether prepared inputs stay in memory from one task to the next.
    """

    backbone: Encoder
    tasks: Mapping[str, Task]
    heads: Mapping[str, Head]
    seed: int
    experiment: Experiment
    about: dict[str, Any]
    data: dict[str, str]
    test: int
    recentre: int
    precision: str = "float32"
    judged_in: str = "float32"
    keep_prepared: bool = True

    def scores(self, parameters: Any, names: Iterable[str]) -> dict[str, float]:
        """Test accuracy of each named task under some parameters; None for the pretrained ones."""
        found: dict[str, float] = {}
        for name in names:
            found |= accuracies(
                self.backbone,
                self.heads,
                {name: self.tasks[name]},
                parameters=parameters,
                limit=self.test,
                recentre=self.recentre,
                precision=self.judged_in,
            )
            if not self.keep_prepared:
                forget_prepared_images()
        return {name: round(score, 5) for name, score in found.items()}

    def kept(self, name: str, compute: Callable[[], Any], *, about: Mapping[str, Any]) -> Any:
        """What `compute` gives, as JSON: read again where it was computed before, about the same things.

        Args:
            name: of the result, in the folder of the runs.
            compute: takes minutes.
            about: all that decides the outcome beside the runs; another value computes it anew.
        """
        path = self.experiment.result(name)
        here = json.loads(json.dumps({"about": {**self.about, **about}}))
        if path.is_file():
            remedy = "delete this file: it is computed again"
            stored = _files.read_json(path, what="result of a study", remedy=remedy)
            if stored.get("about") == here["about"] and "value" in stored:
                return stored["value"]
        value = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        _files.write_json(path, {**here, "value": value})
        return value

    def merge(self, rule: str, vectors: Mapping[str, TaskVector]) -> dict[str, Any]:
        """Merge under a rule, tune λ on validation examples, and measure on test examples."""
        merged = merge_vectors(rule, vectors.values())
        return self.tuned_under(rule, state_of(self.backbone.model), merged=merged, names=vectors)

    def tuned_under(
        self, rule: str, start: Mapping[str, Tensor], *, merged: TaskVector, names: Iterable[str]
    ) -> dict[str, Any]:
        """`tuned` on the rule's own grid of coefficients."""
        return self.tuned(start, merged, scaling_coefs=SCALING_COEFS[rule], names=names)

    def tuned(
        self,
        start: Mapping[str, Tensor],
        merged: TaskVector,
        *,
        scaling_coefs: Sequence[float],
        names: Iterable[str],
        first: float | None = None,
        known: Mapping[float, float] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """start + λ merged, for the λ with the best mean accuracy in validation, judged on test examples.

        Args:
            start: what the merged vector is added to.
            merged: the merged vector.
            scaling_coefs: what λ may be, in rising order.
            names: the tasks that count.
            first: one of them, from which the search climbs until both neighbours are no better; by default
                all are tried, and the first of the best counts.
            known: mean accuracies in validation that such a search need not measure, by coefficient.
        """
        chosen = {name: self.tasks[name] for name in names}

        def validated(coefs: Sequence[float]) -> list[float]:
            table = sweep(
                self.backbone,
                self.heads,
                chosen,
                pretrained=start,
                merged=merged,
                scaling_coefs=coefs,
                recentre=self.recentre,
                precision=self.judged_in,
            )
            return table.mean(1).tolist()

        if first is None:
            tried = dict(zip(scaling_coefs, validated(scaling_coefs), strict=True))
            best = max(tried, key=tried.__getitem__)
        else:
            best, tried = climb(lambda coef: validated([coef])[0], scaling_coefs, first=first, known=known)
        return {
            "scaling_coef": best,
            "val_mean": round(tried[best], 5),
            "test": self.scores(merged.apply_to(start, best), chosen),
        }

    def sizes(self) -> dict[str, dict[str, int]]:
        """How many examples each task trains on, under the word for them: "images" or "texts"."""
        counts = {name: len(task.part("train")[1]) for name, task in self.tasks.items()}
        return {unit_of(self.tasks.values()): counts}


def make_suite(backbone: Encoder, chosen: SuiteSettings, *, folder: Path | None, seed: int) -> Suite:
    """The tasks with heads made from the encoder as it is.

    Args:
        backbone: the pretrained encoder.
        chosen: which tasks, and how they are judged.
        folder: of the data; None for the one that the environment names.
        seed: decides the splits, and later the order in training.

    Example:
        >>> from taskvec_mini.benchmarks.encoders import load_backbone
        >>> chosen = SuiteSettings(suite="digits", tasks=("digits", "mirrored"), limit=60, recentre=0)
        >>> suite = make_suite(load_backbone("random-pocket"), chosen, folder=None, seed=0)
        >>> suite.sizes(), list(suite.scores(None, ["mirrored"]))
        ({'images': {'digits': 60, 'mirrored': 60}}, ['mirrored'])
    """
    forget_prepared_images()
    tasks = study_tasks(chosen, folder=folder, seed=seed, tokenizer=tokenizer_of(backbone))
    unit = unit_of(tasks.values())
    amount: dict[str, Any] = {f"share_of_training_{unit}": chosen.share}
    if chosen.limit is not None:
        amount = {f"training_{unit}": chosen.limit}
    left_out = {name: dict(task.left_out) for name, task in tasks.items() if getattr(task, "left_out", None)}
    return Suite(
        backbone=backbone,
        tasks=tasks,
        heads=make_heads(backbone, tasks, chosen),
        seed=seed,
        experiment=Experiment(RUNS / "-".join(filter(None, (backbone.name, chosen.runs)))).with_seed(seed),
        about={
            **amount,
            f"validation_{unit}": chosen.validation,
            **({"shots": chosen.shots} if chosen.heads == "prototypes" else {"heads": chosen.heads}),
            "recentre": chosen.recentre,
            f"test_{unit}": chosen.test,
            **{
                name: value
                for name, value in (("precision", chosen.precision), ("judged_in", chosen.judged_in))
                if value != "float32"
            },
            **({"near_duplicates_left_out": left_out} if left_out else {}),
        },
        data=data_files(tasks, suite=chosen.suite),
        test=chosen.test,
        recentre=chosen.recentre,
        precision=chosen.precision,
        judged_in=chosen.judged_in,
    )


def each_suite(
    study: Study, backbone: Encoder, chosen: SuiteSettings, *, folder: Path | None
) -> Iterator[tuple[int, Suite]]:
    """Each seed of a study with its suite, one after the other; `study.data` then names the files."""
    for seed in study.seeds:
        suite = make_suite(backbone, chosen, folder=folder, seed=seed)
        study.data = suite.data
        yield seed, suite


def make_heads(backbone: Encoder, tasks: Mapping[str, Task], chosen: SuiteSettings) -> dict[str, Head]:
    """The frozen heads of some tasks, all of one kind."""
    if chosen.heads == "prototypes":
        return {name: prototype_head(backbone, task, shots=chosen.shots) for name, task in tasks.items()}
    tower = sentence_tower(backbone.name)  # once for all tasks: it takes ten seconds
    return {name: zero_shot_head(tower, task) for name, task in tasks.items()}


def study_tasks(
    chosen: SuiteSettings, *, folder: Path | None, seed: int, tokenizer: TextTokenizer | None = None
) -> dict[str, Any]:
    """The tasks, cut to a share of their training examples and to few validation examples."""
    loaded = load_tasks(
        chosen.tasks,
        suite=chosen.suite,
        folder=folder,
        limit=chosen.limit,
        seed=seed,
        tokenizer=tokenizer,
    )
    return {
        name: first_examples(
            task, train=round(chosen.share * len(task.part("train")[1])), val=chosen.validation
        )
        for name, task in loaded.items()
    }


def first_examples(
    task: Any, *, train: int | None = None, val: int | None = None, test: int | None = None
) -> Any:
    """The task with the first examples of its parts alone; None for all of them."""
    parts = {}
    for part, count in (("train", train), ("val", val), ("test", test)):
        for what in (inputs_of(task), "labels"):
            parts[f"{part}_{what}"] = getattr(task, f"{part}_{what}")[:count]
    return replace(task, **parts)


def inputs_of(task: Task) -> str:
    """What the fields of a task's inputs are called."""
    return "tokens" if isinstance(task, TextTask) else "images"


def data_files(tasks: Mapping[str, Task], *, suite: str) -> dict[str, str]:
    """The SHA-256 of each file of the suites "bundle" and "text"; of others that of each task's data."""
    files: dict[str, str] = {}
    for name, task in tasks.items():
        if suite == "text":
            files |= file_checksums(name)
        else:
            files[f"{name}.npz" if suite == "bundle" else name] = task.sha256
    return files


# --- finetuned encoders and their merges -----------------------------------------------------------------


def individual_runs(suite: Suite, *, recipe: Settings, epochs: Sequence[int]) -> dict[str, Run]:
    """The finetuned encoder of each task at some epochs, from its folder where it is finished."""
    runs = {}
    for name, task in suite.tasks.items():
        runs[name] = finetune(
            suite.backbone,
            suite.heads[name],
            task,
            settings=replace(recipe, epochs=epochs[-1], seed=suite.seed),
            keep=_kept(epochs),
            folder=suite.experiment.run(name).path,
            speed=Speed(precision=suite.precision),
            progress=False,
        )
        say(f"{suite.backbone.name}, seed {suite.seed}: {name} finetuned")
    return runs


def joint_run(suite: Suite, *, recipe: Settings, epochs: Sequence[int]) -> Run:
    """The encoder that learnt all tasks jointly, from its folder where it is finished."""
    return finetune_jointly(
        suite.backbone,
        suite.heads,
        suite.tasks,
        settings=replace(recipe, epochs=epochs[-1], seed=suite.seed),
        keep=_kept(epochs),
        folder=suite.experiment.joint().path,
        speed=Speed(precision=suite.precision),
        progress=False,
    )


def _kept(epochs: Sequence[int]) -> list[int]:
    """These epochs, and the earlier ones that another study of the same encoders asks for."""
    return sorted({*epochs, *(epoch for epoch in EPOCHS if epoch <= epochs[-1])})


def merge_vectors(rule: str, vectors: Iterable[TaskVector]) -> TaskVector:
    """Merged under a rule with the options of the studies; what it draws at random is always the same."""
    options = dict(OPTIONS.get(rule, {}))
    if merging.RULES[rule].draws:
        options["generator"] = torch.Generator().manual_seed(0)
    return merging.RULES[rule].function(list(vectors), **options)


def grid(suite: Suite, epoch: int, *, merged: TaskVector, base: Mapping[str, float]) -> list[dict[str, Any]]:
    """Test accuracies over scaling coefficients of a merge, for a slider; `base` are those of the start."""
    start = state_of(suite.backbone.model)
    rows = []
    for coef in GRID_COEFS:
        test = suite.scores(merged.apply_to(start, coef), base) if coef else dict(base)
        rows.append({"seed": suite.seed, "epoch": epoch, "scaling_coef": coef, "test": test})
    return rows


def cross(
    suite: Suite, vectors: Iterable[tuple[str, TaskVector]], *, base: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Interference: what half of each task's vector, by itself, does to every task's test accuracy."""
    start = state_of(suite.backbone.model)
    rows = {}
    for name, vector in vectors:
        found = suite.scores(vector.apply_to(start, 0.5), base)
        rows[name] = {other: round(found[other] - base[other], 5) for other in found}
    return rows


# --- what a record says ----------------------------------------------------------------------------------


def suite_record(
    suite: Suite, *, recipe: Settings, epochs: int, rules: Iterable[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings and data of a study of merging, as its record holds them."""
    settings = {
        "backbone": suite.backbone.name,
        **suite.about,
        "recipes": {"adamw": asdict(replace(recipe, epochs=epochs))},
        "scaling_coefs": {rule: list(SCALING_COEFS[rule]) for rule in rules},
    }
    return settings, suite.data


def rounded(values: Tensor, *, digits: int = 6) -> Any:
    """Numbers as lists, rounded to what a record needs.

    Example:
        >>> rounded(torch.tensor([[1 / 3, 2.0]]), digits=2)
        [[0.33, 2.0]]
    """
    return values.double().mul(10**digits).round().div(10**digits).tolist()


def say(line: str) -> None:
    """A line of progress on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
