"""What each command is asked for: one frozen dataclass a command, from which its options are made.

A field is an option, and its default the default. Its metadata hold the `help`, and may hold `metavar`,
`choices`, `nargs`, `action`, and `recorded: False` where it is about one machine. A field without a default
is a word without `--`. A field that holds another dataclass is a group of options, with the fields of that
class. The docstring is what `--help` says. The commands are functions of these, for use from Python too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from taskvec_mini.benchmarks.data import SUITES
from taskvec_mini.benchmarks.data.obtain import GITHUB
from taskvec_mini.benchmarks.engines import EngineOptions
from taskvec_mini.benchmarks.heads import KINDS
from taskvec_mini.benchmarks.studies.clip import ClipRequest
from taskvec_mini.benchmarks.training import Settings, Speed
from taskvec_mini.errors import UserError

SCALING_COEFS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
_DATA = {
    "help": "folder of the data (default: the environment variable TASKVEC_MINI_DATA)",
    "metavar": "FOLDER",
    "recorded": False,
}
_DEVICE = {"help": "cpu, cuda ... (default: cuda where there is one, else cpu)"}
_SPEED = {"help": "speed; with another rounding a run is another run"}


@dataclass(frozen=True, kw_only=True)
class ListRequest:
    """Show suites, tasks, backbones, merging rules and studies."""

    data: Path | None = field(default=None, metadata=_DATA)


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """Make the data of the recorded studies from public sources.

    examples:
      python -m taskvec_mini.benchmarks data --list
      python -m taskvec_mini.benchmarks data --tasks scenes15 sst2 trec6 --out FOLDER
      python -m taskvec_mini.benchmarks data --out FOLDER

    The files of the suites bundle, large and text do not come with the library. This fetches the sources at
    the commits that were used, all together about 1.1 GB, cuts the same rows from them, and holds the result
    to its checksums. A call that was stopped is taken up again by the same call: a file goes on where it
    broke off if the server can do that, and GitHub packs the archives of images anew for every call, so of
    these one is fetched whole or again. What was fetched is deleted when its task is done. An archive that
    you have from elsewhere can be put into the folder `sources` of --out, under the name that is asked for.

    For most of these data sets the source names no licence; --list says what is known. They are for your own
    study, not for passing on.
    """

    tasks: tuple[str, ...] | None = field(
        default=None, metadata={"help": "their names; see --list (default: all)", "metavar": "TASK"}
    )
    out: Path = field(
        default=Path("local/data"),
        metadata={"help": "folder of the data, made if need be", "metavar": "FOLDER"},
    )
    list: bool = field(default=False, metadata={"help": "show the tasks, their sources and what is there"})
    keep: bool = field(default=False, metadata={"help": "keep what was fetched, in the folder `sources`"})
    address: str = field(
        default=GITHUB, metadata={"help": "GitHub, or a mirror with the same paths", "metavar": "URL"}
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest:
    """Finetune an encoder on each of some tasks.

    examples:
      python -m taskvec_mini.benchmarks finetune
      python -m taskvec_mini.benchmarks finetune --tasks digits mirrored --epochs 3 --out local/digits
      python -m taskvec_mini.benchmarks finetune --suite bundle --tasks mnist gtsrb --data FOLDER
      python -m taskvec_mini.benchmarks finetune --suite text --tasks sst2 trec6 --out local/texts
      python -m taskvec_mini.benchmarks finetune --suite folder --data MYIMAGES --backbone efficientnet-lite0
      python -m taskvec_mini.benchmarks finetune --suite csv --data MYTEXTS --backbone minilm
      python -m taskvec_mini.benchmarks finetune --suite hub --backbone ViT-B-32-quickgelu --data FOLDER
      python -m taskvec_mini.benchmarks finetune --epochs 10 --schedule cosine --clip-norm 1 --out local/long
      python -m taskvec_mini.benchmarks finetune --engine ray --address 10.0.0.1:6379 --out /shared/runs

    The first line needs no data and takes seconds: small real digits, in seven views. The other suites need
    theirs; `list` says where it was found, or how to get it. Suites folder and csv take data of your own: one
    folder a task, with a folder of images for each class (or train and test with such folders); or NAME.csv
    (or NAME.train.csv and NAME.test.csv) with the columns text and label.

    Each task gets a folder under --out, with a checkpoint for each epoch. Only the encoder is trained; the
    head (--heads) is made first, under the pretrained encoder, and stays frozen. A run that was stopped, at
    any moment, is taken up again by the same command and ends in the same weights. Other settings need
    another --out. With --engine ray all machines must see --out and --data under the same paths; set
    OMP_NUM_THREADS, and every worker has so many threads and takes so many CPUs, or one GPU where there are
    any.
    """

    suite: str = field(
        default="digits",
        metadata={
            "help": "; ".join(f"{name}: {suite.description}" for name, suite in SUITES.items()),
            "choices": tuple(SUITES),
        },
    )
    backbone: str | None = field(
        default=None,
        metadata={
            "help": "the encoder; see `list` (default: pocket, for texts pocket-text)",
            "metavar": "NAME",
        },
    )
    heads: str | None = field(
        default=None,
        metadata={
            "help": "what turns embeddings into classes, and stays frozen; zero-shot: CLIP's own, from "
            "texts about the classes; prototypes: the mean training image, or text, of each class (default: "
            "zero-shot for CLIP, prototypes for all other encoders)",
            "choices": KINDS,
        },
    )
    tasks: tuple[str, ...] | None = field(
        default=None,
        metadata={
            "help": "their names (default: all of the suite; of bundle, hub and the texts the first eight)",
            "metavar": "TASK",
        },
    )
    out: Path = field(
        default=Path("local/runs"),
        metadata={"help": "folder of the runs, made if need be", "metavar": "FOLDER"},
    )
    data: Path | None = field(default=None, metadata=_DATA)
    device: str | None = field(default=None, metadata=_DEVICE)
    limit: int | None = field(
        default=None, metadata={"help": "at most N training images, or texts, of each task"}
    )
    settings: Settings = field(
        default_factory=Settings,
        metadata={"help": "settings of finetuning; the seed is that of the splits too"},
    )
    speed: Speed = field(default_factory=Speed, metadata=_SPEED)
    engine: EngineOptions = field(default_factory=EngineOptions, metadata={"help": "where it runs"})


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
    """Merge the task vectors of some runs into one.

    examples:
      python -m taskvec_mini.benchmarks merge
      python -m taskvec_mini.benchmarks merge --tasks digits mirrored --epoch 1
      python -m taskvec_mini.benchmarks merge --rule ties --option density=0.3 --out local/ties.safetensors

    The file holds one task vector; taskvec_mini.TaskVector.load(path) reads it. It is not scaled: `evaluate`
    chooses the scaling coefficient. `list` shows the rules with their options.
    """

    runs: Path = field(
        default=Path("local/runs"), metadata={"help": "folder that `finetune` wrote", "metavar": "FOLDER"}
    )
    tasks: tuple[str, ...] | None = field(
        default=None, metadata={"help": "their names (default: all that have runs)", "metavar": "TASK"}
    )
    epoch: int | None = field(
        default=None,
        metadata={"help": "the epoch whose weights are merged (default: the last that all tasks have)"},
    )
    rule: str = field(default="task_arithmetic", metadata={"help": "see `list`", "metavar": "NAME"})
    option: tuple[str, ...] = field(
        default=(),
        metadata={"help": "of the rule; may be repeated", "metavar": "NAME=VALUE", "action": "extend"},
    )
    seed: int = field(default=0, metadata={"help": "for rules that draw at random"})
    out: Path = field(
        default=Path("local/merged.safetensors"),
        metadata={"help": "where the merged task vector goes", "metavar": "FILE"},
    )
    data: Path | None = field(default=None, metadata=_DATA)


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Measure a merged task vector on its tasks.

    examples:
      python -m taskvec_mini.benchmarks evaluate --tune
      python -m taskvec_mini.benchmarks evaluate --vector local/ties.safetensors --scaling-coef 0.3

    The table has a row for each task: the accuracy of the pretrained encoder (zero-shot), of the one
    finetuned on this task (individual), of the merged one, and merged / individual (normalised). The file
    knows which runs and which epoch it is made of: the tasks and the specialists are those, and a task or a
    run that it is not made of is refused. --tune tries
    a range of scaling coefficients and keeps the best mean accuracy on the validation part; the test part
    decides nothing. One of --tune and --scaling-coef has to be given; both together are refused.
    """

    runs: Path = field(
        default=Path("local/runs"), metadata={"help": "folder that `finetune` wrote", "metavar": "FOLDER"}
    )
    vector: Path = field(
        default=Path("local/merged.safetensors"),
        metadata={"help": "the file that `merge` wrote", "metavar": "FILE"},
    )
    scaling_coef: float | None = field(default=None, metadata={"help": "how much of the vector is added"})
    tune: tuple[float, ...] | None = field(
        default=None,
        metadata={
            "help": "find that on the validation part: the best of these or, without numbers, of "
            f"{len(SCALING_COEFS)} from {SCALING_COEFS[0]} to {SCALING_COEFS[-1]:g}",
            "nargs": "*",
        },
    )
    tasks: tuple[str, ...] | None = field(
        default=None, metadata={"help": "their names (default: all that are merged)", "metavar": "TASK"}
    )
    epoch: int | None = field(
        default=None,
        metadata={
            "help": "the epoch of the individually finetuned encoders beside it (default: that of the merge)"
        },
    )
    split: Literal["test", "val"] = field(
        default="test", metadata={"help": "the part that the table is about"}
    )
    recentre: int = field(
        default=0,
        metadata={
            "help": "centre the heads anew on N training images, or texts, without labels (default: 0, "
            "frozen heads)"
        },
    )
    data: Path | None = field(default=None, metadata=_DATA)
    device: str | None = field(default=None, metadata=_DEVICE)

    def __post_init__(self) -> None:
        if (self.scaling_coef is None) == (self.tune is None):
            raise UserError(
                "give either --scaling-coef X, how much of the vector is added, or --tune, which finds that"
            )


