"""The error messages quoted on the page `troubleshooting` are those that the library gives, word for word."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch

from small_encoder import tiny_backbone, tiny_run, tiny_task
from taskvec_mini import records
from taskvec_mini.benchmarks import backbones, checkpoints, downloads
from taskvec_mini.benchmarks._cli_shelf import Shelf
from taskvec_mini.benchmarks.datasets import FOLDER_VARIABLE, load_tasks
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.bounds import network_bounds
from taskvec_mini.descent import finetune, gradient_descent
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
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    return backbones._downloaded("resnet18", SimpleNamespace(url=url, get_state_dict=no_network))


def images_without_network(folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads, "_torchvision", lambda _: SimpleNamespace(MNIST=no_network))
        return load_tasks(["mnist"], suite="torchvision", folder=folder / "data")


def shelf(folder: Path, backbone: str) -> Shelf:
    found = Shelf.for_runs(folder / "local" / "runs", {"suite": "bundle", "backbone": backbone})
    found.make()
    return found


def run_folder(folder: Path, learning_rate: float) -> object:
    identity = {"settings": {"learning_rate": learning_rate}}
    return checkpoints.RunFolder(folder / "local" / "runs" / "mnist", identity, ignore=frozenset())


def cut_checkpoint(folder: Path) -> object:
    path = folder / "local" / "runs" / "mnist" / "epoch_003.safetensors"
    path.parent.mkdir(parents=True)
    checkpoints.write_tensors(path, START, {"epoch": 3})
    path.write_bytes(path.read_bytes()[:-4])
    return checkpoints.read_tensors(path)


BAD_CALLS: dict[str, Callable[[Path], object]] = {
    "keys": lambda _: TaskVector.between(START, {"weight": torch.zeros(2, 3), "scale": torch.zeros(2)}),
    "shapes": lambda _: between({"bias": torch.zeros(3)}),
    "dtypes": lambda _: between({"bias": torch.zeros(2, dtype=torch.float64)}),
    "integers": lambda _: TaskVector.between(
        {**START, "steps": torch.tensor(1)}, {**START, "steps": torch.tensor(2)}
    ),
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
    "no mobilenet": lambda _: backbones.load_backbone("mobilenet"),
    "no pocket": lambda folder: backbones.load_backbone("pocket", weights=folder / "pocket.safetensors"),
    "no network, weights": lambda _: weights_without_network(),
    "no network, images": images_without_network,
    "other runs": lambda folder: shelf(folder, "pocket") and shelf(folder, "mobilenet"),
    "other settings": lambda folder: [run_folder(folder, rate) for rate in (1e-4, 3e-4)],
    "no runs": lambda folder: Shelf.open(folder / "local" / "runs"),
    "checkpoint cut short": cut_checkpoint,
    "encoder diverged": lambda _: tiny_run(task=tiny_task("mnist"), optimizer="sgd", learning_rate=1e38),
    "class without image": lambda _: prototype_head(
        tiny_backbone(), load_tasks(["digits"], suite="digits", limit=5)["digits"]
    ),
    "no record": lambda folder: records.read(folder / "06_search.json"),
    "no direction": lambda _: TaskVector.between(START, START).cosine(TaskVector.between(START, START)),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_message_is_quoted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with pytest.raises((ValueError, TypeError, ArithmeticError, OSError)) as caught:
        BAD_CALLS[name](tmp_path)
    message = str(caught.value).replace(f"{tmp_path}/", "").replace(f"{tmp_path}\\", "")
    assert f"{caught.type.__name__}: {message}" in quoted()


def test_nothing_else_is_quoted() -> None:
    assert len(quoted()) == len(set(quoted())) == len(BAD_CALLS)
