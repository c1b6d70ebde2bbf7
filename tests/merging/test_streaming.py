"""Merging from files: the same as the rules make of vectors in memory, and no file is trusted."""

import json
import math
import os
import runpy
import tracemalloc
import weakref
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from small_vectors import noise, source
from taskvec_mini import TaskVector, merging
from taskvec_mini.merging import _pieces, from_files, merge_files, merged_vector, model_files
from taskvec_mini.merging._stored import stored_layout

SHAPES = {  # ragged: a kernel, matrices wide and tall, a scalar, an empty tensor, one row
    "proj": (5, 7),
    "conv.weight": (4, 3, 2, 2),
    "b.bias": (3,),
    "a.scale": (),
    "c.none": (0, 3),
    "mlp.weight": (9, 4),
    "z.row": (1, 6),
}


def state(seed, dtype=torch.float32, shapes=SHAPES):
    """Entries in steps of 1/64: sums of a few are exact in float32, and many magnitudes are equal."""
    numbers = source(seed)
    return {n: (torch.randn(s, generator=numbers) * 64).round().div(64).to(dtype) for n, s in shapes.items()}


def write(folder, states):
    files = [folder / f"{place}.safetensors" for place in range(len(states))]
    for file, each in zip(files, states, strict=True):
        safetensors.torch.save_file(each, file)
    return files[0], files[1:]


def in_memory(start, ends, rule, **options):
    """The merged vector that the rule makes of whole vectors, tensors sorted by name."""
    start = {name: start[name] for name in sorted(start)}
    return rule([TaskVector.between(start, end) for end in ends], **options)


@pytest.fixture
def four(tmp_path):
    states = [state(seed) for seed in range(4)]
    return (*write(tmp_path, states), states)


@pytest.fixture(params=["whole tensors", "pieces"])
def pieces(request, monkeypatch):
    if request.param == "pieces":
        monkeypatch.setattr(_pieces, "PIECE", 7)
        monkeypatch.setattr(from_files, "_ENTRIES", 5)
        monkeypatch.setattr(from_files, "_WHOLE", 6)
        monkeypatch.setattr(model_files, "_CHUNK", 3)


RULES = [
    ("task_arithmetic", {}),
    ("mean", {}),
    ("ties", {}),
    ("ties", {"density": 0.37, "elect": "count", "combine": "sum"}),
    ("ties", {"density": 1}),
    ("ties", {"density": 1e-9}),
    ("ties", {"density": 0.5, "per_tensor": True}),
    ("breadcrumbs", {"smallest": 0.4, "largest": 0.2}),
    ("tsv", {}),
    ("tsv", {"kernels": "matrix"}),
    ("consensus", {}),
    ("consensus", {"threshold": [0.2, 0.4, 0.6], "agreeing": 3}),
    ("iso_c", {}),
    ("iso_cts", {"common_share": 0.3, "kernels": "matrix"}),
    ("regmean_from_vectors", {"ridge": 0.1}),
    ("wudi", {}),
    ("wudi", {"steps": 20, "step_size": 0.01}),
]


# --- the same as in memory -------------------------------------------------------------------------------


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(("rule", "options"), RULES)
def test_every_rule_makes_what_it_makes_in_memory(four, rule, options):
    pretrained, finetuned, (start, *ends) = four
    expected = in_memory(start, ends, getattr(merging, rule), **options)
    vector = merged_vector(pretrained, finetuned, rule=rule, **options)
    assert vector.layout == expected.layout
    torch.testing.assert_close(vector.flat, expected.flat, rtol=3e-7, atol=1e-7)
    merged = merge_files(pretrained, finetuned, rule=rule, scaling_coef=0.7, **options)
    applied = expected.apply_to(start, scaling_coef=0.7)
    assert list(merged) == sorted(applied)
    for name, part in merged.items():
        torch.testing.assert_close(part, applied[name], rtol=3e-7, atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.61])
