"""The memory of a run is told before it starts; what does not fit is refused with a number that does."""

import pickle

import pytest
import torch
from torch import nn

from small_encoder import tiny_backbone, tiny_head, tiny_run, tiny_task
from taskvec_mini.benchmarks.training import (
    Memory,
    Settings,
    Speed,
    TooLittleMemoryError,
    Trainer,
    estimate,
    finetune,
    memory,
)
from taskvec_mini.benchmarks.training.memory import CudaMemory

CPU = torch.device("cpu")
TRAINED = 4 * (108 + 4 + 4 + 4 + 216 + 6)  # bytes of the tiny encoder: convolution, norm, linear layer
IMAGES = 37 * (32 * 32 * 3 + 8)  # bytes of the tiny task


class FakeMemory:
    """A device of so many bytes, on which n images take `fixed + each * n`."""

    def __init__(self, free, *, fixed=0, each=0, breaks_above=10**9):
        self.bytes, self.fixed, self.each, self.breaks_above = free, fixed, each, breaks_above
        self.asked = []

    def free(self):
        return self.bytes

    def peak(self, call):
        images = call()
        self.asked.append(images)
        return None if images > self.breaks_above else self.fixed + self.each * images


def found_by(measured, *, images=64, data=(), **changes):
    settings = Settings(**{"learning_rate": 0.1, "epochs": 1, **changes})
    return estimate(
        tiny_backbone().model, list(data), settings=settings, images=images, probe=lambda n: n, device=CPU,
        measured=measured,
    )  # fmt: skip


# --- counted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        ({}, 2),
        ({"optimizer": "sgd"}, 0),
        ({"optimizer": "sgd", "momentum": 0.9}, 1),
        ({"optimizer": "gd"}, 0),
    ],
)
def test_parameters_gradients_optimiser_and_data_are_counted(changes, copies):
    images, labels = tiny_task().part("train")
    found = found_by(None, data=[images, labels], **changes)
    assert (found.parameters, found.gradients, found.data) == (TRAINED, TRAINED, IMAGES)
    assert found.optimizer == copies * TRAINED
    assert (found.activations, found.free, found.data_on_device) == (None, None, True)
    assert found.total == (2 + copies) * TRAINED + IMAGES


def test_the_optimiser_takes_what_was_counted():
    trainer = trainer_with(None)
    trainer.epoch(1)
    taken = sum(part.nbytes for part in trainer.optimizer_state().values() if part.ndim)
    assert taken == trainer.memory.optimizer
    assert sum(part.grad.nbytes for part in trainer.parameters.values()) == trainer.memory.gradients


def test_frozen_parameters_and_buffers_have_neither_gradient_nor_optimiser():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    settings = Settings(learning_rate=0.1, epochs=1)
    found = estimate(model, [], settings=settings, images=1, probe=lambda _: None, device=CPU, measured=None)
    assert found.gradients == 4 * (6 + 2 + 2)
    assert found.parameters == found.gradients + 4 * (2 + 2 + 2) + 8  # frozen bias, statistics, a counter


# --- measured --------------------------------------------------------------------------------------------


def test_what_fits_is_measured_once():
    measured = FakeMemory(10**9, fixed=TRAINED, each=1000)
    found = found_by(measured)
    assert measured.asked == [64]
    assert (found.activations, found.free) == (64_000, 10**9)
    assert found.total == 4 * TRAINED + 64_000


@pytest.mark.parametrize(("missing", "there"), [(0, True), (1, False)])
def test_data_lie_on_the_device_where_they_fit_beside_the_rest(missing, there):
    data = [torch.zeros(900, dtype=torch.uint8)]
    needed = 2 * TRAINED + 64_000 + 900
    found = found_by(FakeMemory((needed - missing) / 0.95 + 0.01, each=1000), data=data)
    assert found.data_on_device is there
    assert found.total == 3 * TRAINED + 64_000 + 900 * there  # the peak holds the gradients too


@pytest.mark.parametrize("breaks_above", [16, 10**9])
def test_too_little_memory_names_the_number_that_fits(breaks_above):
    """Found by halving, where torch has no more memory and where the optimiser would not fit any more."""
    room = 10**9 if breaks_above == 16 else (2 * TRAINED + 16_000) / 0.95 + 1
    measured = FakeMemory(room, each=1000, breaks_above=breaks_above)
    with pytest.raises(TooLittleMemoryError) as caught:
        found_by(measured)
    assert measured.asked == [64, 32, 16]
    assert caught.value.fits == 16
    assert "too little for 64 at a time; micro_batch_size=16 fits (--micro-batch-size 16)" in str(
        caught.value
    )
    assert str(caught.value).startswith("cpu has ")


def test_where_the_whole_batch_counts_the_batch_is_named():
    with pytest.raises(TooLittleMemoryError, match="too little for 64 at a time; batch_size=8 fits"):
        found_by(FakeMemory(10**9, breaks_above=8), centre="batch")


