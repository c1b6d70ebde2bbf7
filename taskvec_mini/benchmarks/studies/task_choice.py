"""What enters the studies of a good start, decided before any merge is looked at: the tasks, and the rate.

The plan was that a task enters if one epoch beats a linear probe on the frozen start by `MARGIN`. Of the
texts one task in ten does, so there the tasks enter that gain as much on the start itself (`gaining`). For
images the size and the movement of the heads' centres are searched first, by what specialists reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

from taskvec_mini.benchmarks.data import SUITES
from taskvec_mini.benchmarks.encoders import load_backbone
from taskvec_mini.benchmarks.evaluation import accuracies
from taskvec_mini.benchmarks.heads import linear_probe
from taskvec_mini.benchmarks.studies.base import (
    Study,
    StudyRequest,
    Suite,
    SuiteSettings,
    first_examples,
    make_suite,
    say,
)
from taskvec_mini.benchmarks.training import Settings, Speed, finetune

MARGIN = 0.05  # by which finetuning has to beat a linear probe on the frozen start, on validation examples
JUDGED = SuiteSettings(limit=2000, validation=200, test=400, shots=None, judged_in="bfloat16")
TEXT_SUITE = replace(JUDGED, suite="text", tasks=SUITES["text"].tasks, recentre=0, precision="bfloat16")
TEXT_TASKS = (
    "trec6",
    "cola",
    "agnews",
    "banking77",
    "clinc10",
    "sms_spam",
    "emotion",
)  # `gaining` in the record
IMAGE_SUITE = replace(JUDGED, suite="large", tasks=SUITES["large"].tasks)
IMAGE_TASKS = SUITES["large"].tasks  # `gaining` in the record: all ten, and four beat their probe
IMAGE_RATE = 3e-4  # the best of that record
IMAGE_EPOCH = Settings(learning_rate=1e-4, epochs=1, batch_size=32, centre="batch")
TEXT_EPOCH = Settings(learning_rate=5e-5, epochs=1, batch_size=16, clip_norm=1.0)


@dataclass(eq=False)
class TaskChoice(Study):
    """Each task by itself: the start, a linear probe on it, and finetuning at some rates.

    A task enters the study of merging if one epoch of finetuning beats the probe by at least `MARGIN` on
    validation examples, at the rate with the best mean over all tasks. Nothing is merged here, and no
    accuracy on test examples plays a part.

    Attributes:
        description: what it measures.
        backbone: the name of the encoder.
        image_size: the side of its images in pixels; None for its own.
        tasks: which tasks, and how much of them.
        recipe: of finetuning, but for the rate.
        rates: the learning rates.
    """

    description: str
    backbone: str = "minilm"
    image_size: int | None = None
    tasks: SuiteSettings = TEXT_SUITE
    recipe: Settings = TEXT_EPOCH
    rates: Sequence[float] = (2e-5, 5e-5, 1e-4)
    seeds: tuple[int, ...] = (0,)

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """Every task at every rate."""
        backbone = load_backbone(self.backbone, image_size=self.image_size, folder=request.data)
        suite = make_suite(backbone, self.tasks, folder=request.data, seed=self.seeds[0])
        self.data = suite.data
        size = {} if self.image_size is None else {"image_size": self.image_size}
        self.settings = {
            "backbone": self.backbone,
            **size,
            **suite.about,
            "recipe": asdict(self.recipe),
            "rates": list(self.rates),
            "margin": MARGIN,
        }
        rows = []
        for name, task in suite.tasks.items():
            head = suite.heads[name]
            row: dict[str, Any] = {
                "task": name,
                "start": _validated(suite, name, None),
                "probe": round(linear_probe(backbone, first_examples(task, test=1)).val_accuracy, 5),
                "individual": {},
            }
            for rate in self.rates:
                run = finetune(
                    backbone,
                    head,
                    task,
                    settings=replace(self.recipe, learning_rate=rate, seed=suite.seed),
                    speed=Speed(precision=suite.precision),
                    progress=False,
                )
                row["individual"][f"{rate:g}"] = _validated(suite, name, run.state())
            say(f"{name}: {row}")
            rows.append(row)
        best = max(
            (f"{rate:g}" for rate in self.rates),
            key=lambda rate: mean(row["individual"][rate] for row in rows),
        )
        return {
            "rows": rows,
            "rate": float(best),
            "tasks": [row["task"] for row in rows if row["individual"][best] >= row["probe"] + MARGIN],
        }


def gaining(rows: Sequence[Mapping[str, Any]], *, rate: float) -> list[str]:
    """The tasks in which one epoch of finetuning gains at least `MARGIN` on the start itself.

    A pretrained encoder may hold most of a task already, so that a linear probe reaches what finetuning does
    (of the texts, nine tasks in ten). A merge can still keep or lose what finetuning changed.

    Args:
        rows: of a `TaskChoice`.
        rate: the learning rate of the finetuning.
    """
    return [row["task"] for row in rows if round(row["individual"][f"{rate:g}"] - row["start"], 5) >= MARGIN]


def validated(suite: Suite, names: Iterable[str], parameters: Any = None) -> dict[str, float]:
    """Accuracy in validation of each named task under some parameters; None for the pretrained ones."""
    return accuracies(
        suite.backbone,
        suite.heads,
        {name: suite.tasks[name] for name in names},
        parameters=parameters,
        split="val",
        recentre=suite.recentre,
        precision=suite.judged_in,
    )


def _validated(suite: Suite, name: str, parameters: Any) -> float:
    return round(validated(suite, [name], parameters)[name], 5)
