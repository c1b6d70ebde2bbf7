"""Adapters multiplied out are what PEFT merges; sums are sums of products; the rest is refused by name."""

import copy
import json
import math
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from taskvec_mini import TaskVector
from taskvec_mini.errors import InputTypeError, MissingFileError, UserError
from taskvec_mini.merging import merge_models, ties
from taskvec_mini.merging.adapters import (
    Adapter,
    adapter_vector,
    adapter_vectors,
    read_adapter,
    without_hidden_names,
)
from taskvec_mini.merging.model_files import AdapterReader, find_model

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft about fan_in_fan_out and about tied embeddings


@pytest.fixture(scope="module")
def bert():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=10, **sizes)
    return seeded(transformers.BertForSequenceClassification(config))


@pytest.fixture(scope="module")
def gpt2():
    config = transformers.GPT2Config(
        vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=10, bos_token_id=0, eos_token_id=0
    )
    return seeded(transformers.GPT2LMHeadModel(config))


class Remembering(nn.Module):
    """A module that keeps more than tensors in its state dict."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 2)

    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass

    def forward(self, x):
        return self.line(x)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.point = nn.Conv2d(5, 4, 1)
        self.line = nn.Conv1d(2, 3, 2)
        self.groups = nn.Conv2d(4, 4, 3, groups=2)

    def forward(self, x):
        return self.point(self.conv(x))


def seeded(model, seed=0):
    """The same numbers at every run, and none of them 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def with_adapter(model, *, seed=1, **settings):
    """A copy of the model inside of PEFT's, with random factors."""
    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 3, **settings})
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return wrapped


def trained(model, folder, *, seed=1, save_embedding_layers="auto", **settings):
    """An adapter with random factors, saved by PEFT, and the state dict of the model it merges into."""
    wrapped = with_adapter(model, seed=seed, **settings)
    wrapped.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    return {name: tensor.clone() for name, tensor in wrapped.merge_and_unload().state_dict().items()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-6, rtol=2e-6, msg=name)


BERT = {
    "plain": {"target_modules": ["query", "value", "dense"]},
    "rsLoRA": {"target_modules": ["query"], "use_rslora": True, "r": 4},
    "rank and alpha patterns": {
        "target_modules": ["query", "value", "dense"],
        "rank_pattern": {"query": 4, r"layer\.1\..*\.dense": 3},
        "alpha_pattern": {"value": 5, r"layer\.0\.output\.dense": 7},
    },
    "patterns that nearly fit, and two that do": {  # the first that fits to the end of a name, dot before it
        "target_modules": ["query", "key", "value"],
        "alpha_pattern": {"ery": 13, "layer": 11, "query|key": 5, "self.query": 7, "value": 2.5},
    },
    "rank pattern with rsLoRA": {
        "target_modules": ["query", "value"],
        "use_rslora": True,
        "rank_pattern": {"query": 1},
    },
    "an embedding": {"target_modules": ["query", "word_embeddings"]},
    "DoRA": {"target_modules": ["query", "dense"], "use_dora": True},
    "DoRA of an embedding": {"target_modules": ["word_embeddings"], "use_dora": True},
    "biases beside the factors": {"target_modules": ["query"], "bias": "lora_only"},
    "all biases": {"target_modules": ["query"], "bias": "all"},
    "a bias in the factor": {"target_modules": ["query"], "lora_bias": True},
    "both": {"target_modules": ["query"], "lora_bias": True, "bias": "lora_only"},
    "a saved module": {"target_modules": ["query"], "modules_to_save": ["classifier"]},
    "a kind of task": {"target_modules": ["query"], "task_type": "SEQ_CLS"},
}


@pytest.mark.parametrize("settings", BERT.values(), ids=BERT)
def test_the_edited_model_is_what_peft_merges(bert, tmp_path, settings):
    expected = trained(bert, tmp_path, **settings)
    for start in (bert, bert.state_dict()):
        assert_same(adapter_vector(tmp_path, start).apply_to(start), expected)


