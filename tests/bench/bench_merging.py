"""How long merging takes in this library, beside plain dictionaries and beside FusionBench. Prints one table.

All rows but the second are timed in turn, in one process, the best of up to five runs. The second one is what
a script waits that merges once: the median over five processes for each way, in which the pipeline is the
first thing done and has to get its memory. Seconds are of CPU time, which other programs disturb little. With
one thread that is the time one waits.

"Plain" is what one writes first, here below: a dictionary in, a dictionary out, float32, the full SVD where
there is one. "apart" is ‖ours − plain‖ / ‖plain‖: what float32 makes of the two ways. Where ours takes a weak
direction for rounding and leaves it out, the plain way keeps it: one of 768 equal singular values makes 4e-2
of a matrix. TIES and Breadcrumbs choose another entry or two where magnitudes tie at the cut. DARE draws
other numbers there.

The rules that take singular values apart have a row more: the plain way with its SVDs in float64, whose
results are as exact as ours.

FusionBench's own functions are timed where a folder holds that package; nothing of it is needed, and none of
what it needs:

    python -m pip install --no-deps --target FOLDER fusion_bench

usage: OMP_NUM_THREADS=1 python tests/bench/bench_merging.py [--model bert|minilm|vit] [--layers 2]
       [--fusion-bench FOLDER] [--rules tsv,iso_c]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import math
import multiprocessing
import statistics
import sys
import time
import types
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import TaskVector, merging, records, scores

Dict = dict[str, Tensor]
TASKS = 8
STEPS = 5  # of WUDI by Adam: 300 of them take 60 times as long in every column
COEF = 0.3
PIPELINE = "8 between, mean, apply"
SINGULAR = ("tsv", "iso_c", "iso_cts")
MODELS = {
    "bert": (384, 4_000),
    "minilm": (384, 30_522),
    "vit": (768, 0),
}  # width, and rows of a table of embeddings


def make_models(width: int, rows: int, layers: int) -> tuple[Dict, list[Dict]]:
    """A transformer's tensors and eight others nearby, whose differences have falling singular values."""
    shapes: dict[str, tuple[int, ...]] = {"embeddings.weight": (rows, width)} if rows else {}
    for layer in range(layers):
        block = f"encoder.layer.{layer}."
        for name in ("query", "key", "value", "output"):
            shapes[f"{block}attention.{name}.weight"] = (width, width)
            shapes[f"{block}attention.{name}.bias"] = (width,)
        shapes[f"{block}intermediate.weight"] = (4 * width, width)
        shapes[f"{block}intermediate.bias"] = (4 * width,)
        shapes[f"{block}output.weight"] = (width, 4 * width)
        shapes[f"{block}output.bias"] = (width,)
        shapes |= {f"{block}norm.weight": (width,), f"{block}norm.bias": (width,)}
    numbers = torch.Generator().manual_seed(0)
    start = {name: torch.randn(shape, generator=numbers) * 0.02 for name, shape in shapes.items()}
    ends = []
    for _ in range(TASKS):
        end = {}
        for name, tensor in start.items():
            moved = torch.randn(tensor.shape, generator=numbers)
            if tensor.ndim == 2:
                rank = 2 * min(tensor.shape)  # so that no direction is near the rounding of float32
                falling = (1 + torch.arange(rank)) ** -0.5
                moved = torch.randn(len(tensor), rank, generator=numbers) * falling
                moved = moved @ torch.randn(rank, tensor.shape[1], generator=numbers)
            end[name] = tensor + 1e-3 * moved
        ends.append(end)
    return start, ends


def cpu_seconds(call: Callable[[], object]) -> tuple[float, Any]:
    """The least of up to five runs, or of as many as begin within two seconds; and what the last one gave."""
    times: list[float] = []
    while not times or (len(times) < 5 and sum(times) < 2):
        begin = time.process_time()
        result = call()
        times.append(time.process_time() - begin)
    return min(times), result


def first_seconds(which: str, model: str, layers: int) -> float:
    """CPU seconds of the first run of a pipeline in this process."""
    start, ends = make_models(*MODELS[model], layers=layers)
    begin = time.process_time()
    {"ours": ours_pipeline, "plain": pipeline}[which](start, ends)
    return time.process_time() - begin


def in_new_processes(model: str, layers: int) -> dict[str, float]:
    """The median over five processes each, which take turns."""
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(5):
        for which, seen in times.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                seen.append(pool.submit(first_seconds, which, model, layers).result())
    return {which: statistics.median(seen) for which, seen in times.items()}


