"""Texts as token ids, cut into pieces a second way, and what they may not depend on."""

import sys

import pytest
import torch

from taskvec_mini.benchmarks.data import VOCABULARY, VOCABULARY_SIZE, load_tokenizer

TEXTS = [
    "What caused the Lynmouth floods?",
    "i'd like 2 rooms, please -- at 4pm!",
    "a",
    "Naïve cafés re-opened; unputdownable antidisestablishmentarianism.",
]


def cut(text, vocabulary):
    """WordPiece a second way: words and marks, then always the longest piece that is in the vocabulary."""
    plain = text.lower().translate(str.maketrans("ïé", "ie"))
    spaced = "".join(c if c.isalnum() or c == " " else f" {c} " for c in plain)
    found = []
    for word in spaced.split():
        pieces, rest = [], word
        while rest:
            mark = "##" if pieces else ""
            length = next((n for n in range(len(rest), 0, -1) if mark + rest[:n] in vocabulary), 0)
            pieces.append(vocabulary.get(mark + rest[:length]))
            rest = rest[length:] if length else ""
        found += [1] if None in pieces else pieces
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_the_longest_pieces_of_the_vocabulary(text):
    tokenizer = load_tokenizer()
    (row,) = tokenizer.encode([text])
    expected = cut(text, tokenizer.wordpiece.get_vocab())
    assert row[: len(expected)].tolist() == expected
    assert int(row[len(expected) :].sum()) == 0


def test_tokens_do_not_depend_on_case_on_white_space_or_on_the_other_texts():
    tokenizer = load_tokenizer()
    together = tokenizer.encode(TEXTS)
    for row, text in zip(together, TEXTS, strict=True):
        assert torch.equal(tokenizer.encode([f"  {text.upper()} \n"])[0], row)


def test_names_of_special_tokens_in_a_text_are_text():
    rows = load_tokenizer().encode(["a [PAD] b", "a [MASK] b [UNK]"])
    assert bool((rows[:, :5] > 2).all())


def test_what_is_not_in_the_vocabulary_is_unknown_and_a_long_text_is_cut():
    rows = load_tokenizer().encode(["a 漢字 b", "word " * 100])
    assert 1 in rows[0].tolist()
    assert rows.shape == (2, 48)
    assert len(set(rows[1].tolist())) == 1


@pytest.mark.parametrize("empty", ["", "  \t\n"])
def test_a_text_without_a_token_is_refused_with_its_place(empty):
    with pytest.raises(ValueError, match=r"text 1 has no token.*leave empty texts out"):
        load_tokenizer().encode(["fine", empty])


@pytest.mark.parametrize(
    ("texts", "says"), [("one text", "put it into a list"), (["a", 3], "text 1 .* got int")]
)
def test_what_is_no_sequence_of_texts_is_refused(texts, says):
    with pytest.raises(TypeError, match=says):
        load_tokenizer().encode(texts)


def test_a_vocabulary_that_is_missing_broken_or_of_another_model_is_refused(tmp_path):
    path = tmp_path / "words.json"
    with pytest.raises(FileNotFoundError, match=r"words\.json; scripts/pretrain_pocket_text"):
        load_tokenizer(path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="is no vocabulary of tokenizers"):
        load_tokenizer(path)
    path.write_text(VOCABULARY.read_text(encoding="utf-8").replace('"[PAD]"', '"[OTHER]"'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"does not begin with \[PAD\]"):
        load_tokenizer(path)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'pip install "taskvec-mini\[text\]"'):
        load_tokenizer()


def test_every_id_is_below_the_size_that_encoders_are_made_for():
    assert load_tokenizer().wordpiece.get_vocab_size() == VOCABULARY_SIZE


@pytest.mark.parametrize("length", [3, 4, 7])
def test_a_long_text_keeps_its_marks_at_both_ends(tmp_path, length):
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
    table = {word: i for i, word in enumerate(words)}
    plain = tokenizers.Tokenizer(tokenizers.models.WordPiece(table, unk_token="[UNK]"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    plain.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    plain.enable_truncation(5)  # what the file says of lengths counts for nothing
    plain.enable_padding(length=9)
    plain.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json", max_length=length)
    rows = tokenizer.encode(["a b c d e f g h", "h"])
    assert rows.tolist()[0] == [2, *range(4, 4 + length - 2), 3]
    assert rows.tolist()[1] == [2, 11, 3] + [0] * (length - 3)
    with pytest.raises(ValueError, match=r"text 1 has no token \(' '\)"):
        tokenizer.encode(["a", " "])


def test_a_length_has_room_for_the_marks_and_a_token():
    assert load_tokenizer(max_length=3).encode(["a b c d"]).shape == (1, 3)
    with pytest.raises(ValueError, match="max_length must be at least 3"):
        load_tokenizer(max_length=2)