GPT2 = {
    "stored transposed": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "DoRA": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
    "a tied embedding": {"target_modules": ["c_attn", "wte"], "fan_in_fan_out": True},
}


@pytest.mark.parametrize("settings", GPT2.values(), ids=GPT2)
def test_matrices_that_are_stored_transposed_and_ties_come_out_right(gpt2, tmp_path, settings):
    expected = trained(gpt2, tmp_path, **settings)
    for start in (gpt2, gpt2.state_dict(), {n: t.clone() for n, t in gpt2.state_dict().items()}):
        state = adapter_vector(tmp_path, start).apply_to(start)
        assert_same(state, expected)
    copy.deepcopy(gpt2).load_state_dict(state, strict=True)


@pytest.mark.parametrize("use_dora", [False, True])
def test_convolutions_are_matrices_of_patches(tmp_path, use_dora):
    model = seeded(Convolutions())
    expected = trained(model, tmp_path, target_modules=["conv", "point", "line"], use_dora=use_dora)
    assert_same(adapter_vector(tmp_path, model).apply_to(model), expected)


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_square_embedding_is_not_taken_for_a_linear_layer(tmp_path, use_dora):
    """PEFT holds an embedding's factors the other way round, and here the shape does not tell."""
    model = seeded(nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6)))
    expected = trained(model, tmp_path, target_modules=["0", "1"], use_dora=use_dora)
    for start in (model, model.state_dict()):
        assert_same(adapter_vector(tmp_path, start).apply_to(start), expected)


def test_what_a_module_keeps_beside_tensors_is_in_nobodys_way(tmp_path):
    model = seeded(Remembering())
    wrapped = with_adapter(model, target_modules=["line"])
    wrapped.save_pretrained(tmp_path)
    expected = wrapped.merge_and_unload().line.weight
    found = dict(adapter_vector(tmp_path, model).items())["line.weight"]
    torch.testing.assert_close(model.line.weight + found, expected)


