"""MiniLM and other folders of BERTs, against plain transformers and pooling text by text."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from taskvec_mini.benchmarks.data import load_tokenizer
from taskvec_mini.benchmarks.encoders import (
    BACKBONES,
    _weights,
    embed,
    load_backbone,
    minilm,
    state_of,
    tokenizer_of,
    trained_parameters,
)
from taskvec_mini.benchmarks.encoders.minilm import first_layers, redrawn_layers
from taskvec_mini.errors import FileError, MissingPackageError, UserError

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

PACKAGE = importlib.util.find_spec(minilm.PACKAGE)
MODEL = Path(PACKAGE.submodule_search_locations[0]) / "model" if PACKAGE else Path()
needs_package = pytest.mark.skipif(PACKAGE is None, reason="the extra `pretrained` is not installed")
TEXTS = [
    "What caused the Lynmouth floods?",
    "i'd like 2 rooms, please -- at 4pm!",
    "a",
    "Naïve cafés re-opened; unputdownable antidisestablishmentarianism, 漢字.",
    "The river rose in the night. " * 40,
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##d", "long", "text"]
TINY = {
    "vocab_size": len(WORDS) + 1,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 20,
}


@pytest.fixture(scope="module")
def encoder():
    return load_backbone("minilm")


@pytest.fixture
def tiny(tmp_path):
    """A folder with another BERT, as transformers and tokenizers write it, and that model."""
    with torch.random.fork_rng(devices=[]):
        model = transformers.BertModel(transformers.BertConfig(**TINY)).eval()
    folder = tmp_path / "tiny"
    model.save_pretrained(folder)
    wordpiece = tokenizers.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(wordpiece)
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=16)  # as the published file has it: the encoder takes no notice
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, model


def rewrite(folder, change):
    """The weights of a folder, changed by a function."""
    state = change(load_file(folder / "model.safetensors"))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def edit(path, **fields):
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content | fields), encoding="utf-8")


@torch.no_grad()
def by_hand(model, ids):
    """One text by itself, without padding: the mean of the last states of its tokens."""
    return model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)


# --- the published model ---------------------------------------------------------------------------------


@needs_package
def test_embeddings_are_those_of_plain_transformers_whatever_stands_beside_a_text(encoder):
    plain = transformers.AutoModel.from_pretrained(MODEL).eval()
    reference = transformers.AutoTokenizer.from_pretrained(MODEL)
    rows = [reference(text, truncation=True, max_length=64)["input_ids"] for text in TEXTS]
    expected = torch.stack([by_hand(plain, row) for row in rows])
    found = embed(encoder, encoder.tokenize(TEXTS))
    assert found.shape == (5, encoder.features) == (5, 384)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    for i, text in enumerate(TEXTS):
        alone = embed(encoder, encoder.tokenize([text]))
        torch.testing.assert_close(alone[0], expected[i], rtol=1e-4, atol=2e-5)
    assert len({*map(tuple, found.round(decimals=3).tolist())}) == 5


@needs_package
@pytest.mark.parametrize("length", [3, 48, 512])
def test_tokens_are_those_of_transformers_cut_between_the_marks(length):
    reference = transformers.AutoTokenizer.from_pretrained(MODEL)
    loaded = load_backbone("minilm", max_length=length)
    found = loaded.tokenize(TEXTS)
    expected = reference(TEXTS, truncation=True, max_length=length, padding="max_length")["input_ids"]
    assert found.tolist() == expected
    assert tokenizer_of(loaded).max_length == length
    ends = [row[row > 0][[0, -1]].tolist() for row in found]
    assert ends == [[101, 102]] * 5


@needs_package
def test_a_text_of_512_tokens_is_taken_and_more_are_refused():
    longest = load_backbone("minilm", max_length=512)
    tokens = longest.tokenize(["river " * 600])
    assert int((tokens > 0).sum()) == 512
    plain = transformers.AutoModel.from_pretrained(MODEL).eval()
    expected = by_hand(plain, tokens[0].tolist())
    torch.testing.assert_close(embed(longest, tokens)[0], expected, rtol=1e-3, atol=2e-5)
    for length in (513, 2):
        with pytest.raises(UserError, match=f"minilm takes texts of 3 to 512 tokens, not {length}"):
            load_backbone("minilm", max_length=length)


@pytest.mark.parametrize("name", ["random-pocket", "efficientnet-lite0"])
def test_images_have_no_max_length(name):
    with pytest.raises(UserError, match=f"{name} takes images, which have no max_length"):
        load_backbone(name, max_length=32)


@needs_package
def test_all_that_is_trained_gets_a_gradient_and_dropout_is_off(encoder):
    tokens = encoder.prepare(encoder.tokenize(TEXTS[:2]))
    assert not any(module.training for module in encoder.model.modules())
    assert torch.equal(encoder.model(tokens), encoder.model(tokens))
    encoder.model(tokens).square().sum().backward()
    own = trained_parameters(encoder.model)
    assert sum(part.numel() for part in own.values()) == BACKBONES["minilm"].parameters
    assert all(float(part.grad.abs().sum()) > 0 for name, part in own.items() if "key.bias" not in name)
    encoder.model.zero_grad(set_to_none=True)


@needs_package
def test_tokens_of_another_tokenizer_are_refused(encoder):
    foreign = load_tokenizer().encode(TEXTS[:2])
    with pytest.raises(UserError, match=r"does not begin with token 101.*minilm.*tokenizer_of\(backbone\)"):
        encoder.prepare(foreign)
    with pytest.raises(UserError, match=r"vocabulary from 0 to 7999; they come from another tokenizer"):
        load_backbone("random-pocket-text").prepare(encoder.tokenize(TEXTS))


@needs_package
def test_changed_weights_are_refused_with_both_hashes(tmp_path, monkeypatch):
    shutil.copytree(MODEL, tmp_path / "package" / "model")
    with open(tmp_path / "package" / "model" / "model.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\1")
    other = importlib.util.spec_from_loader("other", loader=None, is_package=True)
    other.submodule_search_locations = [str(tmp_path / "package")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: other)
    with pytest.raises(UserError, match=rf"sha256 should be {minilm.SHA256} and is \w{{64}}; python -m pip"):
        load_backbone("minilm")
    (tmp_path / "package" / "model" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors; python -m pip install --force-rei"):
        load_backbone("minilm")


@needs_package
@pytest.mark.parametrize("name", ["minilm", "random-minilm"])
def test_loading_draws_nothing_from_torchs_generator_and_says_nothing(name, capfd):
    before = torch.get_rng_state()
    load_backbone(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


# --- starts that know less -------------------------------------------------------------------------------


@needs_package
def test_random_minilm_is_the_same_at_every_call_and_as_bert_begins(encoder):
    first, again = (load_backbone("random-minilm") for _ in range(2))
    own = state_of(first.model)
    assert all(torch.equal(part, own[name]) for name, part in state_of(again.model).items())
    assert own.keys() == state_of(encoder.model).keys()
    for name, part in own.items():
        if "LayerNorm" in name:
            assert bool((part == (1.0 if name.endswith("weight") else 0.0)).all())
        elif name.endswith("bias"):
            assert not bool(part.any())
        else:
            assert 0.019 < float(part.std()) < 0.021
            assert abs(float(part.mean())) < 0.002
    assert first.name == "random-minilm"
    assert torch.equal(first.tokenize(TEXTS), encoder.tokenize(TEXTS))


def test_the_first_layers_are_a_shorter_bert(tiny):
    folder, model = tiny
    loaded = load_backbone("minilm", weights=folder)
    shorter = first_layers(loaded, 2)
    tokens = loaded.tokenize(["a long text", "b"])
    model.encoder.layer = model.encoder.layer[:2]
    expected = torch.stack([by_hand(model, row[row > 0].tolist()) for row in tokens])
    torch.testing.assert_close(embed(shorter, tokens), expected)
    assert shorter.name == "minilm-2-layers"
    assert len(loaded.model.transformer.encoder.layer) == 3, "the other keeps its own"
    assert len(state_of(shorter.model)) < len(state_of(loaded.model))
    for change in (first_layers, redrawn_layers):
        with pytest.raises(UserError, match="minilm has 3 layers, not 4"):
            change(loaded, 4)
        with pytest.raises(UserError, match="layers must be at least 1"):
            change(loaded, 0)


def test_redrawn_layers_are_the_last_and_the_same_at_every_call(tiny):
    loaded = load_backbone("minilm", weights=tiny[0])
    before, own = torch.get_rng_state(), state_of(loaded.model)
    fresh, again = (state_of(redrawn_layers(loaded, 2).model) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    changed = {name.split("layer.")[1][0] for name in own if not torch.equal(own[name], fresh[name])}
    assert changed == {"1", "2"}
    assert all(torch.equal(part, again[name]) for name, part in fresh.items())
    assert all(torch.equal(part, own[name]) for name, part in state_of(loaded.model).items())


def test_an_encoder_without_numbered_layers_says_so():
    with pytest.raises(UserError, match="random-pocket-text has no numbered layers; take minilm"):
        first_layers(load_backbone("random-pocket-text"), 1)


# --- other folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["as saved", "no pooler", "with position_ids", "half precision"])
def test_a_folder_of_another_bert_is_taken(tiny, variant):
    folder, model = tiny
    if variant == "no pooler":
        rewrite(folder, lambda s: {k: v for k, v in s.items() if not k.startswith("pooler.")})
    elif variant == "with position_ids":
        rewrite(folder, lambda s: s | {"embeddings.position_ids": torch.arange(20)[None]})
    elif variant == "half precision":
        rewrite(folder, lambda s: {name: part.half() for name, part in s.items()})
    loaded = load_backbone("minilm", weights=folder)
    assert (loaded.features, loaded.max_length, loaded.longest, loaded.first_token) == (8, 20, 20, 2)
    tokens = loaded.tokenize(["a long text", "ad [SEP] b", "z"])
    assert tokens.shape == (3, 20)
    assert tokens[0, :6].tolist() == [2, 5, 9, 10, 3, 0]
    assert 3 not in tokens[1, :-1][:4].tolist(), "the name of a mark in a text is text"
    expected = torch.stack([by_hand(model, row[row > 0].tolist()) for row in tokens])
    exact = {} if variant != "half precision" else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(embed(loaded, tokens), expected, **exact)
    assert not [name for name in state_of(loaded.model) if "pooler" in name or "position_ids" in name]
    assert {part.dtype for part in state_of(loaded.model).values()} == {torch.float32}
    with pytest.raises(UserError, match="3 to 20 tokens, not 21"):
        load_backbone("minilm", weights=folder, max_length=21)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused(tiny, name):
    (tiny[0] / name).unlink()
    said = rf"there is no file .*{name}; a sentence encoder is a folder with config\.json, tokenizer\.json, "
    with pytest.raises(FileNotFoundError, match=said):
        load_backbone("minilm", weights=tiny[0])
    if name == "model.safetensors":
        assert load_backbone("random-minilm", weights=tiny[0]).features == 8
    else:
        with pytest.raises(FileNotFoundError, match=said):
            load_backbone("random-minilm", weights=tiny[0])


def cut(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])


def of_a_larger_model(folder):
    rewrite(folder, lambda s: {f"bert.{name}": part for name, part in s.items()})


def of_another_width(folder):
    rewrite(folder, lambda s: s | {"embeddings.LayerNorm.bias": torch.zeros(9)})


def of_another_tokenizer(folder):
    table = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    table["model"]["vocab"] |= {"one": 11, "more": 12}
    (folder / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")


def padding_elsewhere(folder):
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace("[PAD]", "<pad>"), encoding="utf-8")


OTHERS = {
    "truncated": (cut, r"model\.safetensors cannot be read as weights .*copy the folder again"),
    "prefix": (of_a_larger_model, r"the weights in .* do not fit its config\.json: 10\d are .*embeddings"),
    "width": (of_another_width, r"the weights in .* do not fit its config\.json: 1 are .*LayerNorm\.bias'"),
    "tokens": (of_another_tokenizer, r"tokenizer\.json has 13 tokens, but the model in .* only 12"),
    "padding": (padding_elsewhere, r"does not begin with \[PAD\].*take another model"),
    "kind": (lambda f: edit(f / "config.json", model_type="roberta"), "'roberta', and only 'bert' is"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json is damaged, .*copy the folder"),
    "heads": (lambda f: edit(f / "config.json", num_attention_heads=3), r"config\.json makes no model \("),
    "no number": (lambda f: edit(f / "config.json", hidden_size="x"), r"config\.json makes no model \("),
    "cls": (
        lambda f: edit(f / "1_Pooling" / "config.json", pooling_mode_cls_token=True),
        r"asks for the pooling \['cls_token'\]; only the mean over tokens is supported",
    ),
    "mean and max": (
        lambda f: edit(
            f / "1_Pooling" / "config.json", pooling_mode_mean_tokens=True, pooling_mode_max_tokens=True
        ),
        r"asks for the pooling \['mean_tokens', 'max_tokens'\]",
    ),
    "newer cls": (
        lambda f: edit(f / "1_Pooling" / "config.json", pooling_mode="cls"),
        "asks for the pooling cls",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_such_a_folder_is_refused(tiny, name):
    change, said = OTHERS[name]
    change(tiny[0])
    with pytest.raises(UserError, match=said) as caught:
        load_backbone("minilm", weights=tiny[0])
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("fields", [{"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}])
def test_the_mean_over_tokens_is_taken_by_either_name(tiny, fields):
    edit(tiny[0] / "1_Pooling" / "config.json", word_embedding_dimension=8, **fields)
    assert load_backbone("minilm", weights=tiny[0]).features == 8


# --- without the package ---------------------------------------------------------------------------------


def test_without_the_package_the_hub_is_asked_for_one_revision(tiny, monkeypatch):
    asked = []

    def hub_file(repository, file, *, what, revision, install):
        asked.append((repository, file, revision))
        return tiny[0] / file

    monkeypatch.setitem(sys.modules, minilm.PACKAGE, None)
    monkeypatch.setattr(minilm, "hub_file", hub_file)
    with pytest.raises(UserError, match=f"sha256 should be {minilm.SHA256}"):  # the tiny one is another
        load_backbone("minilm")
    assert {repository for repository, *_ in asked} == {"sentence-transformers/all-MiniLM-L6-v2"}
    assert [file for _, file, _ in asked] == ["config.json", "tokenizer.json", "model.safetensors"]
    assert {revision for *_, revision in asked} == {minilm.REVISION}
    asked.clear()
    assert load_backbone("random-minilm").features == 8
    assert [file for _, file, _ in asked] == ["config.json", "tokenizer.json"], "no weights are needed"


def test_where_the_hub_cannot_be_reached_the_extra_is_named(monkeypatch):
    def no_network(*_, **__):
        raise FileError("minilm could not be downloaded (ConnectionError: none); try again")

    monkeypatch.setitem(sys.modules, minilm.PACKAGE, None)
    monkeypatch.setattr(minilm, "hub_file", no_network)
    said = r'pip install "taskvec-mini\[pretrained\]" brings them.*could not be downloaded \(ConnectionError'
    with pytest.raises(MissingPackageError, match=said):
        load_backbone("minilm")


def test_the_hub_is_asked_for_the_revision_it_is_given(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, revision: asked.append(revision))
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url, timeout: asked.append(url))
    monkeypatch.setattr(
        hub, "hf_hub_download", lambda *_, revision: asked.append(revision) or str(tmp_path / "file")
    )
    assert _weights.hub_file("a/b", "file", what="it", revision="123abc") == tmp_path / "file"
    first, url, last = asked
    assert first == last == "123abc"
    assert url.endswith("a/b/resolve/123abc/file")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r'downloading it needs .*"taskvec-mini\[extra\]"'):
        _weights.hub_file("a/b", "file", what="it", install="taskvec-mini[extra]")


def test_without_transformers_the_extra_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match=r'minilm needs .*pip install "taskvec-mini\[pretrained\]"'):
        load_backbone("minilm", weights=tiny[0])