def test_the_global_trim_is_exact_where_magnitudes_tie(tmp_path, dtype, density):
    """Ten entries or more of each magnitude, over two tensors: the earlier of equal ones is kept."""
    values = torch.arange(120) % 12 - 6.0
    states = [
        {"a": torch.zeros(50, dtype=dtype), "b": torch.zeros(7, 10, dtype=dtype)},
        {"a": values[:50].to(dtype), "b": values[50:].reshape(7, 10).to(dtype)},
    ]
    pretrained, finetuned = write(tmp_path, states)
    order = sorted(range(120), key=lambda place: (-abs(values[place]), place))
    expected = torch.zeros(120)
    for place in order[: math.ceil(density * 120 - 1e-9)]:
        expected[place] = values[place]
    merged = merged_vector(pretrained, finetuned, rule="ties", density=density)
    assert torch.equal(merged.flat.float(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_is_exact_over_all_scales_of_numbers(tmp_path, dtype):
    """From subnormal numbers to huge ones, neighbours in the last bit among them."""
    numbers = noise(300).exp().pow(9).to(dtype)
    info = torch.finfo(dtype)
    edge = torch.tensor([0.0, -0.0, 1.0, 1 + info.eps, -1 - info.eps, info.tiny, info.tiny / 8], dtype=dtype)
    values = torch.cat([numbers, edge, -edge * 3])
    pretrained, finetuned = write(tmp_path, [{"w": torch.zeros_like(values)}, {"w": values}])
    for count in (1, 2, 97, 155, 310, len(values)):
        density = (count - 0.5) / len(values)
        merged = merged_vector(pretrained, finetuned, rule="ties", density=density)
        assert torch.equal(
            merged.flat, merging.ties([TaskVector(values, [("w", (len(values),))])], density=density).flat
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(tmp_path, dtype):
    states = [{"w": (1 + noise(40, seed=seed) / 10).to(dtype)} for seed in range(3)]
    pretrained, finetuned = write(tmp_path, states)
    merged = merge_files(pretrained, finetuned, rule="mean", scaling_coef=1.5)["w"]
    first, *others = (each["w"].double() for each in states)
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged.double(), first + 1.5 * (sum(others) / 2 - first), rtol=3e-7, atol=0)


def test_float64_stays_float64(tmp_path):
    states = [{"w": noise(40, seed=seed), "half": torch.ones(1).half()} for seed in range(3)]
    pretrained, finetuned = write(tmp_path, states)
    merged = merge_files(pretrained, finetuned, rule="task_arithmetic", scaling_coef=0.3)
    first, *others = (each["w"] for each in states)
    assert {part.dtype for part in merged.values()} == {torch.float64}
    torch.testing.assert_close(merged["w"], first + 0.3 * (sum(others) - 2 * first), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bits(tmp_path, monkeypatch, threads):
    """Of tensors in four precisions, against sums in torch; pieces are shorter than tensors."""
    monkeypatch.setattr(_pieces, "PIECE", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    kinds = {"a": torch.float64, "b": torch.float32, "c": torch.float16, "d": torch.bfloat16}
    states = [
        {name: noise(53, seed=10 * seed + place).to(kind) for place, (name, kind) in enumerate(kinds.items())}
        for seed in range(4)
    ]
    merged = merge_files(*write(tmp_path, states), rule="mean", scaling_coef=0.7)
    for name, part in merged.items():
        start, *ends = (each[name].double() for each in states)
        total = (ends[0] - start) + (ends[1] - start) + (ends[2] - start)
        assert torch.equal(part, total / 3 * 0.7 + start)


def test_dare_draws_tensor_by_tensor(tmp_path):
    """Of one tensor the masks are those of vectors in memory; further tensors go on drawing."""
    states = [state(seed, shapes={"w": (8, 5)}) for seed in range(3)]
    pretrained, finetuned = write(tmp_path, states)
    expected = in_memory(states[0], states[1:], merging.dare, drop_rate=0.5, generator=source(3))
    merged = merged_vector(pretrained, finetuned, rule="dare", drop_rate=0.5, generator=source(3))
    assert torch.equal(merged.flat, expected.flat)
    two = [{"v": each["w"] + 1, "w": each["w"]} for each in states]
    pair = merged_vector(*write(tmp_path, two), rule="dare", drop_rate=0.5, generator=source(3)).flat
    assert torch.equal(pair[:40], expected.flat)
    assert not torch.equal(pair[40:], expected.flat)


def test_a_scaling_coefficient_of_zero_gives_the_pretrained_model(four):
    pretrained, finetuned, (start, *_) = four
    merged = merge_files(pretrained, finetuned, rule="ties", scaling_coef=0)
    assert all(torch.equal(merged[name], start[name]) for name in start)


# --- files ----------------------------------------------------------------------------------------------


def test_no_file_that_is_read_is_written_to(four):
    pretrained, finetuned, _ = four
    before = [file.read_bytes() for file in (pretrained, *finetuned)]
    for rule, options in RULES:
        merge_files(pretrained, finetuned, rule=rule, **options)
    assert [file.read_bytes() for file in (pretrained, *finetuned)] == before


def test_integer_buffers_are_refused_or_carried(tmp_path):
    states = [
        {"w": torch.full((2,), float(i)), "n": torch.tensor([i]), "on": torch.tensor(i > 0)} for i in (1, 3)
    ]
    pretrained, finetuned = write(tmp_path, states)
    with pytest.raises(TypeError, match=r"'n' is I64, .*integer_buffers=\"carry\""):
        merge_files(pretrained, finetuned)
    merged = merge_files(pretrained, finetuned, integer_buffers="carry", scaling_coef=2)
    assert {name: part.tolist() for name, part in merged.items()} == {"n": [1], "on": True, "w": [5.0, 5.0]}
    assert merged_vector(pretrained, finetuned, integer_buffers="carry").carried == ("n", "on")


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("proj"), ValueError, r"0\.safetensors has 'proj', .*2\.safetensors has not"),
        (
            lambda s: s.update(extra=torch.ones(1)),
            ValueError,
            r"2\.safetensors has 'extra', .*0\.safetensors has",
        ),
        (
            lambda s: s.update(proj=torch.ones(7, 5)),
            ValueError,
            r"shapes differ at 'proj in .*2\.safetensors': \(5, 7\) against \(7, 5\)",
        ),
        (
            lambda s: s.update(proj=s["proj"].half()),
            TypeError,
            r"'proj': F32 in .*0\.saf.* against F16 in .*2\.saf",
        ),
        (lambda s: s["proj"].fill_(math.nan), ValueError, r"'proj' in .*2\.safetensors holds 35 value"),
        (lambda s: s["proj"][1].fill_(-math.inf), ValueError, r"'proj' in .*2\.safetensors holds 7 value"),
    ],
)
@pytest.mark.parametrize("rule", ["mean", "ties", "tsv"])
def test_files_that_do_not_match(four, change, error, message, rule):
    pretrained, finetuned, states = four
    change(states[2])
    safetensors.torch.save_file(states[2], finetuned[1])
    with pytest.raises(error, match=message):
        merge_files(pretrained, finetuned, rule=rule)


@pytest.mark.parametrize("rule", ["mean", "ties", "tsv"])
def test_a_pretrained_file_that_diverged_is_named(four, rule):
    pretrained, finetuned, states = four
    states[0]["proj"][0, 3] = math.inf
    safetensors.torch.save_file(states[0], pretrained)
    with pytest.raises(ValueError, match=r"'proj' in .*0\.safetensors holds 1 value.*position \(3,\)"):
        merge_files(pretrained, finetuned, rule=rule)


@pytest.mark.parametrize(
    ("rule", "call", "message"),
    [
        ("mean", merge_files, r"'w' of the task vector of .*1\.safetensors has 1 value.*beyond the range"),
        ("mean", merged_vector, r"'w' of the task vector of .*1\.safetensors has 1"),
        ("tsv", merge_files, r"'w' of the task vector of .*1\.safetensors has 1"),
    ],
)
def test_a_difference_too_large_for_its_dtype_is_no_file_s_fault(tmp_path, rule, call, message):
    states = [{"v": torch.ones(3), "w": torch.tensor([0.0, sign * 3e38])} for sign in (-1, 1)]
    with pytest.raises(ValueError, match=message):
        call(*write(tmp_path, states), rule=rule)


def test_a_file_that_shrinks_while_it_is_read(four, monkeypatch):
    pretrained, finetuned, _ = four
    layout = from_files.stored_layout

    def and_then_cut(*paths, **options):
        stored = layout(*paths, **options)
        os.truncate(finetuned[1], finetuned[1].stat().st_size - 2)
        return stored

    monkeypatch.setattr(from_files, "stored_layout", and_then_cut)
    with pytest.raises(ValueError, match=r"2\.safetensors became shorter while it was read"):
        merge_files(pretrained, finetuned)


def test_a_file_given_twice(four):
    pretrained, finetuned, _ = four
    link = pretrained.with_name("link.safetensors")
    link.hardlink_to(finetuned[0])
    for files in ([finetuned[0], finetuned[0]], [finetuned[0], link], [finetuned[1], pretrained]):
        with pytest.raises(ValueError, match=rf"{files[-1].name} is given twice"):
            merge_files(pretrained, files)


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_truncated_file_is_named(four, kept):
    pretrained, finetuned, _ = four
    finetuned[2].write_bytes(finetuned[2].read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"3\.safetensors is no safetensors file, or it is truncated"):
        merge_files(pretrained, finetuned)


def test_what_is_no_file_of_tensors_is_called_what_it_is(four):
    pretrained, finetuned, (start, *_) = four
    torch.save(start, finetuned[0])
    with pytest.raises(ValueError, match=r"1\.safetensors is a pickle .* and is not loaded"):
        merge_files(pretrained, finetuned)
    with pytest.raises(FileNotFoundError, match=r"several files of weights .* and no index"):
        merge_files(pretrained, [pretrained.parent])
    entry = {"dtype": "F32", "shape": [1] * 10_000, "data_offsets": [0, 4]}
    header = json.dumps({"w": entry}).encode()
    pretrained.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match=r"0\.safetensors is no safetensors file: 'w' has 10000 axes"):
        merge_files(pretrained, finetuned)


