"""Pretrain the `pocket-text` encoder by masked prediction; write its vocabulary, weights and record.

    python scripts/pretrain_pocket_text.py --data FOLDER --work FOLDER

The folder of the data has a folder `text` with `pretrain.txt.gz`, one paragraph a line, and with the tasks.
Of the tasks only the training files are learnt from, and of those only the texts, no labels. Of the tokens
30% are hidden, and the encoder learns to name them from the rest (Devlin et al. 2019, arXiv:1810.04805).
A second, smaller term of the loss asks that two neighbouring pieces of a paragraph, or two maskings of a
short line, have nearer embeddings than the other pieces of the batch (Gao et al. 2021, arXiv:2104.08821);
masked prediction alone says little about the mean over the tokens. All pieces of a batch have one length,
so no padding is computed. What is shipped is a running average of the weights.

A run that stops is taken up again at its last checkpoint by the same command. One core needs half an hour.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gzip
import itertools
import math
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from taskvec_mini import _files, records
from taskvec_mini.benchmarks.data import (
    MAX_LENGTH,
    SPECIAL,
    VOCABULARY,
    VOCABULARY_SIZE,
    Tokenizer,
    load_tasks,
    load_tokenizer,
)
from taskvec_mini.benchmarks.encoders import load_backbone
from taskvec_mini.benchmarks.encoders.pocket_text import PocketText, draw_weights
from taskvec_mini.benchmarks.evaluation.accuracy import accuracies
from taskvec_mini.benchmarks.heads import linear_probe, prototype_head

OUT = Path(__file__).resolve().parents[1] / "taskvec_mini" / "benchmarks"
SHORT, SHORTEST = 32, 3  # tokens: up to SHORT a line is one piece; below SHORTEST it is left out
HELD_OUT = 100  # each hundredth line is only for measuring
HIDDEN_SHARE, KEEP, SWAP = 0.3, 0.1, 0.1  # of the hidden tokens a tenth stays, a tenth becomes another
TEMPERATURE, AVERAGE, WARM_UP = 0.07, 0.995, 0.04
MASK = SPECIAL.index("[MASK]")
PROBED = ("trec6", "agnews", "banking77", "clinc10", "dbpedia14", "sst2")
SHOTS = 5


def main() -> None:
    """Read the texts, learn the vocabulary once, train, write, measure."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    files = [options.data / "text" / "pretrain.txt.gz", *sorted((options.data / "text").glob("*.train.tsv"))]
    options.sources = {path.name: _files.sha256(path) for path in files}
    training, modern, held_out = read_texts(files[0], files[1:])
    everything = training + modern * options.modern_weight
    key = (
        f"{zlib.crc32(str((options.sources, options.modern_weight)).encode()):08x}"  # of other texts, others
    )
    vocabulary = options.work / f"vocabulary-{key}.json"
    if not vocabulary.exists():
        with _files.replacing(vocabulary) as place:
            learn_vocabulary(training + modern, place)
    tokenizer = load_tokenizer(vocabulary)
    pieces = _cached(options.work / f"pieces-{key}.pt", lambda: gather(tokenizer, everything))
    progress = train(Pretrainer(frequencies(pieces), options), pieces, options)
    scores = measure(progress["average"], gather(tokenizer, held_out), pieces, options)
    write(progress, scores, vocabulary, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder whose folder `text` has the texts"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, to take up again")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--neighbours", type=float, default=0.5, help="weight of the second term")
    parser.add_argument("--modern-weight", type=int, default=2, help="how often a pass has a task's text")
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument(
        "--probe", nargs="*", default=PROBED, metavar="TASK", help="tasks measured at the end"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def settings(options: argparse.Namespace) -> dict:
    """What was chosen, without places."""
    places = ("data", "work", "sources")
    return {k: list(v) if k == "probe" else v for k, v in vars(options).items() if k not in places}


def generator(*words: object) -> torch.Generator:
    """A generator for one purpose, the same after a run was taken up again."""
    return torch.Generator().manual_seed(zlib.crc32(" ".join(map(str, words)).encode()))


# --- texts -----------------------------------------------------------------------------------------------


def read_texts(text: Path, files: list[Path]) -> tuple[list[str], list[str], list[str]]:
    """Lines of the large text, texts of the tasks, and each hundredth of both, which is held out."""
    with gzip.open(text, "rt", encoding="utf-8") as lines:
        large = dict.fromkeys(line.strip().lower() for line in lines)
    small = {}
    for path in files:
        with path.open(encoding="utf-8", newline="") as rows:
            table = csv.DictReader(rows, delimiter="\t", quoting=csv.QUOTE_NONE)
            small.update(dict.fromkeys(row["text"].strip().lower() for row in table))
    parts = [list(large), [line for line in small if line not in large]]
    held_out = [line for part in parts for line in part[::HELD_OUT]]
    training = [[line for i, line in enumerate(part) if i % HELD_OUT] for part in parts]
    return training[0], training[1], held_out


def learn_vocabulary(texts: list[str], path: Path) -> None:
    """WordPiece on lower-cased words and single marks of punctuation."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL),
        limit_alphabet=100,
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    words.save(str(path), pretty=False)


def gather(tokenizer: Tokenizer, texts: list[str]) -> dict[int, Tensor]:
    """By length L, pairs of pieces (P, 2, L) of token ids; both of a pair come from one text."""
    found: dict[int, list[list[int]]] = {}
    for encoding in tokenizer.wordpiece.encode_batch_fast(texts):
        for pair in cut(encoding.ids):
            found.setdefault(len(pair) // 2, []).append(pair)
    return {
        length: torch.tensor(pairs, dtype=torch.int16).unflatten(1, (2, length))
        for length, pairs in sorted(found.items())
    }


def frequencies(pieces: dict[int, Tensor]) -> Tensor:
    """The share of each token, of those that never occur too as if they had once."""
    counts = torch.ones(VOCABULARY_SIZE, dtype=torch.float64)
    for pairs in pieces.values():
        counts += torch.bincount(pairs.flatten().long(), minlength=len(counts))
    return counts / counts.sum()


def cut(ids: list[int]) -> list[list[int]]:
    """Each pair one list: the line twice if it is short, else neighbouring pieces of equal length."""
    if len(ids) < SHORTEST:
        return []
    if len(ids) <= SHORT:
        return [ids + ids]
    pairs = math.ceil(len(ids) / (2 * MAX_LENGTH))
    length = len(ids) // (2 * pairs)
    return [ids[i * 2 * length : (i + 1) * 2 * length] for i in range(pairs)]


def batches(pieces: dict[int, Tensor], options: argparse.Namespace) -> Iterator[Tensor]:
    """Batches (P, 2, L) without end, pass after pass in an order of its own; L differs between batches."""
    for turn in itertools.count():
        order = generator("order", options.seed, turn)
        parts = []
        for length, pairs in pieces.items():
            shuffled = torch.randperm(len(pairs), generator=order)
            size = max(2, options.batch_tokens // (2 * length))
            parts += [(length, index) for index in shuffled.split(size) if len(index) >= size / 2]
        for i in torch.randperm(len(parts), generator=order).tolist():
            length, index = parts[i]
            yield pieces[length][index].long()


def hide(tokens: Tensor, draws: torch.Generator, vocabulary_size: int) -> tuple[Tensor, Tensor]:
    """The tokens with some hidden, and which ones have to be named (at least one)."""
    asked = torch.rand(tokens.shape, generator=draws) < HIDDEN_SHARE
    asked[0, 0] |= ~asked.any()
    fate = torch.rand(tokens.shape, generator=draws)
    others = torch.randint(len(SPECIAL), vocabulary_size, tokens.shape, generator=draws)
    given = torch.where(fate < KEEP, tokens, torch.where(fate < KEEP + SWAP, others, MASK))
    return torch.where(asked, given, tokens), asked


# --- training --------------------------------------------------------------------------------------------


class Pretrainer(nn.Module):
    """The encoder with what only pretraining needs: from a hidden token's state to the token's name."""

    def __init__(self, shares: Tensor, options: argparse.Namespace):
        super().__init__()
        self.encoder = PocketText()
        width = self.encoder.norm.normalized_shape[0]
        self.change = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.shift = nn.Parameter(shares.log().float())  # or the first minutes would go into frequencies
        self.neighbours = options.neighbours
        draw_weights(self, generator("weights", options.seed))

    def forward(self, pairs: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The two terms of the loss, and the share of hidden tokens named right."""
        tokens = pairs.flatten(0, 1)
        given, asked = hide(tokens, draws, len(self.shift))
        states = self.encoder.states(given)
        names = self.encoder.tokens.weight
        logits = F.linear(self.change(states[asked]) * names.shape[1] ** -0.5, names, self.shift)
        named = F.cross_entropy(logits, tokens[asked])
        right = (logits.argmax(1) == tokens[asked]).float().mean()
        first, second = F.normalize(states.mean(1), dim=1).unflatten(0, (-1, 2)).unbind(1)
        likeness, own = first @ second.T / TEMPERATURE, torch.arange(len(first))
        near = (F.cross_entropy(likeness, own) + F.cross_entropy(likeness.T, own)) / 2
        return named, near, right


def train(model: Pretrainer, pieces: dict[int, Tensor], options: argparse.Namespace) -> dict:
    """Train to the last step, with checkpoints; the running average and what it cost."""
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=options.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=options.weight_decay,
        fused=True,
    )
    state = {"model": model, "average": average, "optimizer": optimizer}
    done, seconds = _take_up(state, options)
    begun, sums, tokens = time.perf_counter() - seconds, torch.zeros(3), 0
    for step, pairs in enumerate(itertools.islice(batches(pieces, options), options.steps)):
        if step < done:
            continue
        sums += update(model, average, optimizer, pairs, step, options)
        tokens += pairs.numel()
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == options.steps:
            seconds = time.perf_counter() - begun
            _keep(state, step + 1, seconds, options)
            means = [round(value, 3) for value in (sums / (step + 1 - done)).tolist()]
            print(f"step {step + 1}/{options.steps}  {means}  {tokens} tokens  {seconds:.0f} s", flush=True)
            done, sums, tokens = step + 1, torch.zeros(3), 0
    return {"average": average, "seconds": seconds}


