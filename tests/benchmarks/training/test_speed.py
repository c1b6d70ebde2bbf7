"""The options of speed change the rounding of a run, and nothing else of it."""

import dataclasses
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from small_encoder import flat_of, tiny_backbone, tiny_head, tiny_run, tiny_task
from taskvec_mini.benchmarks.heads import PrototypeHead
from taskvec_mini.benchmarks.training import RunFolder, Settings, Speed, plan

BFLOAT16 = Speed(precision="bfloat16")
CHANNELS_LAST = Speed(channels_last=True)


def settings_of(**changes):
    return Settings(**{"learning_rate": 0.01, "epochs": 3, "batch_size": 16, **changes})


def apart(found, expected):
    """The relative distance of two vectors."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# --- the default is what it was --------------------------------------------------------------------------


def plain_torch(settings):
    """The parameters after each epoch and their mean losses, by a loop with nothing of this library in it."""
    backbone, head, task = tiny_backbone(), tiny_head(), tiny_task()
    model, labels = backbone.model, task.train_labels
    options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": True}
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "gd": torch.optim.SGD}[settings.optimizer]
    optimizer = kind(model.parameters(), **options)
    states, losses = [], []
    for epoch in range(1, settings.epochs + 1):
        total = 0.0
        for _, rows in plan([len(labels)], settings, epoch=epoch):
            loss = F.cross_entropy(head(model(backbone.prepare(task.train_images[rows]))), labels[rows])
            total += loss.item() * len(rows)
            if settings.optimizer == "gd":
                (len(rows) / len(labels) * loss).backward()
                continue
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if settings.optimizer == "gd":
            optimizer.step()
            optimizer.zero_grad()
        states.append(flat_of(model))
        losses.append(total / len(labels))
    return states, losses


@pytest.mark.parametrize("recipe", [{}, {"optimizer": "sgd", "weight_decay": 0.1}, {"optimizer": "gd"}])
def test_without_options_a_run_has_the_bits_of_a_plain_loop(recipe):
    settings = settings_of(**recipe)
    run, (states, losses) = tiny_run(**recipe), plain_torch(settings)
    for epoch in (1, 2, 3):
        assert torch.equal(
            torch.cat([part.reshape(-1) for part in run.state(epoch).values()]), states[epoch - 1]
        )
    assert run.losses == losses


def test_options_that_change_no_rounding_are_the_same_run(tmp_path):
    first = tiny_run(folder=tmp_path / "run")
    assert RunFolder(tmp_path / "run").identity()["speed"] == {}
    for speed in (Speed(), Speed(micro_batch_size=16), Speed(micro_batch_size=500)):  # nothing is split
        again = tiny_run(folder=tmp_path / "run", speed=speed)
        assert torch.equal(first.task_vector().flat, again.task_vector().flat)


@pytest.mark.parametrize(
    ("speed", "field"),
    [
        (BFLOAT16, "speed.precision = None, but this run has 'bfloat16'"),
        (Speed(micro_batch_size=5), "speed.micro_batch_size = None, but this run has 5"),
        (CHANNELS_LAST, "speed.channels_last = None, but this run has True"),
        (Speed(compile=True), "speed.compile = None, but this run has True"),
    ],
)
def test_a_run_with_another_rounding_is_another_run(tmp_path, speed, field):
    tiny_run(folder=tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match=field):
        tiny_run(folder=tmp_path / "run", epochs=1, speed=speed)


# --- bfloat16 --------------------------------------------------------------------------------------------


def test_in_bfloat16_products_are_short_and_everything_that_is_kept_is_float32(tmp_path):
    seen = {"embeddings": set(), "head": set()}

    class Watching(nn.Module):
        def forward(self, hidden):
            if torch.is_grad_enabled():
                seen["embeddings"].add(hidden.dtype)
            return hidden

    class WatchingHead(PrototypeHead):
        def forward(self, embeddings):
            seen["head"].add(embeddings.dtype)
            return super().forward(embeddings)

    backbone = tiny_backbone()
    backbone.model = nn.Sequential(*list(backbone.model)[:-1], Watching())
    run = tiny_run(
        backbone=backbone,
        head=WatchingHead(tiny_head().prototypes, tiny_head().centre, 5.0),
        folder=tmp_path,
        speed=BFLOAT16,
        epochs=8,
    )
    assert seen == {"embeddings": {torch.bfloat16}, "head": {torch.float32}}
    kept = [
        *run.state().values(),
        run.task_vector().flat,
        *load_file(tmp_path / "latest.safetensors").values(),
    ]
    assert {part.dtype for part in kept} == {torch.float32}
    assert run.losses[-1] < 0.7 * run.losses[0]


def test_bfloat16_rounds_but_goes_the_same_way():
    exact, short = (
        tiny_run(optimizer="sgd", speed=speed).task_vector().flat for speed in (Speed(), BFLOAT16)
    )
    assert 1e-5 < apart(short, exact) < 0.1


# --- order in memory, compilation, resuming --------------------------------------------------------------


def test_channels_last_is_the_same_run_and_its_checkpoints_look_the_same(tmp_path):
    plain, run = tiny_run(), tiny_run(folder=tmp_path, speed=CHANNELS_LAST)
    assert apart(run.task_vector().flat, plain.task_vector().flat) < 1e-3
    assert [part.stride() for part in run.state().values()] == [
        part.stride() for part in plain.state().values()
    ]


def test_channels_last_reaches_images_and_convolutions():
    seen = []

    class Watching(nn.Conv2d):
        def forward(self, images):
            channels_last = torch.channels_last
            seen.append([part.is_contiguous(memory_format=channels_last) for part in (images, self.weight)])
            return super().forward(images)

    backbone = dataclasses.replace(tiny_backbone(), memory_format=torch.contiguous_format)
    backbone.model[0] = Watching(3, 4, 3, 2)
    tiny_run(backbone=backbone, epochs=1, speed=CHANNELS_LAST)
    assert seen[1:] == [[True, True]] * 3  # the first one asks whether the head fits


@pytest.mark.parametrize("speed", [BFLOAT16, CHANNELS_LAST, Speed(micro_batch_size=6)])
@pytest.mark.parametrize("recipe", [{}, {"optimizer": "sgd", "momentum": 0.9}])
def test_a_run_that_was_interrupted_ends_at_the_same_bits(tmp_path, speed, recipe):
    """The optimiser's tensors have to come back in the order in memory that the parameters have."""
    tiny_run(folder=tmp_path, epochs=1, speed=speed, **recipe)
    resumed = tiny_run(folder=tmp_path, speed=speed, **recipe)
    assert torch.equal(resumed.task_vector().flat, tiny_run(speed=speed, **recipe).task_vector().flat)