def test_a_file_that_is_not_there(four):
    pretrained, finetuned, _ = four
    with pytest.raises(FileNotFoundError, match="nowhere"):
        merge_files(pretrained, [*finetuned, pretrained.with_name("nowhere.safetensors")])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"rule": "tie"}, ValueError, r"unknown merging rule 'tie': did you mean 'ties'"),
        ({"rule": "ties", "densty": 0.2}, ValueError, r"option of ties 'densty': did you mean 'density'"),
        ({"rule": "mean", "density": 0.2}, ValueError, r"mean has no options, but 'density' is given"),
        ({"rule": "dare"}, TypeError, r"generator must be a torch\.Generator, got None"),
        ({"rule": "ties", "density": 0}, ValueError, r"density must be above 0"),
        ({"rule": "ties", "elect": "mas"}, ValueError, r"unknown election 'mas': did you mean 'mass'"),
        ({"rule": "tsv", "kernels": "matrx"}, ValueError, r"did you mean 'matrix'"),
        ({"scaling_coef": math.nan}, ValueError, r"scaling_coef must be finite"),
        (
            {"scaling_coef": 1e300},
            ValueError,
            r"of the merged model has \d+ value\(s\) beyond the range of torch\.float32",
        ),
        ({"integer_buffers": "cary"}, ValueError, r"did you mean 'carry'"),
        ({"finetuned": []}, ValueError, r"the list of finetuned models is empty"),
        ({"finetuned": "1.safetensors"}, TypeError, r"must be a list of models"),
    ],
)
def test_arguments_that_make_no_sense(four, given, error, message):
    pretrained, finetuned, _ = four
    with pytest.raises(error, match=message):
        merge_files(pretrained, given.pop("finetuned", finetuned), **given)