def test_a_convolution_in_groups_is_refused_by_name(tmp_path):
    model = seeded(Convolutions())
    with_adapter(model, target_modules=["groups"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"'groups\.weight'.*those of a convolution in groups do not"):
        adapter_vector(tmp_path, model)


def test_a_square_matrix_among_contradictions_needs_the_module(gpt2, tmp_path):
    """peft overwrites fan_in_fan_out when it meets a linear layer among GPT-2's; the last one met wins."""
    trained(gpt2, tmp_path, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    change_config(tmp_path, fan_in_fan_out=False)
    with pytest.raises(
        UserError, match=r"fan_in_fan_out=False does not hold for 'transformer.h.0.attn.c_attn"
    ):
        adapter_vector(tmp_path, gpt2.state_dict())
    change_config(tmp_path, fan_in_fan_out=True)
    expected = adapter_vector(tmp_path, gpt2.state_dict())
    change_config(tmp_path, fan_in_fan_out=False)
    assert torch.equal(adapter_vector(tmp_path, gpt2).flat, expected.flat)


# --- rows, and pieces of rows ----------------------------------------------------------------------------

BY_ROWS = {
    "a product": ("bert", {"target_modules": ["query", "dense"]}),
    "an embedding": ("bert", {"target_modules": ["word_embeddings"]}),
    "DoRA": ("bert", {"target_modules": ["dense"], "use_dora": True}),
    "biases": ("bert", {"target_modules": ["query"], "lora_bias": True, "bias": "lora_only"}),
    "a saved module": ("bert", {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]}),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "DoRA, transposed": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
}


@pytest.mark.parametrize(("model", "settings"), BY_ROWS.values(), ids=BY_ROWS)
@pytest.mark.parametrize("size", [3, 11, 1000])
def test_what_is_read_piece_by_piece_is_what_peft_merges(tmp_path, request, model, settings, size):
    """Pieces end in the middle of rows, as those of large tensors do; nothing is left from an earlier one."""
    base = request.getfixturevalue(model)
    expected = trained(base, tmp_path / "lora", **settings)
    state = {name: part.double() for name, part in base.state_dict().items()}
    base.save_pretrained(tmp_path / "base")
    files = find_model(tmp_path / "base")
    adapter = read_adapter(tmp_path / "lora")
    reader = AdapterReader(adapter, base=files, names={name: name for name in adapter.names})
    untouched = next(name for name in files.parts if name not in adapter.names)
    for name in [*adapter.names, untouched]:
        whole = (expected[name].double() - state[name]).reshape(-1)
        found = torch.full_like(whole, math.nan)
        for first in range(0, len(whole), size):
            reader.read(name, first, out=found[first : first + size].numpy())
        torch.testing.assert_close(found, whole, atol=2e-6, rtol=2e-6, msg=name)
    reader.close()


def test_products_and_differences_are_taken_in_float64_and_rounded_once(bert, tmp_path):
    """Factors in half precision too: their product is not."""
    settings = {"target_modules": ["query"], "modules_to_save": ["classifier"]}
    trained(bert, tmp_path, **settings)
    file = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors = {name: part.bfloat16() if "layer.0" in name else part for name, part in tensors.items()}
    safetensors.torch.save_file(tensors, file)
    wide = copy.deepcopy(bert).double()
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter += torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)) * 1e-9
    found = dict(adapter_vector(tmp_path, wide).items())
    for layer in range(2):
        query = f"bert.encoder.layer.{layer}.attention.self.query"
        left, right = (tensors[f"base_model.model.{query}.lora_{side}.weight"].double() for side in "BA")
        torch.testing.assert_close(found[f"{query}.weight"], left @ right * 1.5, rtol=1e-13, atol=1e-15)
    head = tensors["base_model.model.classifier.weight"].double() - wide.classifier.weight.detach()
    torch.testing.assert_close(found["classifier.weight"], head, rtol=1e-14, atol=0)
    mixed = {**bert.state_dict(), "classifier.weight": wide.classifier.weight.detach()}
    assert adapter_vector(tmp_path, mixed).flat.dtype == torch.float64
    size = sum(part.nbytes for part in tensors.values())
    assert read_adapter(tmp_path).nbytes == size


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_table_saved_beneath_its_factors_replaces_that_of_the_model(llama, tmp_path, use_dora):
    """As PEFT loads it: onto another model than the one that was trained, the saved table goes along."""
    trained(llama, tmp_path / "lora", target_modules=TIED["table"], use_dora=use_dora)
    other = seeded(copy.deepcopy(llama), seed=5)
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(other), tmp_path / "lora").merge_and_unload()
    found = adapter_vector(tmp_path / "lora", other).apply_to(other)
    assert_same(found, merged.state_dict())
    assert not torch.equal(other.state_dict()[TABLE], llama.state_dict()[TABLE])


# --- tied weights ----------------------------------------------------------------------------------------

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = {"q": ["q_proj"], "table": ["q_proj", "embed_tokens"], "head": ["q_proj", "lm_head"]}
IN_STEP = {  # what changes both ends of the model alike
    "a product on the embedding": {"target_modules": TIED["table"]},
    "its factors alone saved": {"target_modules": TIED["table"], "save_embedding_layers": False},
    "DoRA on the embedding": {"target_modules": TIED["table"], "use_dora": True},
    "a product on the head": {"target_modules": TIED["head"]},
    "both trained whole, in step": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
}
APART = {  # what would untie them
    "the embedding trained whole": {"modules_to_save": ["embed_tokens"]},
    "the same, of a kind of task": {"modules_to_save": ["embed_tokens"], "task_type": "CAUSAL_LM"},
    "the head trained whole": {"modules_to_save": ["lm_head"]},
    "both trained whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "a product on each": {"target_modules": ["embed_tokens", "lm_head"]},
    "a product and a whole head": {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]},
}


@pytest.fixture(scope="module")
def llama():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.LlamaConfig(vocab_size=40, tie_word_embeddings=True, pad_token_id=2, **sizes)
    return seeded(transformers.LlamaForCausalLM(config))