@dataclass(frozen=True, kw_only=True)
class RecordRequest:
    """Run a study of the book and record it.

    examples:
      python -m taskvec_mini.benchmarks list
      python -m taskvec_mini.benchmarks record STUDY
      python -m taskvec_mini.benchmarks record clip --backbone tiny-clip --suite digits --budget-minutes 1 --out clip.json
      python -m taskvec_mini.benchmarks record clip --budget-minutes 60 --gpu --data images --runs drive/MyDrive/clip
      python -m taskvec_mini.benchmarks record clip --gpu --engine ray --address 10.0.0.1:6379 --data /shared --runs /shared/clip

    A study is a long experiment behind a chapter. Its record is one JSON file with the results and all that
    is needed to make them again: this command, the commit, versions, seeds, seconds, checksums of the data.

    The study `clip` trains first one epoch of every task, then a second one, and so on within its budget. It
    downloads the images of suite `hub` into --data; the first `clip` line above downloads nothing. With
    --engine ray the epochs of a round are spread over the workers of a cluster, and every machine must see
    --runs and --data under the same paths.
    """  # noqa: E501 (a command is one line)

    study: str = field(metadata={"help": "its name; see `list`", "metavar": "STUDY"})
    out: Path | None = field(
        default=None,
        metadata={
            "help": "the record (default: book/recorded/STUDY.json)",
            "metavar": "FILE",
            "recorded": False,
        },
    )
    data: Path | None = field(default=None, metadata=_DATA)
    clip: ClipRequest = field(
        default_factory=ClipRequest, metadata={"help": "options of the study `clip` alone"}
    )


