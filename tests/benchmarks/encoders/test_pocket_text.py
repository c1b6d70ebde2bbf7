"""The text encoder: its function and its tokens computed a second way, and what neither may depend on."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call

from taskvec_mini import _files, networks, records
from taskvec_mini.benchmarks.data import VOCABULARY, TextTask, load_tokenizer
from taskvec_mini.benchmarks.encoders import embed, load_backbone, pocket_text
from taskvec_mini.benchmarks.encoders.pocket_text import (
    HEADS,
    PocketText,
    draw_weights,
    nearness,
)
from taskvec_mini.benchmarks.encoders.pocket_text import (
    POCKET_TEXT_WEIGHTS as WEIGHTS,
)
from taskvec_mini.benchmarks.heads import prototype_head

TEXTS = [
    "What caused the Lynmouth floods?",
    "i'd like 2 rooms, please -- at 4pm!",
    "a",
    "Naïve cafés re-opened; unputdownable antidisestablishmentarianism.",
]


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(seed=0, **sizes):
    """A small encoder in float64 in which no scale is 1 and no shift is 0."""
    model = PocketText(**{"vocabulary_size": 20, "width": 8, "layers": 2, "max_length": 9, **sizes})
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.5, generator=source(seed))
    return model.double()


def ids(*rows):
    """Token ids, filled up with zeros."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("pocket-text")


# --- the function, computed a second way -----------------------------------------------------------------


def normed(row, norm):
    centred = row - row.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * norm.weight + norm.bias


def mixed(rows, block):
    """Attention, one token and one head at a time."""
    parts = [block.mix.weight @ normed(row, block.norm1) + block.mix.bias for row in rows]
    asked, offered, told = (
        torch.stack(part) for part in zip(*(part.chunk(3) for part in parts), strict=True)
    )
    share = rows.shape[1] // len(HEADS)
    results = torch.zeros_like(rows)
    for h, (first, slope) in enumerate(HEADS):
        own = slice(h * share, (h + 1) * share)
        for i in range(len(rows)):
            scores = [
                asked[i, own] @ offered[j, own] / share**0.5 - slope * abs(j - i - first)
                for j in range(len(rows))
            ]
            weights = torch.stack(scores).exp()
            results[i, own] = (weights / weights.sum()) @ told[:, own]
    return torch.stack([block.join.weight @ row + block.join.bias for row in results])


def embedded(model, tokens):
    """The embedding of one text without padding."""
    rows = torch.stack([model.tokens.weight[t] + model.positions[i] for i, t in enumerate(tokens)])
    for block in model.blocks:
        rows = rows + mixed(rows, block)
        wide = [block.widen.weight @ normed(row, block.norm2) + block.widen.bias for row in rows]
        bent = [x * (1 + torch.erf(x / 2**0.5)) / 2 for x in wide]
        rows = rows + torch.stack([block.narrow.weight @ x + block.narrow.bias for x in bent])
    return torch.stack([normed(row, model.norm) for row in rows]).mean(0)


def test_its_function_agrees_with_a_second_plain_computation_whatever_the_padding():
    model, rows = tiny(), ([3, 7, 7, 19, 1], [5], [2, 4, 6])
    expected = torch.stack([embedded(model, row) for row in rows])
    torch.testing.assert_close(model(ids(*rows)), expected)
    torch.testing.assert_close(model(ids(*rows, [1] * 9))[:3], expected)


def test_without_padding_in_the_batch_it_is_the_same_function():
    model, rows = tiny(), ([3, 7, 7], [5, 1, 2])
    torch.testing.assert_close(model(ids(*rows)), torch.stack([embedded(model, row) for row in rows]))


def test_padding_has_no_gradient_and_changes_none():
    model = tiny()
    named = dict(model.named_parameters())
    gradients = [
        torch.autograd.grad(model(tokens).square().sum(), list(named.values()))
        for tokens in (ids([3, 4]), ids([3, 4, 0, 0, 0]))
    ]
    for short, long in zip(*gradients, strict=True):
        torch.testing.assert_close(short, long)
    table = dict(zip(named, gradients[1], strict=True))["tokens.weight"]
    assert table.abs().sum(1).nonzero().flatten().tolist() == [3, 4]


def test_the_order_of_the_words_counts():
    model = tiny()
    one, other = model(ids([3, 4, 5], [5, 4, 3])).detach()
    assert float((one - other).abs().max()) > 1e-3