def starts(llama, folder):
    """The model as what is in memory, and as files: with both of the tied names, with one, with the other."""
    both = {name: part.clone() for name, part in llama.state_dict().items()}
    one = {name: part for name, part in both.items() if name != HEAD}
    other = {name: part for name, part in both.items() if name != TABLE}
    llama.save_pretrained(folder / "base")
    assert set(safetensors.torch.load_file(folder / "base" / "model.safetensors")) == set(one)
    files = [folder / "base"]
    for name, state in {"both": both, "one": one, "other": other}.items():
        files.append(folder / f"{name}.safetensors")
        safetensors.torch.save_file(state, files[-1])
    return [llama, both, one, other], files


@pytest.mark.parametrize("settings", IN_STEP.values(), ids=IN_STEP)
def test_what_changes_tied_weights_in_step_is_followed_wherever_the_names_stand(llama, tmp_path, settings):
    """PEFT also saves the tensor beneath the factors of an embedding, which is not "trained whole"."""
    expected = trained(llama, tmp_path / "lora", **{"target_modules": TIED["q"], **settings})
    torch.testing.assert_close(expected[TABLE], expected[HEAD])
    assert not torch.equal(expected[TABLE], llama.state_dict()[TABLE])
    in_memory, files = starts(llama, tmp_path)
    for start in in_memory:
        vector = adapter_vector(tmp_path / "lora", start)
        assert len({TABLE, HEAD} & set(dict(vector.layout))) == 1, "a tied weight counts once"
        found = vector.apply_to(start)
        assert_same(found, {name: expected[name] for name in found})
    for number, file in enumerate(files):
        merge_models(file, [tmp_path / "lora"], out=tmp_path / str(number), progress=False)
        written = next((tmp_path / str(number)).glob("*.safetensors"))
        found = safetensors.torch.load_file(written)
        assert {TABLE, HEAD} & set(found)
        assert_same(found, {name: expected[name] for name in found})


@pytest.mark.parametrize("settings", APART.values(), ids=APART)
def test_what_would_untie_weights_is_refused_also_where_the_file_holds_one_name(llama, tmp_path, settings):
    trained(llama, tmp_path / "lora", **{"target_modules": TIED["q"], **settings})
    in_memory, files = starts(llama, tmp_path)
    message = rf"'({TABLE}|{HEAD})' as a tensor of its own, but in pretrained .*tied weights.*untie the model"
    for start in in_memory:
        with pytest.raises(UserError, match=message):
            adapter_vector(tmp_path / "lora", start)
    for file in files:
        with pytest.raises(UserError, match=message):
            merge_models(file, [tmp_path / "lora"], out=tmp_path / "merged", progress=False)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("settings", APART.values(), ids=APART)
def test_the_remedy_of_that_refusal_works(llama, tmp_path, settings):
    """An untied copy of the model, as a folder: what the adapter was trained as, tensor by tensor."""
    trained(llama, tmp_path / "lora", **{"target_modules": TIED["q"], **settings})
    model = copy.deepcopy(llama)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(tmp_path / "untied")
    merge_models(tmp_path / "untied", [tmp_path / "lora"], out=tmp_path / "merged", progress=False)
    found = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "lora")
    assert_same(found, wrapped.merge_and_unload().state_dict())
    assert not torch.equal(found[TABLE], found[HEAD])


def test_two_adapters_change_one_table_under_its_two_names(llama, tmp_path):
    for name in ("table", "head"):
        trained(llama, tmp_path / name, target_modules=TIED[name], seed=len(name))
    folders = [tmp_path / "table", tmp_path / "head"]
    in_memory, files = starts(llama, tmp_path)
    alone = [adapter_vector(folder, llama).apply_to(llama)[TABLE] for folder in folders]
    start = llama.state_dict()[TABLE]
    expected = alone[0] + alone[1] - start
    for state in in_memory:
        found = sum(adapter_vectors(folders, state)).apply_to(state)
        for name in {TABLE, HEAD} & set(found):
            torch.testing.assert_close(found[name], expected)
    for number, file in enumerate(files):
        merge_models(file, folders, out=tmp_path / str(number), rule="task_arithmetic", progress=False)
        found = safetensors.torch.load_file(next((tmp_path / str(number)).glob("*.safetensors")))
        for name in {TABLE, HEAD} & set(found):
            torch.testing.assert_close(found[name], expected)