# --- plain dictionaries ----------------------------------------------------------------------------------


def pipeline(start: Dict, ends: list[Dict]) -> Dict:
    taus = [{key: end[key] - start[key] for key in start} for end in ends]
    merged = task_mean(taus)
    return {key: start[key] + COEF * merged[key] for key in start}


def ours_pipeline(start: Dict, ends: list[Dict]) -> Dict:
    merged = merging.mean(TaskVector.between(start, end) for end in ends)
    return merged.apply_to(start, scaling_coef=COEF)


def task_sum(taus: list[Dict]) -> Dict:
    total = taus[0]
    for tau in taus[1:]:
        total = {key: total[key] + tau[key] for key in total}
    return total


def task_mean(taus: list[Dict]) -> Dict:
    return {key: part / len(taus) for key, part in task_sum(taus).items()}


def ties(taus: list[Dict], density: float = 0.2) -> Dict:
    flat = torch.stack([torch.cat([part.flatten() for part in tau.values()]) for tau in taus])
    cut = flat.shape[1] - math.ceil(density * flat.shape[1]) + 1
    flat = flat * (flat.abs() >= flat.abs().kthvalue(cut, dim=1, keepdim=True).values)
    kept = flat * (flat.sign() == flat.sum(0).sign())
    merged = kept.sum(0) / (kept != 0).sum(0).clamp(min=1)
    parts = torch.split(merged, [part.numel() for part in taus[0].values()])
    return {key: part.view(taus[0][key].shape) for key, part in zip(taus[0], parts, strict=True)}


def dare(taus: list[Dict], rate: float = 0.9) -> Dict:
    kept = [
        {key: part * (torch.rand_like(part) >= rate) / (1 - rate) for key, part in t.items()} for t in taus
    ]
    return task_sum(kept)


def breadcrumbs(taus: list[Dict], smallest: float = 0.85, largest: float = 0.01) -> Dict:
    masked = []
    for tau in taus:
        masked.append({})
        for key, part in tau.items():
            size, magnitudes = part.numel(), part.abs().flatten()
            low = magnitudes.kthvalue(int(smallest * size) + 1).values
            high = magnitudes.kthvalue(size - int(largest * size)).values
            masked[-1][key] = part * (part.abs() >= low) * (part.abs() <= high)
    return task_sum(masked)


def consensus(taus: list[Dict], threshold: float = 0.4) -> Dict:
    total = task_sum(taus)
    used = [{k: t[k].abs() >= threshold * (total[k] - t[k]).abs() for k in t} for t in taus]
    return {key: total[key] * (sum(each[key].int() for each in used) >= 2) for key in total}


def by_matrices(taus: list[Dict], rule: Callable[[list[Tensor]], Tensor]) -> Dict:
    averaged = task_mean([{k: part for k, part in tau.items() if part.ndim != 2} for tau in taus])
    return {k: rule([tau[k] for tau in taus]) if k not in averaged else averaged[k] for k in taus[0]}