def test_only_whole_micro_batches_are_compiled(monkeypatch):
    """Then there is one shape, whether or not a run was interrupted."""
    counts, asked = [], []

    def fake(model, **options):
        asked.append(options)
        return lambda images: [counts.append(len(images)), model(images)][1]

    monkeypatch.setattr(torch, "compile", fake)
    run = tiny_run(epochs=1, speed=Speed(compile=True, micro_batch_size=6))
    assert (asked, counts) == ([{"dynamic": False}], [6] * 4)
    monkeypatch.undo()
    plain = tiny_run(epochs=1, speed=Speed(micro_batch_size=6))
    assert torch.equal(run.task_vector().flat, plain.task_vector().flat)


@pytest.fixture
def compiler():
    """What is compiled in one test is forgotten before and after it, as in another process."""
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and neither g++ nor clang++ is here")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("speed", "near"),
    [(Speed(compile=True), 1e-4), (Speed(compile=True, precision="bfloat16", channels_last=True), 0.1)],
)
def test_a_compiled_run_has_the_same_numbers_and_ends_at_the_same_bytes_if_it_was_stopped(
    tmp_path, compiler, speed, near
):
    """It is compiled anew when it goes on, and from parameters that lie elsewhere in memory."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    recipe = {"optimizer": "sgd", "momentum": 0.9}
    run = tiny_run(folder=whole, epochs=2, speed=speed, **recipe)
    assert list(run.state()) == list(tiny_backbone().model.state_dict())
    assert apart(run.task_vector().flat, tiny_run(epochs=2, **recipe).task_vector().flat) < near
    torch._dynamo.reset()
    tiny_run(folder=stopped, epochs=1, speed=speed, **recipe)
    assert not (stopped / "epoch_002.safetensors").exists()
    torch._dynamo.reset()
    tiny_run(folder=stopped, epochs=2, speed=speed, **recipe)
    for name in ("epoch_001.safetensors", "epoch_002.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    ends = [load_file(folder / "latest.safetensors") for folder in (whole, stopped)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(part, ends[1][name]) for name, part in ends[0].items())


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "bfloat"}, ValueError, "unknown precision 'bfloat': did you mean 'bfloat16'"),
        ({"micro_batch_size": 0}, ValueError, "micro_batch_size must be at least 1, got 0"),
        ({"micro_batch_size": 2.5}, TypeError, "micro_batch_size must be a whole number, got 2.5"),
        ({"compile": "yes"}, TypeError, "compile must be True or False, got 'yes'"),
        ({"channels_last": 1}, TypeError, "channels_last must be True or False, got 1"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Speed(**options)


def test_what_cannot_go_together_is_refused_before_a_folder_is_made(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match='"tf32" needs an NVIDIA GPU, not the device cpu; use "float32"'):
        tiny_run(folder=folder, speed=Speed(precision="tf32"))
    with pytest.raises(ValueError, match="a whole batch of 16, so it cannot be split into 6 at a time"):
        tiny_run(folder=folder, centre="batch", speed=Speed(micro_batch_size=6))
    assert not folder.exists()
    tiny_run(epochs=1, centre="batch", speed=Speed(micro_batch_size=16))  # nothing is split


@pytest.mark.parametrize("own", ["highest", "high", "medium"])
def test_torch_s_own_flag_is_put_back(monkeypatch, own):
    flags = [own]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: flags[-1])
    monkeypatch.setattr(torch, "set_float32_matmul_precision", flags.append)
    with Speed().products(), BFLOAT16.products():
        assert flags == [own]

    def stopped():
        with Speed(precision="tf32").products():
            raise KeyError(flags[-1])

    with pytest.raises(KeyError, match="high"):
        stopped()
    assert flags == [own, "high", own]