def test_where_nothing_fits_the_message_says_so():
    measured = FakeMemory(100, each=1000)
    with pytest.raises(
        TooLittleMemoryError, match="too little for even one at a time; use a smaller"
    ) as caught:
        found_by(measured, images=5)
    assert (measured.asked, caught.value.fits) == ([5, 2, 1], 0)


# --- in a run --------------------------------------------------------------------------------------------


class Measured(FakeMemory):
    """Lets the call run, and notes what is left of it."""

    def peak(self, call):
        call()
        self.asked.append("ran")
        return self.each


def trainer_with(measured, **changes):
    settings = Settings(**{"learning_rate": 0.01, "epochs": 1, "batch_size": 16, **changes})
    return Trainer(
        tiny_backbone(), {"quarters": tiny_head()}, {"quarters": tiny_task()}, settings=settings,
        measured=measured,
    )  # fmt: skip


@pytest.mark.parametrize(("free", "there"), [(10**9, True), (4 * TRAINED, False)])
def test_probing_and_moving_batches_leave_no_trace_in_a_run(monkeypatch, free, there):
    measured = Measured(free)
    trainer = trainer_with(measured)
    assert measured.asked == ["ran"]
    assert trainer.memory.data_on_device is there
    assert all(part.grad is None for part in trainer.parameters.values())
    monkeypatch.setattr(memory, "device_memory", lambda device: Measured(free))
    found = tiny_run()
    monkeypatch.undo()
    assert torch.equal(found.task_vector().flat, tiny_run().task_vector().flat)


def test_too_little_memory_is_told_before_a_folder_is_made(tmp_path, monkeypatch):
    class Small(FakeMemory):
        def peak(self, call):
            before = len(sizes)
            call()
            return None if sizes[before] > 4 else 0

    sizes, real = [], Trainer.backward

    def watched(self, task, rows, *, weight):
        sizes.append(len(rows))
        return real(self, task, rows, weight=weight)

    monkeypatch.setattr(Trainer, "backward", watched)
    monkeypatch.setattr(memory, "device_memory", lambda device: Small(10**9))
    with pytest.raises(TooLittleMemoryError, match="micro_batch_size=4 fits") as caught:
        tiny_run(folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    tiny_run(folder=tmp_path / "run", epochs=1, speed=Speed(micro_batch_size=caught.value.fits))


def test_memory_that_ends_in_the_middle_of_a_run_is_told_with_what_to_try():
    def hungry(model, generator):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TooLittleMemoryError, match="micro_batch_size=8 may fit") as caught:
        tiny_run(extra_loss=hungry)
    assert str(caught.value).startswith(
        "finetuning on quarters ran out of memory in epoch 1, too little for 16"
    )
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.fits) == (str(caught.value), 8)


def test_a_run_says_its_memory_before_it_starts_and_a_finished_one_does_not(tmp_path, capsys):
    def go(epochs=1):
        settings = Settings(learning_rate=0.01, epochs=epochs)
        finetune(tiny_backbone(), tiny_head(), tiny_task(), settings=settings, folder=tmp_path / "run")
        return capsys.readouterr().err

    first = go().splitlines()
    assert first[0] == (
        "quarters  memory on cpu: 119 kB (parameters 1.4 kB, gradients 1.4 kB, optimiser 2.7 kB, "
        "data 114 kB there, activations of 37 at a time not counted)"
    )
    assert "loss" in first[1]
    assert go() == ""
    (goes_on,) = go(epochs=2).splitlines()
    assert goes_on.startswith("quarters  epoch 2/2"), "its memory was said before"


def test_the_words_say_where_the_data_are_and_how_much_is_free():
    found = Memory(
        device="cuda:0", parameters=351_000_000, gradients=351_000_000, optimizer=702_000_000,
        data=40 * 10**9, images=64, activations=1_500_000_000, free=8 * 10**9, data_on_device=False,
    )  # fmt: skip
    assert str(found) == (
        "memory on cuda:0: 2.9 GB of 8.4 GB (parameters 351 MB, gradients 351 MB, optimiser 702 MB, "
        "data 40.0 GB in main memory, moved batch by batch, activations of 64 at a time 1.5 GB)"
    )


# --- the calls of CUDA -----------------------------------------------------------------------------------


def test_the_memory_of_cuda_asks_driver_and_allocator(monkeypatch):
    taken, calls = [300], []
    fakes = {
        "mem_get_info": lambda _: (5_000, 80_000),
        "memory_reserved": lambda _: 1_000,
        "memory_allocated": lambda _: taken[0],
        "max_memory_allocated": lambda _: 2_300,
        "synchronize": lambda _: calls.append("wait"),
        "reset_peak_memory_stats": lambda _: calls.append("reset"),
        "empty_cache": lambda: calls.append("empty"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    measured = memory.device_memory(torch.device("cuda"))
    assert isinstance(measured, CudaMemory)
    assert measured.free() == 5_700
    assert measured.peak(lambda: calls.append("call")) == 2_000
    assert calls == ["wait", "reset", "call", "wait"]

    def too_much():
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert measured.peak(too_much) is None
    assert calls[-1] == "empty"