def test_nothing_to_merge(tmp_path):
    pretrained, finetuned = write(tmp_path, [{"e": torch.ones(0)}] * 2)
    with pytest.raises(ValueError, match=r"0\.safetensors holds no floating-point entries"):
        merge_files(pretrained, finetuned)


def test_a_dtype_that_cannot_be_merged(tmp_path):
    pretrained, finetuned = write(tmp_path, [{"w": torch.ones(2).to(torch.float8_e5m2)}] * 2)
    with pytest.raises(
        TypeError,
        match=r"'w' in .*0\.safetensors is F8_E5M2, which cannot be merged: these are quantised weights",
    ):
        merge_files(pretrained, finetuned, integer_buffers="carry")


# --- the benchmark --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench():
    return runpy.run_path(str(Path(__file__).parents[1] / "bench" / "bench_streaming.py"))


def test_the_benchmark_has_the_shapes_of_the_visual_encoder(bench):
    """CLIP's ViT-B/32: 87.85 million entries (visual weights alone) in 152 tensors."""
    shapes = bench["shapes"](*bench["WIDTHS"]["vit-b-32"])
    assert len(shapes) == 152
    assert sum(math.prod(shape) for shape in shapes.values()) == 87_849_216
    assert shapes["positional_embedding"] == (50, 768)
    assert shapes["transformer.resblocks.11.mlp.c_fc.bias"] == (3072,)


