"""Settings that descent and finetuning refuse: each message names the setting, its value and the remedy."""

import math

import pytest
import torch

from small_runs import one_loss, run, several_losses
from taskvec_mini.descent import gradient_descent


def descend(**changes):
    loss, start = one_loss()
    settings = {"loss": loss, "start": start, "learning_rate": 0.2, "epochs": 2, **changes}
    return gradient_descent(settings.pop("loss"), settings.pop("start"), **settings)


TRAINERS = {"descent": descend, "finetune": run}
both = pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)


@both
@pytest.mark.parametrize("rate", [0, 0.0, -0.1])
def test_a_learning_rate_must_be_above_zero(train, rate):
    with pytest.raises(ValueError, match=r"learning_rate must be above 0, got .*; choose a positive"):
        train(learning_rate=rate)


@both
@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf])
def test_a_learning_rate_must_be_finite(train, rate):
    with pytest.raises(ValueError, match="learning_rate must be finite, got"):
        train(learning_rate=rate)


@both
@pytest.mark.parametrize("rate", ["0.1", None, [0.1], torch.ones(2)])
def test_a_learning_rate_must_be_a_number(train, rate):
    with pytest.raises(TypeError, match="learning_rate must be a number, got"):
        train(learning_rate=rate)


@both
@pytest.mark.parametrize("epochs", [0, -1])
def test_there_is_at_least_one_epoch(train, epochs):
    with pytest.raises(ValueError, match=f"epochs must be at least 1, got {epochs}"):
        train(epochs=epochs)


@both
@pytest.mark.parametrize("epochs", [1.5, 2.0, "2", None, True])
def test_epochs_are_whole(train, epochs):
    with pytest.raises(TypeError, match="epochs must be a whole number, got"):
        train(epochs=epochs)


@both
def test_an_empty_list_of_losses_is_refused(train):
    with pytest.raises(ValueError, match="the list of losses is empty; give at least one"):
        train(loss=[])


@both
@pytest.mark.parametrize("start", [torch.ones(2, 2), torch.ones(2).long(), [1.0, 2.0], torch.tensor(1.0)])
def test_a_start_must_be_one_flat_vector(train, start):
    with pytest.raises(TypeError, match=r"start must be a 1-D floating-point tensor.*networks.flatten"):
        train(start=start)


@both
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_start_must_be_finite(train, bad):
    with pytest.raises(ValueError, match=r"start holds 1 value\(s\) that are NaN or infinite.*at position"):
        train(start=torch.tensor([0.0, bad]))


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_holds_at_least_one_example(size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
        run(batch_size=size)


def test_a_batch_holds_at_most_all_examples():
    message = "batch_size is 12 but there are 11 examples; choose a size of 1 to 11"
    with pytest.raises(ValueError, match=message):
        run(batch_size=12)
    with pytest.raises(TypeError, match=r"batch_size must be a whole number, got 2\.5"):
        run(batch_size=2.5)


def test_a_batch_must_fit_every_task():
    losses, start = several_losses("unequal")
    with pytest.raises(ValueError, match="batch_size is 6 but there are 4 examples"):
        run(losses, start, batch_size=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adm"}, "unknown optimizer 'adm': did you mean .*'adam'"),
        ({"optimizer": "Adam"}, "unknown optimizer 'Adam': did you mean .*'adam'"),
        ({"optimizer": "SGD"}, "unknown optimizer 'SGD': did you mean 'sgd'"),
        ({"optimizer": "lbfgs"}, "unknown optimizer 'lbfgs': choose one of sgd, adam, adamw"),
        ({"momentun": 0.9}, "unknown option of the optimizer 'sgd' 'momentun': did you mean 'momentum'"),
        ({"betas": (0.9, 0.99)}, "unknown option of the optimizer 'sgd' 'betas'"),
        ({"lr": 0.1}, "unknown option of the optimizer 'sgd' 'lr'"),
        ({"params": []}, "unknown option of the optimizer 'sgd' 'params'"),
        ({"record": "step"}, "unknown record 'step': did you mean 'steps'"),
    ],
)
def test_unknown_names_suggest_the_near_ones(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"clip_norm": 0}, ValueError, "clip_norm must be above 0"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm must be above 0"),
        ({"clip_norm": math.nan}, ValueError, "clip_norm must be finite"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be at least 0, got -1"),
        ({"warmup_steps": 0.5}, TypeError, "warmup_steps must be a whole number"),
        ({"examples": 0}, ValueError, "examples must be at least 1, got 0"),
    ],
)
def test_other_settings_out_of_range_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        run(**changes)


@pytest.mark.parametrize("generator", [None, 0, torch.Generator])
def test_a_run_needs_a_generator_of_its_own(generator):
    message = r"generator must be a torch.Generator, got .*; torch.Generator\(\).manual_seed\(0\) makes one"
    with pytest.raises(TypeError, match=message):
        run(generator=generator)


def test_a_loss_without_a_length_needs_the_number_of_examples():
    with pytest.raises(TypeError, match=r"does not say how many examples it has; pass examples=\.\.\."):
        run(lambda theta, index: theta.sum(), torch.ones(1))