def test_two_heads_begin_beside_the_token_and_all_look_less_at_what_is_further_away():
    bias = nearness(9)[0]
    assert bias.argmax(2)[0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert bias.argmax(2)[1].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    for head in (2, 3):
        assert torch.equal(bias[head], bias[head].T)
        assert bias[head, 0].diff().max() < 0
    assert float(bias.max()) == 0


def test_its_gradient_agrees_with_finite_differences():
    model, tokens = tiny(), ids([3, 7, 7, 19], [5, 2])
    theta = networks.flatten(model).requires_grad_()
    direction = torch.randn(len(theta), generator=source(2), dtype=torch.float64)

    def loss(at):
        return functional_call(model, networks.unflatten(model, at), (tokens,)).square().sum()

    (gradient,) = torch.autograd.grad(loss(theta), theta)
    step = 1e-6
    measured = (loss(theta + step * direction) - loss(theta - step * direction)) / (2 * step)
    torch.testing.assert_close(gradient @ direction, measured, rtol=1e-6, atol=0)


def test_initial_weights_have_the_deviations_that_are_promised():
    model = PocketText()
    draw_weights(model, source())
    block = model.blocks[0]
    model.requires_grad_(False)
    found = {"tokens": model.tokens.weight, "mix": block.mix.weight, "narrow": block.narrow.weight}
    expected = {"tokens": 1.0, "mix": 0.5 / 128**0.5, "narrow": 0.5 / 512**0.5}
    assert {name: float(part.std()) for name, part in found.items()} == pytest.approx(expected, rel=0.02)
    assert float(model.positions.std()) == pytest.approx(0.1, rel=0.05)
    assert float(block.mix.bias.abs().max()) == 0


# --- token ids as the model wants them -------------------------------------------------------------------


def test_columns_of_padding_are_cut_and_tokens_beyond_the_last_place(backbone):
    tokens = torch.randint(3, 8000, (3, 60), generator=source())
    assert torch.equal(backbone.prepare(tokens), tokens[:, :48])
    tokens[:, 5:] = 0
    tokens[1, 2:] = 0
    assert torch.equal(backbone.prepare(tokens), tokens[:, :5])


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_token_ids_may_be_whole_numbers_of_any_size(backbone, dtype):
    prepared = backbone.prepare(ids([7999, 4], [5]).to(dtype))
    assert prepared.dtype == torch.int64
    assert prepared.tolist() == [[7999, 4], [5, 0]]


def test_an_embedding_does_not_depend_on_the_other_texts_nor_on_training(backbone):
    tokens = backbone.tokenize([*TEXTS, "long " * 60])
    together = embed(backbone, tokens)
    alone = torch.cat([embed(backbone, row[None]) for row in tokens])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.model.train()(backbone.prepare(tokens)), together)
    backbone.model.eval()


@pytest.mark.parametrize(
    ("tokens", "kind", "says"),
    [
        (ids([1]).float(), TypeError, r"got torch.float32; tokenize\(texts\)"),
        (["a text"], TypeError, "got list"),
        (torch.ones(3, dtype=torch.int32), ValueError, r"the shape \(3,\)"),
        (torch.ones(0, 4, dtype=torch.int32), ValueError, r"the shape \(0, 4\)"),
        (ids([3], [8000]), ValueError, "from 3 to 8000, but the vocabulary from 0 to 7999"),
        (ids([3], [-1]), ValueError, "from -1 to 3"),
        (ids([3], [0]), ValueError, "text 1 is all padding"),
        (ids([3], [0] * 48 + [3]), ValueError, "text 1 is all padding"),
    ],
)
def test_what_are_no_tokens_of_this_vocabulary_is_refused(backbone, tokens, kind, says):
    with pytest.raises(kind, match=says):
        backbone.prepare(tokens)


def test_the_preparation_tells_length_and_vocabulary_and_is_json(backbone):
    assert json.loads(json.dumps(backbone.preparation)) == [48, _files.sha256(VOCABULARY)]


# --- loading ---------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path):
    """Copies of the weights, the record and the vocabulary."""
    for path in (WEIGHTS, WEIGHTS.with_suffix(".json"), VOCABULARY):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_the_shipped_encoder_is_the_recorded_one(backbone):
    results = records.read(WEIGHTS.with_suffix(".json"))["results"]
    assert _files.sha256(WEIGHTS) == results["sha256"]
    assert _files.sha256(VOCABULARY) == results["vocabulary_sha256"] == load_tokenizer().sha256
    assert len(networks.flatten(backbone.model)) == results["parameters"]
    assert WEIGHTS.stat().st_size + VOCABULARY.stat().st_size < 6e6
    for name, stored in load_file(WEIGHTS).items():
        assert torch.equal(backbone.model.state_dict()[name], stored.float())
    assert load_tokenizer().wordpiece.get_vocab_size() == backbone.model.tokens.num_embeddings