def update(
    model: Pretrainer,
    average: Pretrainer,
    optimizer: torch.optim.Optimizer,
    pairs: Tensor,
    step: int,
    options: argparse.Namespace,
) -> Tensor:
    """One step; both terms and the share named right."""
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * rate(step / options.steps)
    named, near, right = model(pairs, generator("masks", options.seed, step))
    optimizer.zero_grad()
    (named + options.neighbours * near).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        share = 1 - min(AVERAGE, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
    return torch.stack([named, near, right]).detach()


def rate(share: float) -> float:
    """Of the highest rate, at this share of the steps: a linear warm-up, then half a cosine to zero."""
    if share < WARM_UP:
        return (share + 1e-3) / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))


def _take_up(state: dict, options: argparse.Namespace) -> tuple[int, float]:
    path = options.work / "checkpoint.pt"
    if not path.exists():
        return 0, 0.0
    saved = torch.load(path, weights_only=True)
    for name, value in _identity(options).items():
        if saved["identity"].get(name) != value:
            raise ValueError(
                f"{path} belongs to a run whose {name} is {saved['identity'].get(name)}, not {value}; "
                "choose another folder with --work"
            )
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return saved["done"], saved["seconds"]


def _keep(state: dict, done: int, seconds: float, options: argparse.Namespace) -> None:
    kept = {name: part.state_dict() for name, part in state.items()}
    kept |= {"done": done, "seconds": seconds, "identity": _identity(options)}
    with _files.replacing(options.work / "checkpoint.pt") as place:
        torch.save(kept, place)