@dataclass(frozen=True, kw_only=True)
class ThroughputRequest:
    """Measure how fast finetuning is on this machine.

    examples:
      python -m taskvec_mini.benchmarks throughput
      python -m taskvec_mini.benchmarks throughput --backbone ViT-B-32-quickgelu --images 256 --batch-size 64
      python -m taskvec_mini.benchmarks throughput --backbone ViT-L-14-quickgelu --device cuda --compile

    Finetunes on images of noise, in turn with a plain float32 loop over a DataLoader that opens every image
    by itself, and prints images a second of both and the share of the device's peak that the encoder's
    arithmetic takes. Nothing is downloaded: the weights are random.
    """

    backbone: str = field(
        default="pocket", metadata={"help": "pocket, tiny-clip, ViT-B-32-quickgelu ..., with random weights"}
    )
    images: int = field(default=256, metadata={"help": "images of noise in a pass"})
    batch_size: int = field(default=64, metadata={"help": "images in a step"})
    passes: int = field(
        default=3, metadata={"help": "passes over the images that count, after one that does not"}
    )
    workers: int | None = field(
        default=None,
        metadata={
            "help": "processes of the plain loop's DataLoader (default: up to 8, one a CPU, with a GPU; "
            "else 0)"
        },
    )
    out: Path | None = field(
        default=None,
        metadata={"help": "write a record there (default: none)", "metavar": "FILE", "recorded": False},
    )
    speed: Speed = field(default_factory=Speed, metadata=_SPEED)
    device: str | None = field(default=None, metadata=_DEVICE)


Request = (
    ListRequest
    | DataRequest
    | FinetuneRequest
    | MergeRequest
    | EvaluateRequest
    | RecordRequest
    | ThroughputRequest
)