WORDS = {"embed.weight": (40, 8), "positions.weight": (16, 8), "layers.0.up.weight": (64, 8)}
GEMMA = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"vocab_size": 40}}


@pytest.mark.parametrize(
    ("about", "config", "shapes", "refused"),
    [
        ({"task_type": "CAUSAL_LM"}, {}, WORDS, True),
        ({"task_type": "SEQ_2_SEQ_LM"}, {}, WORDS, True),
        ({"task_type": "TOKEN_CLS"}, {"architectures": ["BertForMaskedLM"]}, WORDS, False),
        ({"task_type": "FEATURE_EXTRACTION"}, {"architectures": ["BertForMaskedLM"]}, WORDS, True),
        ({"task_type": "FEATURE_EXTRACTION"}, {"architectures": ["BertModel"]}, WORDS, False),
        ({}, {}, WORDS, False),
        ({}, {"architectures": ["GPT2LMHeadModel"]}, WORDS, True),
        (
            {"auto_mapping": {"base_model_class": "BertModel"}},
            {"architectures": ["BertLMHead"]},
            WORDS,
            False,
        ),
        ({"task_type": "CAUSAL_LM"}, {"tie_word_embeddings": False}, WORDS, False),
        ({"task_type": "CAUSAL_LM"}, {"text_config": {"tie_word_embeddings": False}}, WORDS, False),
        ({"task_type": "CAUSAL_LM"}, {"tie_word_embeddings": True}, WORDS, True),
        ({"task_type": "CAUSAL_LM"}, {}, {**WORDS, "lm_head.weight": (40, 8)}, False),
        ({"task_type": "CAUSAL_LM"}, {}, {**WORDS, "positions.weight": (99, 8)}, False),  # it seems the table
        ({"task_type": "CAUSAL_LM"}, {"vocab_size": 40}, {**WORDS, "positions.weight": (99, 8)}, True),
        ({}, GEMMA, {**WORDS, "positions.weight": (99, 8)}, True),
    ],
)
def test_whether_a_file_hides_a_tied_name_is_told_by_class_and_table(about, config, shapes, refused):
    saved = {"embed.weight": torch.ones(40, 8)}
    adapter = Adapter(Path("lora"), {"r": 2, "lora_alpha": 2, **about}, {}, saved)
    own = {"embed.weight": "embed.weight"}
    if refused:
        with pytest.raises(UserError, match=r"'embed\.weight' is the input embedding and the output head"):
            without_hidden_names(adapter, own, shapes=shapes, config=config)
    else:
        assert without_hidden_names(adapter, own, shapes=shapes, config=config) == own


def test_a_table_that_is_excluded_stays_also_where_the_adapter_calls_it_the_head(llama, tmp_path):
    trained(llama, tmp_path / "lora", target_modules=TIED["head"])
    _, (base, *_) = starts(llama, tmp_path)
    merge_models(base, [tmp_path / "lora"], out=tmp_path / "out", exclude=TABLE, progress=False)
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found[TABLE], llama.state_dict()[TABLE])
    query = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(found[query], llama.state_dict()[query])


def test_an_embedding_trained_whole_is_followed_where_no_head_is_tied_to_it(bert, tmp_path):
    """Classifiers say tie_word_embeddings=True in their config.json too; so the class has to tell."""
    for number, task in enumerate((None, "SEQ_CLS")):
        settings = {"target_modules": ["query"], "modules_to_save": ["word_embeddings"], "task_type": task}
        expected = trained(bert, tmp_path / f"lora{number}", **settings)
        bert.save_pretrained(tmp_path / "base")
        out = tmp_path / f"merged{number}"
        merge_models(tmp_path / "base", [tmp_path / f"lora{number}"], out=out, progress=False)
        assert_same(safetensors.torch.load_file(out / "model.safetensors"), expected)