def _identity(options: argparse.Namespace) -> dict:
    free = ("probe", "checkpoint_every", "threads")
    chosen = {name: value for name, value in settings(options).items() if name not in free}
    return {**chosen, **options.sources}


# --- what is written -------------------------------------------------------------------------------------


@torch.no_grad()
def measure(
    model: Pretrainer, held_out: dict[int, Tensor], pieces: dict[int, Tensor], options: argparse.Namespace
) -> dict:
    """On held-out text: the share of hidden tokens named right, and their mean cross-entropy in nats.

    Beside it what naming the commonest token each time gets right.
    """
    sums, count, common = torch.zeros(2, dtype=torch.float64), 0, 0
    commonest = int(frequencies(pieces).argmax())
    for length, pairs in held_out.items():
        named, _, right = model(pairs.long(), generator("held out", options.seed, length))
        sums += pairs.numel() * torch.stack([named, right])
        count += pairs.numel()
        common += int((pairs == commonest).sum())
    loss, accuracy = (sums / count).tolist()
    scores = {
        "masked_accuracy": accuracy,
        "masked_cross_entropy": loss,
        "commonest_token_share": common / count,
    }
    return {"held_out_tokens": count, **scores}


def probe(names: list[str], folder: Path) -> dict:
    """Test accuracies of frozen embeddings, pretrained and random: linear, and means of a few examples."""
    found = {}
    for name, task in load_tasks(names, suite="text", folder=folder).items() if names else ():
        found[name] = {}
        for encoder in ("pocket-text", "random-pocket-text"):
            backbone = load_backbone(encoder)
            head = prototype_head(backbone, task, shots=SHOTS)
            found[name][encoder] = {
                "linear_probe": linear_probe(backbone, task).accuracy,
                f"prototypes_of_{SHOTS}": accuracies(backbone, {name: head}, {name: task})[name],
            }
        print(name, found[name], flush=True)
    return found


def write(progress: dict, scores: dict, vocabulary: Path, options: argparse.Namespace) -> None:
    """The encoder in float16 and its vocabulary, then a record of how they were made and what they can do."""
    encoder = progress["average"].encoder.state_dict()
    state = {name: value.half().contiguous() for name, value in encoder.items()}
    weights = OUT / "encoders" / "weights" / "pocket_text.safetensors"
    record = weights.with_suffix(".json")
    with _files.replacing(weights) as place:
        save_file(state, place)
    _files.write_text(OUT / "data" / VOCABULARY.name, vocabulary.read_text(encoding="utf-8"))
    results = {
        "parameters": sum(value.numel() for value in state.values()),
        **scores,
        "sha256": _files.sha256(weights),
        "vocabulary_sha256": _files.sha256(vocabulary),
    }
    about = {
        "command": "python scripts/pretrain_pocket_text.py --data $TASKVEC_MINI_DATA --work local/pocket-text"
        f" --steps {options.steps}",
        "seeds": [options.seed],
        "seconds": round(progress["seconds"], 1),
        "settings": settings(options),
        "data": options.sources,
    }
    records.write(record, results, **about)  # the encoder cannot be loaded, and so not probed, without it
    results["probes"] = probe(options.probe, options.data)
    records.write(record, results, **about)
    print(results)


def _cached(path: Path, compute: Callable[[], dict[int, Tensor]]) -> dict[int, Tensor]:
    if not path.exists():
        with _files.replacing(path) as place:
            torch.save(compute(), place)
    return torch.load(path, weights_only=True)


if __name__ == "__main__":
    main()