def test_the_record_says_that_pretraining_helped():
    results = records.read(WEIGHTS.with_suffix(".json"))["results"]
    assert results["masked_accuracy"] > 2 * results["commonest_token_share"]
    for measure in ("linear_probe", "prototypes_of_5"):  # on average: on one task of six it does not
        means = [
            sum(task[name][measure] for task in results["probes"].values()) / len(results["probes"])
            for name in ("pocket-text", "random-pocket-text")
        ]
        assert means[0] > means[1] + 0.03


def test_it_is_loaded_from_another_folder_and_gives_the_same(backbone, copied):
    other = load_backbone("pocket-text", weights=copied / WEIGHTS.name)
    assert other.vocabulary == copied / VOCABULARY.name
    assert torch.equal(networks.flatten(other.model), networks.flatten(backbone.model))
    assert torch.equal(other.tokenize(TEXTS), backbone.tokenize(TEXTS))


@pytest.mark.parametrize("suffix", [".safetensors", ".json", "_vocabulary.json"])
def test_a_missing_file_is_named(copied, suffix):
    (copied / f"pocket_text{suffix}").unlink()
    with pytest.raises(FileNotFoundError, match=f"pocket_text{suffix}; scripts/pretrain_pocket_text.py"):
        load_backbone("pocket-text", weights=copied / WEIGHTS.name)


@pytest.mark.parametrize("suffix", [".safetensors", "_vocabulary.json"])
def test_a_changed_file_is_refused(copied, suffix):
    path = copied / f"pocket_text{suffix}"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match=f"pocket_text{suffix} is truncated or corrupted .* should be"):
        load_backbone("pocket-text", weights=copied / WEIGHTS.name)


@pytest.mark.parametrize("content", [{"other": torch.zeros(2)}, None])
def test_a_file_of_other_weights_is_refused_even_with_its_own_record(copied, content):
    path, record = copied / WEIGHTS.name, copied / WEIGHTS.with_suffix(".json").name
    path.write_bytes(b"nothing") if content is None else save_file(content, path)
    told = json.loads(record.read_text(encoding="utf-8"))
    told["results"]["sha256"] = _files.sha256(path)
    record.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ValueError, match="does not hold the weights of pocket-text"):
        load_backbone("pocket-text", weights=path)


def test_the_random_encoder_is_the_same_at_every_call_and_another_than_the_pretrained(backbone):
    one, two = (load_backbone("random-pocket-text") for _ in range(2))
    assert torch.equal(networks.flatten(one.model), networks.flatten(two.model))
    assert not torch.equal(networks.flatten(one.model), networks.flatten(backbone.model))
    assert one.preparation == backbone.preparation


def test_what_makes_no_sense_for_it_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r'reads no weights.*ask for "pocket-text"'):
        load_backbone("random-pocket-text", weights="some.safetensors")
    with pytest.raises(ValueError, match="takes texts, which have no image_size"):
        load_backbone("random-pocket-text", image_size=32)
    monkeypatch.setattr(pocket_text, "VOCABULARY", tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        load_backbone("random-pocket-text")


# --- what it is for --------------------------------------------------------------------------------------


def test_it_is_an_encoder_like_any_other(backbone):
    assert dataclasses.is_dataclass(backbone)
    texts = ["where is my card ?", "what is the weather ?"] * 3
    tokens, labels = backbone.tokenize(texts), torch.tensor([0, 1] * 3)
    task = TextTask("two", ("card", "weather"), tokens, labels, tokens, labels, tokens, labels, "0" * 64)
    head = prototype_head(backbone, task)
    assert head.prototypes.shape == (2, backbone.features)
    assert head(embed(backbone, tokens)).argmax(1).tolist() == labels.tolist()


def test_it_has_no_buffers_so_a_task_vector_is_all_there_is(backbone):
    assert not list(backbone.model.buffers())
    assert list(backbone.model.state_dict()) == [name for name, _ in backbone.model.named_parameters()]
    assert all(parameter.requires_grad for parameter in backbone.model.parameters())