def nearest(basis: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(basis, full_matrices=False)
    return left @ right


def tsv(matrices: list[Tensor]) -> Tensor:
    rank = min(matrices[0].shape) // len(matrices)
    found = [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    left = nearest(torch.cat([u[:, :rank] for u, _, _ in found], 1))
    right = nearest(torch.cat([v[:rank] for _, _, v in found]))
    return left * torch.cat([s[:rank] for _, s, _ in found]) @ right


def iso_c(matrices: list[Tensor]) -> Tensor:
    left, sizes, right = torch.linalg.svd(sum(matrices), full_matrices=False)
    return sizes.mean() * left @ right


def iso_cts(matrices: list[Tensor], share: float = 0.8) -> Tensor:
    rank, tasks = min(matrices[0].shape), len(matrices)
    own = round((rank - int(rank * share)) / tasks)
    common = rank - own * tasks
    u, s, v = torch.linalg.svd(sum(matrices), full_matrices=False)
    found = [(u[:, :common], s[:common], v[:common])]
    for matrix in matrices:
        rest = matrix - u[:, :common] @ (u[:, :common].T @ matrix)
        left, sizes, right = torch.linalg.svd(rest, full_matrices=False)
        found.append((left[:, :own], sizes[:own], right[:own]))
    left, sizes, right = zip(*found, strict=True)
    return torch.cat(sizes).mean() * nearest(torch.cat(left, 1)) @ nearest(torch.cat(right))


def regmean(matrices: list[Tensor], ridge: float = 0.01) -> Tensor:
    width = matrices[0].shape[1]
    numerator, denominator = 0, 0
    for matrix in matrices:
        inputs = width * matrix.T @ matrix / matrix.square().sum() + ridge * torch.eye(width)
        numerator = numerator + matrix @ inputs
        denominator = denominator + inputs
    return torch.linalg.solve(denominator, numerator, left=False)


def wudi(matrices: list[Tensor]) -> Tensor:
    rows = torch.cat([matrix / matrix.norm() for matrix in matrices])
    products = torch.cat([matrix @ matrix.T / matrix.norm() for matrix in matrices], 1)
    left, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    return products @ left / sizes @ right


def wudi_steps(matrices: list[Tensor]) -> Tensor:
    stacked = torch.stack(matrices)
    merged = stacked.sum(0).requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=1e-5)
    for _ in range(STEPS):
        optimizer.zero_grad()
        squares = ((merged - stacked) @ stacked.mT).square().sum((1, 2)) / stacked.square().sum((1, 2))
        squares.sum().backward()
        optimizer.step()
    return merged.detach()


def scaled_by_depth(tau: Dict, layers: int, first: float = 0.1, last: float = 0.5) -> Dict:
    scaled = {}
    for key, part in tau.items():
        number = int(key.split(".")[2]) if key.startswith("encoder.layer.") else 0
        scaled[key] = part * (first + (last - first) * number / (layers - 1))
    return scaled


PLAIN: dict[str, Callable[[list[Dict]], Dict]] = {
    "task_arithmetic": task_sum,
    "mean": task_mean,
    "ties": ties,
    "dare": dare,
    "breadcrumbs": breadcrumbs,
    "consensus": consensus,
    "tsv": partial(by_matrices, rule=tsv),
    "iso_c": partial(by_matrices, rule=iso_c),
    "iso_cts": partial(by_matrices, rule=iso_cts),
    "regmean_from_vectors": partial(by_matrices, rule=regmean),
    "wudi": partial(by_matrices, rule=wudi),
    f"wudi, {STEPS} steps": partial(by_matrices, rule=wudi_steps),
}


def ours(name: str, vectors: list[TaskVector]) -> TaskVector:
    """A rule with its defaults."""
    if name == "dare":
        return merging.dare(vectors, generator=torch.Generator().manual_seed(0))
    rule, _, steps = name.partition(", ")
    return merging.RULES[rule].function(vectors, **({"steps": STEPS} if steps else {}))


# --- FusionBench -----------------------------------------------------------------------------------------


class Stand(types.ModuleType):
    """A module that stands for one of FusionBench's that is not run: it has any name, as an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def fusion_bench(folder: Path) -> dict[str, Callable[..., object]]:
    """FusionBench's functions by the name of our rule; only the files with these functions are run."""
    for name in ("", ".mixins", ".modelpool", ".utils", ".utils.type", ".utils.state_dict_arithmetic"):
        sys.modules[f"fusion_bench{name}"] = Stand(f"fusion_bench{name}")
    sys.modules["fusion_bench"].auto_register_config = lambda cls: cls
    sys.modules["fusion_bench.utils"].timeit_context = lambda *_: contextlib.nullcontext()

    def load(path: str) -> types.ModuleType:
        file = folder / "fusion_bench" / path
        name = "fusion_bench." + path.removesuffix(".py").replace("/", ".")
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None or not file.is_file():
            raise SystemExit(f"there is no {file}; install it there as the first lines of this file say")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    arithmetic = load("utils/state_dict_arithmetic.py")
    iso = load("method/isotropic_merging/iso_utils.py")
    svd = load("method/task_singular_vector/utils/TSVM_utils.py")
    trimmed = load("method/ties_merging/ties_merging_utils.py")
    dropped = load("method/dare/utils.py")
    interference = load("method/wudi/wudi.py")

    def run_ties(taus: list[Dict]) -> Tensor:
        flat = torch.vstack([trimmed.state_dict_to_vector(tau) for tau in taus])
        return trimmed.ties_merging(flat, reset_thresh=0.2, merge_func="dis-mean")

    def run_dare(taus: list[Dict]) -> Dict:
        copies = [{key: part.clone() for key, part in tau.items()} for tau in taus]
        for copy in copies:
            dropped.module_random_drop_(copy, 0.9, rescale=True)
        return arithmetic.state_dict_sum(copies)

    def run_pipeline(start: Dict, ends: list[Dict]) -> Dict:
        merged = arithmetic.state_dict_avg([arithmetic.state_dict_sub(end, start) for end in ends])
        return arithmetic.state_dict_add(start, arithmetic.state_dict_mul(merged, COEF))

    return {
        PIPELINE: run_pipeline,
        "task_arithmetic": arithmetic.state_dict_sum,
        "mean": arithmetic.state_dict_avg,
        "ties": run_ties,
        "dare": run_dare,
        "tsv": partial(svd.compute_and_sum_svd_mem_reduction, accelerator="cpu"),
        "iso_c": partial(iso.iso_c, accelerator="cpu"),
        "iso_cts": partial(iso.iso_cts, common_space_fraction=0.8, accelerator="cpu"),
        f"wudi, {STEPS} steps": partial(interference.wudi_merging, accelerator="cpu", iter_num=STEPS),
    }


# --- the table -------------------------------------------------------------------------------------------


def row(what: str, ours: float, plain: float, theirs: float | None, apart: float | None) -> dict[str, object]:
    """One line of the table; ratios above 1 say that ours is the faster one."""
    return {
        "what": what,
        "ours, s": f"{ours:.3f}",
        "plain, s": f"{plain:.3f}",
        "FusionBench, s": "" if theirs is None else f"{theirs:.3f}",
        "plain / ours": f"{plain / ours:.2f}",
        "FusionBench / ours": "" if theirs is None else f"{theirs / ours:.2f}",
        "apart": "" if apart is None else f"{apart:.0e}",
    }


def distance(first: Dict, second: Dict) -> float:
    gap = sum(float((first[key].double() - second[key].double()).square().sum()) for key in second)
    return (gap / sum(float(part.double().square().sum()) for part in second.values())) ** 0.5


def main() -> None:
    """Print the table: a row for the pipeline, one for each rule, one for scaling by depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="bert", help="its width and embeddings")
    parser.add_argument("--layers", type=int, default=2, help="two at least")
    parser.add_argument("--rules", type=lambda text: text.split(","), default=list(PLAIN))
    parser.add_argument("--fusion-bench", type=Path, metavar="FOLDER", help="where that package lies")
    options = parser.parse_args()
    start, ends = make_models(*MODELS[options.model], layers=options.layers)
    entries = sum(part.numel() for part in start.values())
    origin = records.provenance()
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    print(f"{origin['device']}, {torch.get_num_threads()} thread(s); {versions}")
    print(f"{TASKS} tasks of {entries:,} entries in {len(start)} tensors; CPU seconds, best of up to five")

    def theirs_or_none(call: Callable[[], object] | None) -> float | None:
        if call is None:
            return None
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return cpu_seconds(call)[0]

    folder = options.fusion_bench
    theirs = fusion_bench(folder) if folder else {}
    own_time, own = cpu_seconds(partial(ours_pipeline, start, ends))
    time_of_plain, result = cpu_seconds(partial(pipeline, start, ends))
    their_time = theirs_or_none(partial(theirs[PIPELINE], start, ends) if theirs else None)
    new = in_new_processes(options.model, options.layers)
    rows = [
        row(PIPELINE, own_time, time_of_plain, their_time, distance(own, result)),
        row(f"{PIPELINE}, the first time", new["ours"], new["plain"], None, None),
    ]

    taus = [{key: end[key] - start[key] for key in start} for end in ends]
    vectors = [TaskVector.between(start, end) for end in ends]
    for name in options.rules:
        own_time, merged = cpu_seconds(partial(ours, name, vectors))
        time_of_plain, result = cpu_seconds(partial(PLAIN[name], taus))
        call = partial(theirs[name], taus) if name in theirs else None
        apart = None if name == "dare" else distance(dict(merged.items()), result)
        rows.append(row(name, own_time, time_of_plain, theirs_or_none(call), apart))
        if name in SINGULAR:
            exact = [{key: part.double() for key, part in tau.items()} for tau in taus]
            time_of_plain, result = cpu_seconds(partial(PLAIN[name], exact))
            apart = distance(dict(merged.items()), result)
            rows.append(row(f"{name}, plain in float64", own_time, time_of_plain, None, apart))
        print(*rows[-1].values(), sep="  ", file=sys.stderr, flush=True)

    scaled = partial(merging.scale_by_depth, vectors[0], first=0.1, last=0.5)
    own_time, vector = cpu_seconds(scaled)
    time_of_plain, result = cpu_seconds(partial(scaled_by_depth, taus[0], layers=options.layers))
    rows.append(row("scale_by_depth", own_time, time_of_plain, None, distance(dict(vector.items()), result)))
    print(scores.table(rows))


if __name__ == "__main__":
    main()
