"""The error messages quoted on the page `troubleshooting` are those that the library gives, word for word."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch

from small_encoder import tiny_backbone, tiny_run, tiny_task
from taskvec_mini import records
from taskvec_mini.benchmarks.cli.record import check_place
from taskvec_mini.benchmarks.data import (
    DATA_VARIABLE,
    SUITES,
    hub,
    load_tasks,
    load_tokenizer,
    torchvision_sets,
)
from taskvec_mini.benchmarks.encoders import clip, load_backbone
from taskvec_mini.benchmarks.engines import ray as ray_engine
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.benchmarks.studies.clip import CONVERGED, MeasuredSpeed, Plan, plan
from taskvec_mini.benchmarks.studies.clip import rounds as clip_rounds
from taskvec_mini.benchmarks.studies.clip import study as clip_study
from taskvec_mini.benchmarks.training import Experiment, RunFolder, Settings, memory
from taskvec_mini.bounds import network_bounds
from taskvec_mini.descent import finetune, gradient_descent
from taskvec_mini.errors import UserError
from taskvec_mini.networks import MLP, flat_loss, flatten
from taskvec_mini.tasks import choose, digit_tasks
from taskvec_mini.vectors import TaskVector

PAGE = Path(__file__).resolve().parents[1] / "book" / "troubleshooting.md"
START = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
BOWL = lambda theta: theta.square().sum() / 2  # noqa: E731
STEPS = {"learning_rate": 0.1, "epochs": 1}


def quoted() -> list[str]:
    """The messages on the page: the fenced blocks marked `text`, each joined to one line."""
    blocks = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [" ".join(block.split()) for block in blocks]


def between(finetuned: dict[str, torch.Tensor]) -> TaskVector:
    return TaskVector.between(START, {**START, **finetuned})


def mini_batches(**changes: object) -> torch.Tensor:
    model = MLP((2, 3), generator=torch.Generator().manual_seed(0))
    loss = flat_loss(model, torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))
    settings = {**STEPS, "batch_size": 2, "generator": torch.Generator().manual_seed(0), **changes}
    return finetune(loss, flatten(model), **settings)


def load(folder: Path, content: bytes | dict[str, torch.Tensor] | TaskVector) -> TaskVector:
    """What `load` makes of a file `saved.safetensors` with this content; a vector is saved and cut short."""
    path = folder / "saved.safetensors"
    if isinstance(content, TaskVector):
        content.save(path)
        content = path.read_bytes()[:-4]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return TaskVector.load(path)


def small_labels() -> object:
    return flat_loss(MLP((2, 3)), torch.zeros(4, 2), torch.tensor([0, 1, 2, 3]))


def bundle(folder: Path, content: bytes | None = None) -> object:
    """What `load_tasks` makes of a folder where `mnist.npz` has this content, or is missing."""
    if content is not None:
        (folder / "mnist.npz").write_bytes(content)
    return load_tasks(["mnist"], folder=folder)


def no_network(*_: object, **__: object) -> object:
    raise URLError("[Errno -2] Name or service not known")


def weights_without_network() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
        return load_backbone("resnet18")


def images_without_network(folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision_sets, "_torchvision", lambda _: SimpleNamespace(MNIST=no_network))
        return load_tasks(["mnist"], suite="torchvision", folder=folder / "data")


def experiment(folder: Path, backbone: str) -> Experiment:
    shared = {"suite": "bundle", "backbone": backbone, "heads": "prototypes", "limit": None, "seed": 0}
    found = Experiment.prepare(folder / "local" / "runs", shared)
    found.create()
    return found


def run_folder(folder: Path, learning_rate: float) -> object:
    return tiny_run(folder=folder / "local" / "runs" / "mnist", epochs=1, learning_rate=learning_rate)


def cut_checkpoint(folder: Path) -> object:
    run = RunFolder(folder / "local" / "runs" / "mnist")
    tiny_run(folder=run.path)
    path = run.checkpoint(3)
    path.write_bytes(path.read_bytes()[:-4])
    return run.state(3)


def damaged_experiment(folder: Path) -> object:
    path = folder / "local" / "runs" / "experiment.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    return Experiment.open(path.parent)


def damaged_epoch(folder: Path) -> object:
    run = RunFolder(folder / "local" / "runs" / "mnist")
    tiny_run(folder=run.path)
    run.record(1).write_text("")
    return run.read_record(1)


def no_place(folder: Path) -> None:
    (folder / "results").touch()
    check_place(folder / "results" / "clip.json")


# --- CLIP ------------------------------------------------------------------------------------------------


class ConnectError(Exception):
    """As the network library of huggingface_hub has it."""


NO_NETWORK = ConnectError("[Errno -2] Name or service not known")
REVISION = "5a1c0ffee0"


def without_gpu() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return clip_study.device_and_speed(gpu=True)


def without_memory(most: int) -> object:
    """The estimate of a run on a GPU that bears so many images at a time."""
    measured = SimpleNamespace(free=lambda: 14_200_000_000, peak=lambda call: call())
    settings = Settings(learning_rate=1e-5, epochs=1)
    return memory.estimate(
        tiny_backbone().model, [], settings=settings, images=128, device=torch.device("cuda"),
        probe=lambda images: None if images > most else 0, measured=measured,
    )  # fmt: skip


def memory_ends() -> object:
    def hungry(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    return tiny_run(task=tiny_task("mnist"), extra_loss=hungry, batch_size=128)


def clip_without_network() -> object:
    package = pytest.importorskip("huggingface_hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "try_to_load_from_cache", lambda *_, **__: None)
        patch.setattr(package, "get_hf_file_metadata", raising(NO_NETWORK))
        return clip.load_clip("ViT-B-32-quickgelu")


def damaged_weights(folder: Path) -> object:
    (folder / "clip.safetensors").write_bytes(b"cut short")
    return clip.load_clip("ViT-B-32-quickgelu", weights=folder / "clip.safetensors")


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> object:
        raise error

    return call


def hub_refuses(folder: Path, kind: str) -> object:
    """What becomes of an error of huggingface_hub (or of the network) when the data set is asked for."""
    package = pytest.importorskip("huggingface_hub")
    refusal = getattr(importlib.import_module("huggingface_hub.errors"), kind, None)
    error = NO_NETWORK if refusal is None else refusal.__new__(refusal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package.HfApi, "dataset_info", raising(error))
        return load_tasks(["dtd"], suite="hub", folder=folder / "data")


def hub_has(name: str, *files: str) -> object:
    package = pytest.importorskip("huggingface_hub")
    siblings = [SimpleNamespace(rfilename=file, size=1) for file in files]
    info = SimpleNamespace(siblings=siblings, sha=REVISION, gated=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package.HfApi, "dataset_info", lambda *_, **__: info)
        return hub.ask(name)


def hub_gives(folder: Path, answer: object, *, free: int = 10**12) -> object:
    """What becomes of the files of MNIST: an error on their way, or parts that are not the known ones."""
    listing = hub.Listing("mnist", hub.sources()["mnist"], REVISION, {}, 18_000_000)
    config = SimpleNamespace(HF_DATASETS_CACHE=folder / "cache")
    fetched = raising(answer) if isinstance(answer, Exception) else lambda *_, **__: answer
    library = SimpleNamespace(config=config, load_dataset=fetched)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "ask", lambda *_: listing)
        patch.setattr(hub, "_extra", lambda _: library)
        patch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        return load_tasks(["mnist"], suite="hub", folder=folder / "data")


class Rows(dict):  # type: ignore[type-arg]
    """One part of a data set, as far as its labels are asked for."""

    def __init__(self, count: int):
        super().__init__(label=[row % 10 for row in range(count)])
        self.features = {"image": None, "label": SimpleNamespace(names=[str(digit) for digit in range(10)])}


def damaged_images(folder: Path) -> object:
    place = folder / "data" / "hub" / "dtd_224"
    place.mkdir(parents=True)
    (place / "images.npy").write_bytes(b"cut short")
    sums = {file: hashlib.sha256(b"whole").hexdigest() for file in ("images.npy", "rows.npz")}
    (place / "about.json").write_text(json.dumps({"sha256": sums, "class_names": []}))
    return load_tasks(["dtd"], suite="hub", folder=folder / "data")


def small_disk(folder: Path) -> object:
    tower = clip.without_weights("ViT-B-32-quickgelu").get_submodule("visual")
    most = {name: CONVERGED[name] for name in SUITES["hub"].default_tasks}
    eight: Any = SimpleNamespace(images=most, most=most, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_study.shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000_000))
        return clip_study.check_disk(Experiment(folder / "clip-runs"), tower, plan=eight)


def planned(minutes: float) -> Plan:
    images = {"dtd": 3_384, "cars": 7_330, "sun397": 17_865}
    measured = MeasuredSpeed(training=10.0, evaluation=30.0, memory="")
    most = dict.fromkeys(images, 9)
    return plan(images, measured=measured, seconds=60.0 * minutes, evaluated=20_000, most=most, done={})


def spent_budget(folder: Path) -> object:
    nothing: Any = {"speed": None, "engine": None, "load_encoder": None, "loads": {}}
    return clip_rounds.PlannedTraining(
        plan=planned(60),
        experiment=Experiment(folder / "clip-runs"),
        deadline=0.0,
        clock=lambda: 1.0,
        **nothing,
    ).run()


def without_package(name: str, call: Callable[[], object]) -> object:
    """A call where the import of a package fails, as Python words it."""

    def missing(module: str, *rest: Any) -> object:
        if module.partition(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return found(module, *rest)

    found = importlib.import_module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib, "import_module", missing)
        patch.setitem(sys.modules, name, None)  # for what is imported by a statement
        return call()


def two_processes(folder: Path) -> None:
    run = RunFolder(folder / "mnist")
    with run.lock(), run.lock():
        pass


BAD_CALLS: dict[str, Callable[[Path], object]] = {
    "keys": lambda _: TaskVector.between(START, {"weight": torch.zeros(2, 3), "scale": torch.zeros(2)}),
    "shapes": lambda _: between({"bias": torch.zeros(3)}),
    "dtypes": lambda _: between({"bias": torch.zeros(2, dtype=torch.float64)}),
    "integers": lambda _: TaskVector.between(
        {**START, "steps": torch.tensor(1)}, {**START, "steps": torch.tensor(2)}
    ),
    "tied weights": lambda _: TaskVector.between(
        {"wte": torch.zeros(2), "head": torch.zeros(2)}, dict.fromkeys(("wte", "head"), torch.ones(2))
    ),
    "two processes": two_processes,
    "not finite": lambda _: between({"bias": torch.tensor([0.0, float("nan")])}),
    "pickle": lambda folder: load(folder, START),
    "cut short": lambda folder: load(folder, TaskVector.between(START, START)),
    "diverged": lambda _: gradient_descent(BOWL, torch.ones(1), learning_rate=1e30, epochs=100),
    "learning rate": lambda _: gradient_descent(BOWL, torch.ones(1), learning_rate=0, epochs=1),
    "epochs": lambda _: gradient_descent(BOWL, torch.ones(1), learning_rate=0.1, epochs=0),
    "whole epochs": lambda _: gradient_descent(BOWL, torch.ones(1), learning_rate=0.1, epochs=2.5),
    "batch size": lambda _: mini_batches(batch_size=8),
    "no examples": lambda _: finetune(
        BOWL, torch.ones(1), **STEPS, batch_size=1, generator=torch.Generator()
    ),
    "optimiser": lambda _: mini_batches(optimizer="adamW"),
    "option": lambda _: mini_batches(optimizer="sgd", weight_decy=0.1),
    "activation": lambda _: MLP((2, 3), activation="than"),
    "task": lambda _: choose(digit_tasks(), "digit"),
    "labels": lambda _: small_labels(),
    "not flat": lambda _: gradient_descent(BOWL, torch.ones(2, 2), **STEPS),
    "kink": lambda _: network_bounds(MLP((2, 3, 2), activation="relu"), torch.zeros(1, 2)).hessian,
    "no data folder": lambda _: load_tasks(),
    "no such folder": lambda folder: load_tasks(folder=folder / "data"),
    "no data file": lambda folder: bundle(folder),
    "data cut short": lambda folder: bundle(folder, b"cut short"),
    "no mobilenet": lambda _: load_backbone("mobilenet"),
    "no pocket": lambda folder: load_backbone("pocket", weights=folder / "pocket.safetensors"),
    "no network, weights": lambda _: weights_without_network(),
    "no network, images": images_without_network,
    "other runs": lambda folder: experiment(folder, "pocket") and experiment(folder, "mobilenet"),
    "other settings": lambda folder: [run_folder(folder, rate) for rate in (1e-4, 3e-4)],
    "no runs": lambda folder: Experiment.open(folder / "local" / "runs"),
    "experiment damaged": damaged_experiment,
    "epoch damaged": damaged_epoch,
    "no place": no_place,
    "checkpoint cut short": cut_checkpoint,
    "encoder diverged": lambda _: tiny_run(task=tiny_task("mnist"), optimizer="sgd", learning_rate=1e38),
    "class without image": lambda _: prototype_head(
        tiny_backbone(), load_tasks(["digits"], suite="digits", limit=5)["digits"]
    ),
    "no record": lambda folder: records.read(folder / "06_search.json"),
    "no GPU": lambda _: without_gpu(),
    "no memory, fewer": lambda _: without_memory(40),
    "no memory, none": lambda _: without_memory(0),
    "memory ends": lambda _: memory_ends(),
    "no network, CLIP": lambda _: clip_without_network(),
    "CLIP cut short": damaged_weights,
    "GELU": lambda _: clip.load_clip("ViT-B-32"),
    "no network, hub": lambda folder: hub_refuses(folder, "no network"),
    "gated": lambda folder: hub_refuses(folder, "GatedRepoError"),
    "moved": lambda folder: hub_refuses(folder, "RepositoryNotFoundError"),
    "other files": lambda _: hub_has("dtd", "README.md", "train.zip"),
    "other counts": lambda folder: hub_gives(folder, {"train": Rows(59_000), "test": Rows(10_000)}),
    "breaks off": lambda folder: hub_gives(folder, NO_NETWORK),
    "small disk, hub": lambda folder: hub_gives(folder, {}, free=100_000_000),
    "full disk, hub": lambda folder: hub_gives(folder, OSError(errno.ENOSPC, "No space left on device")),
    "images cut short": damaged_images,
    "small disk, runs": small_disk,
    "small budget": lambda _: planned(10),
    "spent budget": spent_budget,
    "no open_clip": lambda _: without_package("open_clip", clip.tiny_clip),
    "no datasets": lambda _: without_package("datasets", lambda: hub.load(["mnist"], ".")),
    "no Ray": lambda _: without_package("ray", ray_engine.load_ray),
    "no tokenizers": lambda _: without_package("tokenizers", load_tokenizer),
    "no direction": lambda _: TaskVector.between(START, START).cosine(TaskVector.between(START, START)),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_message_is_quoted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(UserError) as caught:
        BAD_CALLS[name](tmp_path)
    message = str(caught.value).replace(f"{tmp_path}/", "").replace(f"{tmp_path}\\", "")
    assert f"{caught.type.__name__}: {message}" in quoted()


def test_nothing_else_is_quoted() -> None:
    assert len(quoted()) == len(set(quoted())) == len(BAD_CALLS)
