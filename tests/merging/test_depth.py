"""LiNeS: a factor for each block, against a table of factors worked out by hand."""

import math

import pytest
import torch

from small_vectors import noise, vector
from taskvec_mini import TaskVector, merging
from taskvec_mini.merging import depth_start, scale_by_depth


def ones(*names, dtype=torch.float64):
    """A task vector of ones, two entries to each name."""
    return TaskVector(torch.ones(2 * len(names), dtype=dtype), [(name, (2,)) for name in names])


def factors(merged, **how):
    """What each tensor of a vector of ones is multiplied by."""
    scaled = scale_by_depth(merged, **how)
    found = {}
    for name, part in scaled.items():
        assert part[0] == part[1]
        found[name] = part[0].item()
    return found


def test_the_factor_rises_evenly_from_the_first_block_to_the_last():
    names = [f"encoder.layer.{block}.dense.weight" for block in range(5)]
    found = factors(ones(*names), first=0.125, last=0.625)
    assert list(found.values()) == [0.125, 0.25, 0.375, 0.5, 0.625]
    falling = factors(ones(*names), first=1, last=-1)
    assert list(falling.values()) == [1, 0.5, 0, -0.5, -1]


def test_all_tensors_of_a_block_have_one_factor_and_what_is_outside_has_the_first():
    found = factors(
        ones(
            "embed.weight", "blocks.0.a", "blocks.0.b.3.c", "blocks.1.a", "blocks.2", "norm", "conv1.weight"
        ),
        first=0.25,
        last=0.75,
    )
    assert found == {
        "embed.weight": 0.25,
        "blocks.0.a": 0.25,
        "blocks.0.b.3.c": 0.25,  # the outermost number counts
        "blocks.1.a": 0.5,
        "blocks.2": 0.75,
        "norm": 0.25,
        "conv1.weight": 0.25,  # a number within a word is none
    }


def test_each_stack_has_a_last_block_of_its_own():
    found = factors(
        ones(
            "text.layers.0.w",
            "text.layers.1.w",
            "visual.layers.0.w",
            "visual.layers.2.w",
            "visual.layers.4.w",
        ),
        first=0,
        last=1,
    )
    assert list(found.values()) == [0, 1, 0, 0.5, 1]


def test_numbers_count_as_numbers_and_blocks_may_be_missing():
    found = factors(ones("0.weight", "10.weight", "2.bias"), first=0, last=1)
    assert found == {"0.weight": 0, "10.weight": 1, "2.bias": 0.2}
    assert factors(ones("l.3.w"), first=0, last=1) == {"l.3.w": 1}  # block 3 of 4


def test_a_stack_of_one_block_is_none():
    assert factors(ones("head.0.w", "l.0.w", "l.1.w"), first=0.5, last=2) == {
        "head.0.w": 0.5,
        "l.0.w": 0.5,
        "l.1.w": 2,
    }


def test_stages_are_counted_through_by_a_function_of_the_name():
    """As a ResNet of two stages needs it; by default each stage would begin anew."""

    def block_of(name):
        stage, block, *_ = name.split(".")
        return ("stages", 2 * int(stage[-1]) + int(block)) if stage.startswith("stage") else None

    names = ["stem.0.w", "stage0.0.w", "stage0.1.w", "stage1.0.w", "stage1.1.w"]
    assert list(factors(ones(*names), first=0, last=3, block_of=block_of).values()) == [0, 0, 1, 2, 3]
    assert list(factors(ones(*names), first=0, last=3).values()) == [0, 0, 3, 0, 3]


def test_equal_factors_are_one_scaling():
    merged = TaskVector(noise(12), [("l.0.w", (2, 3)), ("l.1.w", (4,)), ("b", (2,))])
    assert torch.equal(scale_by_depth(merged, first=0.3, last=0.3).flat, (0.3 * merged).flat)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_layout_and_buffers_are_kept_and_nothing_is_written_to(dtype):
    values = noise(6).to(dtype)
    merged = TaskVector(values, [("l.0.w", (1, 2)), ("l.2.w", (2, 2))], ["count"])
    scaled = scale_by_depth(merged, first=1 / 3, last=0.7)
    assert (scaled.layout, scaled.carried, scaled.flat.dtype) == (merged.layout, ("count",), dtype)
    expected = torch.cat([values[:2].double() / 3, values[2:].double() * 0.7]).to(dtype)
    assert torch.equal(scaled.flat, expected)  # rounded once
    assert torch.equal(merged.flat, values)


def test_the_start_of_a_merge_is_the_size_of_the_mean():
    vectors = [TaskVector(row, [("l.0.w", (4,)), ("l.1.w", (4,))]) for row in noise(3, 8)]
    assert depth_start(vectors, merging.task_arithmetic(vectors)) == pytest.approx(1 / 3, rel=1e-15)
    assert depth_start(iter(vectors), merging.mean(vectors)) == pytest.approx(1, rel=1e-15)
    merged = merging.ties(vectors)
    first = depth_start(vectors, merged)
    scaled = scale_by_depth(merged, first=first, last=first)
    mean = merging.mean(vectors)
    assert scaled.flat.abs().sum().item() == pytest.approx(mean.flat.abs().sum().item(), rel=1e-14)


def test_the_norm_of_the_start_is_that_of_magnitudes():
    pair = [vector([1.0, 0.0]), vector([2.0, -4.0])]  # the sum (3, −4) has 7 in L1 and 5 in L2
    assert depth_start(pair, vector([7.0, 0.0])) == 0.5


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"first": math.nan}, ValueError, "first must be finite"),
        ({"last": "1"}, TypeError, "last must be a number, got '1'"),
        ({"last": 1e308}, ValueError, "the scaled task vector holds 2 value"),
        (
            {"block_of": lambda name: None},
            ValueError,
            r"no tensor is in .* 'l\.0', 'l\.1': tell with block_of",
        ),
        ({"block_of": lambda name: ("l", 0)}, ValueError, "no tensor is in one of several numbered blocks"),
        (
            {"block_of": lambda name: ("l", -1)},
            ValueError,
            "number of a block of 'l' must be at least 0, got -1",
        ),
        ({"block_of": lambda name: ("l", "1")}, TypeError, "must be a whole number, got '1'"),
    ],
)
def test_scalings_that_make_no_sense_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        scale_by_depth(10 * ones("l.0", "l.1"), **{"first": 0.5, "last": 1.0, **given})


def test_what_is_no_task_vector_is_refused():
    with pytest.raises(TypeError, match="merged must be a TaskVector, got dict; a merging rule returns one"):
        scale_by_depth({"l.0": torch.ones(1)}, first=0.5, last=1.0)
    with pytest.raises(TypeError, match="merged must be a TaskVector, got Tensor"):
        depth_start([vector([1.0])], torch.ones(1))
    with pytest.raises(ValueError, match="shapes differ"):
        depth_start([vector([1.0])], vector([1.0, 2.0]))
    with pytest.raises(ValueError, match="merged is zero everywhere"):
        depth_start([vector([1.0])], vector([0.0]))
    with pytest.raises(ValueError, match="the list of task vectors is empty"):
        depth_start([], vector([1.0]))