def test_the_configuration_is_asked_only_where_neither_shape_nor_module_tells(bert, gpt2, tmp_path):
    expected = trained(gpt2, tmp_path / "a", target_modules=["c_attn"], fan_in_fan_out=True)
    change_config(tmp_path / "a", fan_in_fan_out=False)  # c_attn is not square
    assert_same(adapter_vector(tmp_path / "a", gpt2.state_dict()).apply_to(gpt2), expected)
    expected = trained(bert, tmp_path / "b", target_modules=["query"])
    change_config(tmp_path / "b", fan_in_fan_out=True)  # query is square, and a linear layer
    assert_same(adapter_vector(tmp_path / "b", bert).apply_to(bert), expected)


# --- several adapters ------------------------------------------------------------------------------------


def test_a_merge_is_the_sum_of_products_and_never_the_product_of_sums(bert, tmp_path):
    """Against plain arithmetic on the factors, with ranks and targets that differ, and a negative weight."""
    trained(bert, tmp_path / "a", seed=1, target_modules=["query"], r=2)
    trained(bert, tmp_path / "b", seed=2, target_modules=["query", "value"], r=4)
    first, second = adapter_vectors([tmp_path / "a", tmp_path / "b"], bert)
    assert first.layout == second.layout
    changed = [name for name, _ in first.layout]
    assert changed == [name for name, _ in bert.named_parameters() if name in changed]
    merged = dict((0.5 * first - 2 * second).items())
    a, b = (safetensors.torch.load_file(tmp_path / x / "adapter_model.safetensors") for x in "ab")
    for layer in range(2):
        for part, weights in {
            "query": ((a, 0.5, 3 / 2), (b, -2.0, 3 / 4)),
            "value": ((b, -2.0, 3 / 4),),
        }.items():
            name = f"bert.encoder.layer.{layer}.attention.self.{part}"
            key = f"base_model.model.{name}.lora_"
            expected = sum(
                weight * scaling * (x[f"{key}B.weight"].double() @ x[f"{key}A.weight"].double())
                for x, weight, scaling in weights
            )
            torch.testing.assert_close(merged[f"{name}.weight"].double(), expected, atol=1e-7, rtol=1e-5)
    ones = adapter_vector(tmp_path / "a", bert)
    assert torch.equal((-1 * ones).flat, -ones.flat)


def test_adapters_go_through_the_rules_and_back_onto_the_model(bert, tmp_path):
    for seed, name in enumerate("ab"):
        trained(bert, tmp_path / name, seed=seed, target_modules=["query"])
    vectors = adapter_vectors([tmp_path / "a", tmp_path / "b"], bert)
    merged = ties(vectors, density=0.25)
    assert merged.zero_share() >= 0.5
    state = merged.apply_to(bert)
    copy.deepcopy(bert).load_state_dict(state, strict=True)
    assert torch.equal(state["classifier.weight"], bert.classifier.weight)
    assert "classifier.weight" in merged.carried


def test_a_vector_says_which_adapter_it_came_from_and_saves(bert, tmp_path):
    trained(bert, tmp_path / "cars", target_modules=["query"])
    tv = adapter_vector(tmp_path / "cars", bert)
    tv.save(tmp_path / "tv")
    assert TaskVector.load(tmp_path / "tv").about == tv.about
    assert tv.about["adapter"] == "cars"
    assert tv.about["sha256"] == read_adapter(tmp_path / "cars").sha256
    assert len(tv.about["sha256"]) == 64


def test_the_vector_of_a_half_model_is_float32_and_rounded_once(bert, tmp_path):
    trained(bert, tmp_path, target_modules=["query"])
    half = copy.deepcopy(bert).bfloat16()
    tv = adapter_vector(tmp_path, half)
    assert tv.flat.dtype == torch.float32
    name = "bert.encoder.layer.0.attention.self.query.weight"
    start = half.state_dict()[name]
    expected = (start.double() + dict(tv.items())[name].double()).bfloat16()
    assert torch.equal(tv.apply_to(half)[name], expected)
    assert adapter_vector(tmp_path, copy.deepcopy(bert).double()).flat.dtype == torch.float64


