"""The pretraining of the text encoder: what it learns from, what it hides, and that a stop changes no bit."""

import argparse
import gzip
import itertools
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from scripts import pretrain_pocket_text as pretrain
from taskvec_mini import _files, records
from taskvec_mini.benchmarks.encoders.pocket_text import PocketText

WORDS = 40  # entries of the tiny vocabulary


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A tiny encoder and a tiny vocabulary."""
    resize(monkeypatch, WORDS)


def resize(monkeypatch, size):
    monkeypatch.setattr(pretrain, "VOCABULARY_SIZE", size)
    monkeypatch.setattr(pretrain, "PocketText", partial(PocketText, vocabulary_size=size, width=8, layers=1))


def options(work, **changes):
    chosen = {
        "work": work, "steps": 6, "batch_tokens": 64, "learning_rate": 3e-2, "weight_decay": 0.01,
        "neighbours": 0.5, "modern_weight": 2, "checkpoint_every": 2, "probe": [], "threads": 1, "seed": 3,
        "sources": {"text": "0" * 64},
    }  # fmt: skip
    return argparse.Namespace(**{**chosen, **changes})


def counting(lines=30, length=10):
    """Pieces in which each token is the one before plus one, so that neighbours tell what is hidden."""
    starts = torch.randint(3, WORDS - 2 * length, (lines, 1), generator=torch.Generator().manual_seed(1))
    return {length: (starts + torch.arange(2 * length)).to(torch.int16).unflatten(1, (2, length))}


def trained(pieces, chosen):
    return pretrain.train(pretrain.Pretrainer(pretrain.frequencies(pieces), chosen), pieces, chosen)


# --- texts to pieces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 2, 3, 32, 33, 60, 96, 97, 200, 500])
def test_a_line_is_cut_into_pairs_of_equal_neighbours_and_nearly_nothing_is_lost(count):
    ids = list(range(count))
    pairs = pretrain.cut(ids)
    if count < 3:
        assert pairs == []
    elif count <= 32:
        assert pairs == [ids + ids]
    else:
        joined = list(itertools.chain(*pairs))
        assert joined == ids[: len(joined)]
        assert count - len(joined) < 2 * len(pairs)
        assert len({len(pair) for pair in pairs}) == 1
        assert len(pairs[0]) % 2 == 0
        assert 16 <= len(pairs[0]) // 2 <= 48


def test_a_pass_has_each_pair_at_most_once_in_batches_of_one_length_and_no_order_twice(tmp_path):
    pieces = {n: torch.arange(3, 3 + 2 * n * 50).to(torch.int16).reshape(50, 2, n) for n in (4, 7)}
    stream = pretrain.batches(pieces, options(tmp_path))
    sizes = {4: 64 // 8, 7: 64 // 14}
    passes = []
    for _ in range(2):
        batches = list(itertools.islice(stream, 6 + 13))
        assert all(len(batch) <= sizes[batch.shape[2]] for batch in batches)
        seen = [(batch.shape[2], int(row[0, 0])) for batch in batches for row in batch]
        assert len(set(seen)) == len(seen) == 48 + 50
        passes.append(seen)
    assert passes[0] != passes[1]
    again = pretrain.batches(pieces, options(tmp_path))
    assert all(
        torch.equal(next(again), batch)
        for batch in itertools.islice(pretrain.batches(pieces, options(tmp_path)), 30)
    )


def test_shares_of_tokens_are_counted(tmp_path):
    found = pretrain.frequencies({2: torch.tensor([[[3, 3], [4, 3]]], dtype=torch.int16)})
    assert (found * (WORDS + 4)).tolist() == pytest.approx([1, 1, 1, 4, 2] + [1] * (WORDS - 5))


def test_three_tenths_are_hidden_of_which_eight_tenths_are_masked():
    tokens = torch.full((400, 100), 7)
    given, asked = pretrain.hide(tokens, torch.Generator().manual_seed(0), WORDS)
    hidden = given[asked]
    assert bool((given[~asked] == 7).all())
    assert float(asked.float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float((hidden == pretrain.MASK).float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((hidden == 7).float().mean()) == pytest.approx(0.1 + 0.1 / (WORDS - 3), abs=0.01)
    assert int(hidden.min()) == pretrain.MASK
    assert hidden.unique().tolist() == list(range(2, WORDS))


def test_something_is_always_hidden():
    for seed in range(9):
        _, asked = pretrain.hide(torch.full((1, 2), 7), torch.Generator().manual_seed(seed), WORDS)
        assert bool(asked.any())


# --- training --------------------------------------------------------------------------------------------


def test_the_first_term_is_the_cross_entropy_of_the_hidden_tokens_alone(tmp_path):
    pieces = {8: torch.randint(3, 9, (30, 2, 8), generator=torch.Generator().manual_seed(0))}
    shares = pretrain.frequencies(pieces)
    model = pretrain.Pretrainer(shares, options(tmp_path))
    tokens = pieces[8].flatten(0, 1)
    given, asked = pretrain.hide(tokens, torch.Generator().manual_seed(5), WORDS)
    with torch.no_grad():
        named, _, right = model(pieces[8], torch.Generator().manual_seed(5))
        changed = model.change(model.encoder.states(given)) @ model.encoder.tokens.weight.T / 8**0.5
        chances = (changed + shares.log()).softmax(2)
    own = chances.gather(2, tokens[..., None])[..., 0]
    assert float(named) == pytest.approx(float(-own[asked].log().mean()), rel=1e-4)
    assert float(right) == pytest.approx(float((chances.argmax(2) == tokens)[asked].double().mean()))


def test_the_second_term_is_the_cross_entropy_of_finding_the_other_piece_both_ways(tmp_path):
    pieces = counting(5)
    model = pretrain.Pretrainer(pretrain.frequencies(pieces), options(tmp_path))
    pairs = pieces[10].long()
    given, _ = pretrain.hide(pairs.flatten(0, 1), torch.Generator().manual_seed(5), WORDS)
    with torch.no_grad():
        _, near, _ = model(pairs, torch.Generator().manual_seed(5))
        rows = model.encoder(given)
    likeness = torch.nn.functional.cosine_similarity(rows[0::2, None], rows[None, 1::2], dim=2) / 0.07
    ways = [(part.logsumexp(1) - part.diag()).mean() for part in (likeness, likeness.T)]
    assert float(near) == pytest.approx(float(sum(ways)) / 2, rel=1e-4)


def test_masked_prediction_is_learnt_and_both_terms_fall(tmp_path):
    pieces, chosen = counting(), options(tmp_path, steps=150, checkpoint_every=150, batch_tokens=200)
    before = pretrain.Pretrainer(pretrain.frequencies(pieces), chosen)
    after = trained(pieces, chosen)["average"]
    with torch.no_grad():
        terms = [model(pieces[10].long(), torch.Generator().manual_seed(9)) for model in (before, after)]
    assert float(terms[1][0]) < 0.8 * float(terms[0][0])
    assert float(terms[1][1]) < float(terms[0][1])
    scores = pretrain.measure(after, pieces, pieces, chosen)
    assert scores["masked_accuracy"] > scores["commonest_token_share"]
    assert scores["held_out_tokens"] == pieces[10].numel()


def test_the_rate_rises_to_one_then_falls_to_nothing():
    rates = [pretrain.rate(share / 1000) for share in range(1001)]
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(1, abs=0.03)
    assert top == pytest.approx(40, abs=1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_that_stopped_is_taken_up_to_the_same_bits(tmp_path, monkeypatch, stop):
    pieces, whole, broken = counting(), options(tmp_path / "a"), options(tmp_path / "b")
    for each in (whole, broken):
        each.work.mkdir()
    expected = trained(pieces, whole)["average"].state_dict()
    update = pretrain.update

    def stopping(model, average, optimizer, pairs, step, chosen):
        if step == stop:
            raise KeyboardInterrupt
        return update(model, average, optimizer, pairs, step, chosen)

    monkeypatch.setattr(pretrain, "update", stopping)
    with pytest.raises(KeyboardInterrupt):
        trained(pieces, broken)
    steps = []
    monkeypatch.setattr(pretrain, "update", lambda *given: steps.append(given[4]) or update(*given))
    found = trained(pieces, broken)["average"].state_dict()
    assert steps == list(range(stop - stop % 2, 6))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_checkpoint_of_other_settings_or_other_texts_is_refused(tmp_path):
    pieces = counting()
    trained(pieces, options(tmp_path))
    trained(pieces, options(tmp_path, threads=2, checkpoint_every=1, probe=["sst2"]))
    with pytest.raises(ValueError, match=r"run whose steps is 6, not 8; choose another folder with --work"):
        trained(pieces, options(tmp_path, steps=8))
    with pytest.raises(ValueError, match="run whose text is 000"):
        trained(pieces, options(tmp_path, sources={"text": "1" * 64}))


# --- the whole command -----------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    """Sentences and two tasks; a word that stands in a test file alone."""
    folder = tmp_path / "data" / "text"
    folder.mkdir(parents=True)
    lines = [f"The {size} cat {i} sat on a mat and ate." for i in range(40) for size in ("big", "old", "red")]
    (folder / "pretrain.txt.gz").write_bytes(gzip.compress("\n".join([*lines, *lines]).encode()))
    rows = "".join(f'is {i} a cat?\tyes\nthe cat 1 is {i} "\tno\n' for i in range(60))
    (folder / "cats.train.tsv").write_text("text\tlabel\n" + rows, encoding="utf-8")
    (folder / "cats.test.tsv").write_text("text\tlabel\nzzzzzz\tyes\n", encoding="utf-8")
    return folder.parent


def test_lines_are_read_once_and_each_hundredth_is_held_out(data):
    text = data / "text"
    training, modern, held_out = pretrain.read_texts(text / "pretrain.txt.gz", [text / "cats.train.tsv"])
    assert (len(training), len(modern), len(held_out)) == (118, 118, 4)
    assert not set(held_out) & {*training, *modern}
    assert held_out[0] == "the big cat 0 sat on a mat and ate."
    assert 'the cat 1 is 7 "' in modern


def test_the_command_writes_weights_vocabulary_and_record(data, tmp_path, monkeypatch):
    resize(monkeypatch, 90)  # all letters have to be in
    weights = tmp_path / "out" / "encoders" / "weights"
    weights.mkdir(parents=True)
    (tmp_path / "out" / "data").mkdir()
    monkeypatch.setattr(pretrain, "OUT", tmp_path / "out")
    words = [
        "--data",
        str(data),
        "--work",
        str(tmp_path / "work"),
        "--steps",
        "4",
        "--batch-tokens",
        "128",
        "--probe",
    ]
    monkeypatch.setattr("sys.argv", ["pretrain_pocket_text.py", *words])
    written = []
    for _ in range(2):  # the second time from the last checkpoint
        pretrain.main()
        written.append({path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")})
        assert "zzzz" not in written[0]["pocket_text_vocabulary.json"].decode()
    assert len(written[0]) == 3
    for name in ("pocket_text.safetensors", "pocket_text_vocabulary.json"):
        assert written[0][name] == written[1][name]
    record = records.read(weights / "pocket_text.json")
    tensors = load_file(weights / "pocket_text.safetensors")
    assert record["results"]["parameters"] == sum(value.numel() for value in tensors.values())
    assert {str(value.dtype) for value in tensors.values()} == {"torch.float16"}
    assert record["results"]["sha256"] == _files.sha256(weights / "pocket_text.safetensors")
    assert record["data"].keys() == {"pretrain.txt.gz", "cats.train.tsv"}
    assert record["settings"]["steps"] == 4
    assert str(tmp_path) not in str(record)