@pytest.mark.parametrize("rule", ["mean", "ties", "tsv"])
def test_the_two_ways_of_the_benchmark_make_the_same_model(bench, tmp_path, rule):
    bench["make_files"](tmp_path, bench["shapes"](16, 1, 8, 16, 8), 3)
    pretrained, finetuned = bench["files_of"](tmp_path)
    name, options = bench["RULES"][rule]
    streamed = merge_files(pretrained, finetuned, rule=name, **options)
    for key, part in bench["plain"](rule, pretrained, finetuned).items():
        torch.testing.assert_close(streamed[key], part, rtol=3e-7, atol=1e-7)


def test_the_benchmark_runs_a_measurement(bench, tmp_path, capsys):
    bench["make_files"](tmp_path, bench["shapes"](8, 1, 8, 16, 4), 2)
    norms = []
    for way in bench["WAYS"]:
        bench["measure"](way, "mean", tmp_path)
        found = json.loads(capsys.readouterr().out)
        assert 0 < found["of it before, GB"] <= found["peak, GB"]
        norms.append(found["norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


# --- what is promised ------------------------------------------------------------------------------------


class Allocated(TorchDispatchMode):
    """Bytes of all tensors that live at one time, at most."""

    def __init__(self):
        super().__init__()
        self.living = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(made)[0]:
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.living += storage.nbytes()
                self.peak = max(self.peak, self.living)
                weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())
        return made

    def forget(self, which, size):
        self.known.discard(which)
        self.living -= size


@pytest.mark.parametrize("shape", [(900, 60), (60, 900), (180, 180)])
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("tsv", {}),
        ("iso_c", {}),
        ("iso_cts", {}),
        ("regmean_from_vectors", {}),
        ("wudi", {}),
        ("wudi", {"steps": 3}),
    ],
)
def test_the_memory_that_is_promised_is_what_rules_for_matrices_allocate(tmp_path, shape, rule, options):
    """Tensors by a count of their storages, arrays of numpy by tracemalloc; LAPACK takes some more."""
    function = merging.RULES[rule].function
    with Allocated():  # imports what is needed
        function([TaskVector(noise(4, 4).reshape(-1), [("w", (4, 4))])] * 2, **options)
    for tasks in (2, 7):
        states = [{"w": torch.randn(shape, generator=source(seed))} for seed in range(tasks + 1)]
        start, ends = write(tmp_path, states)
        promised = from_files.memory(stored_layout(start, ends), merging.RULES[rule], options)
        promised -= from_files._REST
        vectors = [TaskVector.between(states[0], state) for state in states[1:]]
        tracemalloc.start()
        with Allocated() as counted:
            function(vectors, **options)
        arrays = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        start_itself = states[0]["w"].nbytes
        assert promised / 3 <= counted.peak + arrays + start_itself <= promised