def test_an_adapter_saved_by_torch_is_read_without_running_code(bert, tmp_path):
    trained(bert, tmp_path, target_modules=["query"])
    expected = adapter_vector(tmp_path, bert)
    tensors = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    assert torch.equal(adapter_vector(tmp_path, bert).flat, expected.flat)
    torch.save({"w": nn.Linear(1, 1)}, tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match="holds more than tensors, and is not loaded"):
        adapter_vector(tmp_path, bert)


# --- refusals --------------------------------------------------------------------------------------------


def change_config(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.fixture
def saved(bert, tmp_path):
    trained(bert, tmp_path, target_modules=["query"])
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, r"an adapter of the kind 'LOHA'; merge it with peft itself"),
        ({"target_parameters": ["experts"]}, r"the setting target_parameters=\['experts'\]"),
        ({"alora_invocation_tokens": [1, 2]}, r"the setting alora_invocation_tokens=\[1, 2\]"),
        ({"layer_replication": [[0, 2]]}, r"the setting layer_replication"),
        ({"use_qalora": True}, r"the setting use_qalora=True"),
        ({"a_setting_of_tomorrow": 1}, r"the setting a_setting_of_tomorrow=1 changes the model in a way"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            r"init_lora_weights='pissa_niter_4' training began from changed",
        ),
        ({"init_lora_weights": "OLoRA"}, r"init_lora_weights='olora'"),
        ({"init_lora_weights": "corda"}, r"init_lora_weights='corda'"),
        ({"init_lora_weights": "loftq"}, r"init_lora_weights='loftq'"),
        ({"init_lora_weights": "lora_ga"}, r"init_lora_weights='lora_ga'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_kinds_of_adapters_and_settings_are_refused_by_name(saved, bert, settings, message):
    change_config(saved, **settings)
    with pytest.raises(InputTypeError, match=message):
        adapter_vector(saved, bert)


def test_trained_tokens_are_refused_by_name(bert, tmp_path):
    trained(bert, tmp_path, target_modules=["query"], trainable_token_indices={"word_embeddings": [1, 2]})
    with pytest.raises(InputTypeError, match="the setting trainable_token_indices"):
        adapter_vector(tmp_path, bert)


def test_a_rank_that_does_not_fit_the_factors_is_refused(saved, bert):
    change_config(saved, r=8)
    with pytest.raises(
        UserError, match=r"the rank 8, but its factors have 2; copy both files of the adapter again"
    ):
        adapter_vector(saved, bert)


def test_a_rank_that_does_not_fit_an_embedding_is_refused_too(bert, tmp_path):
    trained(bert, tmp_path, target_modules=["word_embeddings"])
    change_config(tmp_path, r=4)
    with pytest.raises(UserError, match=r"the rank 4, but its factors have 2"):
        adapter_vector(tmp_path, bert)


def test_a_vocabulary_that_grew_is_refused_with_the_remedy(bert, tmp_path):
    grown = copy.deepcopy(bert)
    grown.resize_token_embeddings(33)
    trained(grown, tmp_path, target_modules=["query"], modules_to_save=["word_embeddings"])
    with pytest.raises(
        UserError, match=r"\(30, 8\) in pretrained against \(33, 8\).*resize_token_embeddings"
    ):
        adapter_vector(tmp_path, bert)
    trained(bert, tmp_path, target_modules=["query"], modules_to_save=["classifier"])
    name = "classifier.bias"
    with pytest.raises(UserError, match=rf"shapes differ at '{name} in .*\(3,\) against \(2,\)"):
        adapter_vector(tmp_path, {**bert.state_dict(), name: torch.zeros(3)})


def test_a_base_model_without_plain_weights_is_refused(saved, bert):
    name = "bert.encoder.layer.0.attention.self.query.weight"
    with pytest.raises(InputTypeError, match=rf"'{name}' is torch\.int8 in pretrained; give the base model"):
        adapter_vector(saved, {**bert.state_dict(), name: torch.zeros(8, 8, dtype=torch.int8)})
    with pytest.raises(InputTypeError, match=rf"'{name}' is a tensor of layout torch\.sparse"):
        adapter_vector(saved, {**bert.state_dict(), name: torch.ones(8, 8).to_sparse()})


def test_odd_names_and_numbers_in_an_adapter_are_named(saved, bert):
    file = saved / "adapter_model.safetensors"
    sound = safetensors.torch.load_file(file)
    name = next(each for each in sound if "lora_B" in each)
    safetensors.torch.save_file({**sound, name: sound[name] * math.nan}, file)
    with pytest.raises(UserError, match=r"the difference of the adapter in .* NaN"):
        adapter_vector(saved, bert)
    safetensors.torch.save_file({**sound, "query.lora_A.weight": torch.ones(2, 8)}, file)
    with pytest.raises(
        UserError, match=r"holds 'query\.lora_A\.weight', which does not begin with 'base_model"
    ):
        adapter_vector(saved, bert)
    key = "base_model.model.bert.pooler.dense.lora_magnitude_vector"
    safetensors.torch.save_file({**sound, key: torch.ones(8)}, file)
    with pytest.raises(UserError, match=r"holds only \['lora_magnitude_vector'\] of 'bert\.pooler\.dense"):
        adapter_vector(saved, bert)


def test_an_adapter_of_another_class_or_size_of_model_is_refused_with_the_remedy(saved, bert):
    with pytest.raises(
        UserError, match=r"changes 'bert\.enc.*pretrained calls it 'encoder\.layer\.0.*of the class"
    ):
        adapter_vector(saved, bert.bert)
    with pytest.raises(
        UserError, match=r"which pretrained does not have; give the model that it was trained on"
    ):
        adapter_vector(saved, nn.Linear(2, 2))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    with pytest.raises(
        UserError, match=rf"shapes differ at '{name}': \(4, 8\) in pretrained, but .*\(8, 8\)"
    ):
        adapter_vector(saved, {**bert.state_dict(), name: torch.zeros(4, 8)})


def test_missing_and_damaged_files_are_named(saved, bert, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(MissingFileError, match=r"adapter_config\.json; give a folder that save_pretrained"):
        adapter_vector(empty, bert)
    shutil.copy(saved / "adapter_config.json", empty)
    with pytest.raises(MissingFileError, match=r"holds no adapter_model\.safetensors; give a folder"):
        adapter_vector(empty, bert)
    tensors = safetensors.torch.load_file(saved / "adapter_model.safetensors")
    half = {name: tensor for name, tensor in tensors.items() if "lora_B" not in name}
    safetensors.torch.save_file(half, saved / "adapter_model.safetensors")
    with pytest.raises(
        UserError, match=r"holds only \['lora_A'\] of 'bert\.encoder.*; copy the adapter again"
    ):
        adapter_vector(saved, bert)
    with pytest.raises(UserError, match="the list of adapters is empty"):
        adapter_vectors([], bert)


def test_an_adapter_is_not_taken_for_a_model(saved, bert):
    tensors = safetensors.torch.load_file(saved / "adapter_model.safetensors")
    with pytest.raises(InputTypeError, match=r"a factor of a LoRA adapter.*merging\.adapter_vector"):
        TaskVector.between(tensors, tensors)
    wrapped = peft.get_peft_model(copy.deepcopy(bert), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(
        InputTypeError, match=r"of a model with the adapter inside, give model\.merge_and_unload"
    ):
        TaskVector.between(wrapped, wrapped)


def test_the_scaling_is_alpha_over_the_rank_or_over_its_root(bert, tmp_path):
    trained(bert, tmp_path, target_modules=["query"], r=4, lora_alpha=3)
    adapter = read_adapter(tmp_path)
    assert adapter.scaling(adapter.names[0]) == 3 / 4
    change_config(tmp_path, use_rslora=True)
    adapter = read_adapter(tmp_path)
    assert adapter.scaling(adapter.names[0]) == 3 / math.sqrt(4)
