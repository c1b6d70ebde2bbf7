"""Task vectors of real models: modules, whole state dicts, ties, statistics, half precision, odd tensors."""

import copy
import json
import math
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

from taskvec_mini import TaskVector
from taskvec_mini.errors import InputTypeError, UserError


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def moved(model, *, seed=1, by=0.1):
    """A copy of a module with every parameter moved."""
    other = copy.deepcopy(model)
    generator = source(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return other


class Tied(nn.Module):
    """An embedding, a mask, a normalisation, and a head that is the embedding."""

    def __init__(self, *, tied=True):
        super().__init__()
        self.wte = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.register_buffer("mask", torch.ones(3, 3).tril().bool())
        self.register_buffer("frequencies", torch.rand(3, generator=source(7)))
        if tied:
            self.head.weight = self.wte.weight


def cloned(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def pair():
    model = Tied()
    return model, moved(model)


# --- modules and full state dicts ------------------------------------------------------------------------


def test_of_modules_the_parameters_are_subtracted_a_tied_one_once(pair):
    start, end = pair
    tv = TaskVector.between(start, end)
    expected = {name: dict(end.named_parameters())[name] - part for name, part in start.named_parameters()}
    assert dict(tv.layout) == {name: tuple(part.shape) for name, part in expected.items()}
    assert tv.carried == ()
    assert all(torch.equal(part, expected[name]) for name, part in tv.items())
    assert not tv.flat.requires_grad


def test_the_edited_module_is_a_whole_state_dict_that_loads_strictly(pair):
    start, end = pair
    state = TaskVector.between(start, end).apply_to(start)
    assert set(state) == set(start.state_dict())
    fresh = Tied()
    fresh.load_state_dict(state, strict=True)
    fresh.eval()
    end.eval()
    x = torch.randn(6, 4, generator=source(3))
    for layer in ("body", "norm", "head"):
        torch.testing.assert_close(getattr(fresh, layer)(x), getattr(end, layer)(x))
    assert torch.equal(fresh.frequencies, start.frequencies)
    assert fresh.head.weight is fresh.wte.weight


@pytest.mark.parametrize("source_of_start", ["module", "state dict", "copied state dict", "parameters"])
def test_a_vector_of_parameters_is_applied_to_whatever_holds_them(pair, source_of_start):
    start, end = pair
    tv = TaskVector.between(dict(start.named_parameters()), dict(end.named_parameters()))
    given = {
        "module": start,
        "state dict": start.state_dict(),
        "copied state dict": cloned(start),
        "parameters": dict(start.named_parameters()),
    }[source_of_start]
    exclude = [] if source_of_start in {"module", "parameters"} else ["frequencies"]
    state = tv.apply_to(given, 0.5, exclude=exclude)
    for name, tensor in end.state_dict().items():
        if name in state:
            middle = (tensor.double() + start.state_dict()[name].double()) / 2
            torch.testing.assert_close(state[name].double(), middle, atol=1e-6, rtol=0)
    if source_of_start != "parameters":
        Tied().load_state_dict(state, strict=True)


def test_a_buffer_that_may_be_a_parameter_is_not_skipped_in_silence(pair):
    start, end = pair
    tv = TaskVector.between(start, end)
    with pytest.raises(
        UserError, match=r"pretrained has 'frequencies', the task vector has not; .*exclude=\['freq"
    ):
        tv.apply_to(start.state_dict())


def test_what_is_excluded_from_an_edit_stays(pair):
    start, end = pair
    tv = TaskVector.between(start, end)
    state = tv.apply_to(start, exclude="body.*")
    assert torch.equal(state["body.weight"], start.body.weight)
    assert not torch.equal(state["wte.weight"], start.wte.weight)
    with pytest.raises(
        UserError, match=r"exclude names 'boddy\.\*', but no tensor is called so; the first ones"
    ):
        tv.apply_to(start, exclude="boddy.*")


def test_a_vector_of_a_whole_state_dict_asks_for_one():
    start, end = nn.BatchNorm1d(3), moved(nn.BatchNorm1d(3))
    tv = TaskVector.between(start.state_dict(), end.state_dict(), integer_buffers="carry")
    assert tv.carried == ("running_mean", "running_var", "num_batches_tracked")
    nn.BatchNorm1d(3).load_state_dict(tv.apply_to(start.state_dict()))
    nn.BatchNorm1d(3).load_state_dict(tv.apply_to(start))
    with pytest.raises(
        UserError, match=r"the task vector has 'running_mean' \(and 2 more\), pretrained has not"
    ):
        tv.apply_to(dict(start.named_parameters()))
    tv.apply_to(dict(start.named_parameters()), exclude=["running_*", "num_*"])


def test_a_head_is_excluded_by_a_pattern_also_where_one_model_has_none():
    start = {"body.w": torch.zeros(2), "head.w": torch.zeros(3)}
    end = {"body.w": torch.ones(2), "other_head.w": torch.ones(7)}
    with pytest.raises(UserError, match="keys differ"):
        TaskVector.between(start, end)
    tv = TaskVector.between(start, end, exclude=["head.*", "other_head.*"])
    assert (tv.layout, tv.carried) == ((("body.w", (2,)),), ("head.w",))
    assert tv.apply_to(start)["head.w"].tolist() == [0, 0, 0]


def test_a_head_in_one_model_alone_gets_the_remedy():
    with pytest.raises(UserError, match=r"or say that they stay out of it: exclude=\['head\.w'\]"):
        TaskVector.between({"w": torch.zeros(2)}, {"w": torch.zeros(2), "head.w": torch.zeros(2)})


def test_what_a_module_keeps_beside_tensors_comes_along():
    class WithState(nn.Linear):
        def get_extra_state(self):
            return {"version": 3}

        def set_extra_state(self, state):
            assert state == {"version": 3}

    start = WithState(2, 2)
    WithState(2, 2).load_state_dict(TaskVector.between(start, moved(start)).apply_to(start), strict=True)


# --- ties ------------------------------------------------------------------------------------------------


def test_a_tie_in_one_state_dict_alone_is_named_with_what_the_other_one_does():
    start, end = Tied().state_dict(), Tied(tied=False).state_dict()
    with pytest.raises(
        UserError,
        match=r"pretrained holds one tensor under two names, 'wte.weight' and 'head.weight'.*"
        r"in finetuned the two differ.*\.clone\(\)",
    ):
        TaskVector.between(start, end, integer_buffers="carry")
    with pytest.raises(
        UserError, match=r"finetuned holds one tensor under two names.*in pretrained the two differ"
    ):
        TaskVector.between(end, start, integer_buffers="carry")
    start["head.weight"] = start["head.weight"].clone()
    tv = TaskVector.between(start, end, integer_buffers="carry")
    assert {"wte.weight", "head.weight"} < set(dict(tv.layout))


def test_a_tie_in_one_module_alone_is_named():
    with pytest.raises(
        UserError, match=r"'head.weight' is tied to another tensor in pretrained and .* in finetuned"
    ):
        TaskVector.between(Tied(), Tied(tied=False))
    with pytest.raises(
        UserError, match=r"'head.weight' is tied to another tensor in finetuned and .* in pretrained"
    ):
        TaskVector.between(Tied(tied=False), Tied())


def test_a_copied_tie_is_seen_by_its_content_and_edited_alike(pair):
    start, end = pair
    with pytest.raises(
        UserError, match=r"'wte.weight' and 'head.weight' are equal in both models.*exclude=\['head"
    ):
        TaskVector.between(cloned(start), cloned(end), integer_buffers="carry")
    tv = TaskVector.between(cloned(start), cloned(end), integer_buffers="carry", exclude=["head.weight"])
    assert len(tv) == len(TaskVector.between(start, end)) + 3  # the frequencies
    state = tv.apply_to(cloned(start), -1.0)
    assert torch.equal(state["head.weight"], state["wte.weight"])
    assert not torch.equal(state["wte.weight"], start.wte.weight)


def test_a_copied_tie_is_found_among_others_of_its_shape_whose_sampled_rows_did_not_move():
    generator = source()
    start = {name: torch.randn(64, 8, generator=generator) for name in ("a", "frozen", "wte")}
    end = {name: tensor.clone() for name, tensor in start.items()}
    end["wte"][33] += torch.randn(8, generator=generator)
    end["a"][33] += torch.randn(8, generator=generator)
    TaskVector.between(start, end)
    for state in (start, end):
        state["head"] = state["wte"].clone()
    with pytest.raises(UserError, match="'wte' and 'head' are equal in both models"):
        TaskVector.between(start, end)


def test_tensors_that_are_equal_for_another_reason_are_no_ties():
    ones = {"norm1": torch.ones(8), "norm2": torch.ones(8), "b1": torch.zeros(8), "b2": torch.zeros(8)}
    shifted = {name: tensor + 1 for name, tensor in ones.items()}
    assert TaskVector.between(ones, ones).norm() == 0
    tv = TaskVector.between(ones, shifted)
    assert len(tv) == 32
    part = TaskVector.between({"norm1": ones["norm1"]}, {"norm1": shifted["norm1"]})
    assert torch.equal(part.apply_to(ones, exclude=["norm2", "b?"])["norm2"], torch.ones(8))
    with pytest.raises(UserError, match="pretrained has 'norm2'"):
        part.apply_to(ones)


def test_the_edit_of_a_tied_model_can_be_written_by_safetensors(pair, tmp_path):
    start, end = pair
    safetensors.torch.save_file(
        TaskVector.between(start, end).apply_to(start), tmp_path / "edited.safetensors"
    )


# --- statistics and buffers ------------------------------------------------------------------------------


def trained_statistics(model, *, mean, variance):
    other = moved(model)
    other.running_mean.fill_(mean)
    other.running_var.fill_(variance)
    return other


def test_running_statistics_stay_those_of_the_pretrained_model_and_a_warning_says_how_to_make_them_anew():
    start = nn.BatchNorm1d(3)
    end = trained_statistics(start, mean=2.0, variance=0.1)
    for pair in ((start, end), (start.state_dict(), end.state_dict())):
        with pytest.warns(
            UserWarning, match=r"'running_mean' differs between the models.*update_bn\(batches, model\)"
        ):
            tv = TaskVector.between(*pair, integer_buffers="carry")
        state = (-5 * tv).apply_to(start)
        assert torch.equal(state["running_var"], torch.ones(3))
        assert dict(tv.layout).keys() == {"weight", "bias"}


def test_the_remedy_of_the_warning_makes_the_statistics_of_the_data():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    batches = [torch.randn(64, 2, generator=source(seed)) for seed in range(4)]
    torch.optim.swa_utils.update_bn(batches, model)
    outputs = torch.stack([model[0](batch) for batch in batches])
    torch.testing.assert_close(model[1].running_mean, outputs.mean((0, 1)), atol=1e-6, rtol=1e-5)


def test_a_variance_below_zero_is_refused_with_the_remedy():
    start = nn.BatchNorm1d(3)
    vectors = []
    for variance in (0.1, 0.2):
        end = trained_statistics(start, mean=0.0, variance=variance).state_dict()
        with pytest.warns(UserWarning, match="looks like a running statistic"):
            vectors.append(
                TaskVector.between(start.state_dict(), end, integer_buffers="carry", statistics="merge")
            )
    message = (
        r"'running_var' of the edited model falls to -0\.7, .*Leave the statistics out.*update_bn\(batches"
    )
    with pytest.raises(UserError, match=message):
        sum(vectors).apply_to(start)
    assert torch.allclose(vectors[0].apply_to(start)["running_var"], torch.tensor(0.1))


def test_an_index_that_one_version_of_a_library_saves_is_named_and_carried():
    positions = {"embeddings.position_ids": torch.arange(6)[None]}
    start, end = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    message = (
        r"keys differ: {} has 'embeddings.position_ids', {} has not; it holds torch.int64 and no weights.*"
        r'integer_buffers="carry"'
    )
    with pytest.raises(UserError, match=message.format("pretrained", "finetuned")):
        TaskVector.between({**start, **positions}, end)
    with pytest.raises(UserError, match=message.format("finetuned", "pretrained")):
        TaskVector.between(start, {**end, **positions})
    tv = TaskVector.between({**start, **positions}, end, integer_buffers="carry")
    assert tv.carried == ("embeddings.position_ids",)
    assert set(tv.apply_to({**start, **positions})) == {"w", "embeddings.position_ids"}
    tv = TaskVector.between(start, {**end, **positions}, integer_buffers="carry")
    assert tv.carried == ()
    assert set(tv.apply_to(start)) == {"w"}


def test_a_weight_beside_such_an_index_is_still_missed():
    start = {"w": torch.zeros(2), "position_ids": torch.arange(3)}
    with pytest.raises(UserError, match="finetuned has 'v', pretrained has not"):
        TaskVector.between(start, {"w": torch.ones(2), "v": torch.ones(2)}, integer_buffers="carry")


def test_carried_integers_that_differ_deserve_a_word_but_a_count_does_not():
    start = {"w": torch.zeros(2), "table": torch.arange(3), "count": torch.tensor(1)}
    counted = {"w": torch.ones(2), "table": torch.arange(3), "count": torch.tensor(8)}
    TaskVector.between(start, counted, integer_buffers="carry")
    with pytest.warns(UserWarning, match="'table' differs between the models.*keeps the pretrained one"):
        TaskVector.between(start, {**counted, "table": torch.arange(3) + 1}, integer_buffers="carry")


# --- tensors of which no difference can be taken ---------------------------------------------------------

QUANTISED = {
    "int8, named a weight": {"layer.weight": torch.ones(2, 2, dtype=torch.int8)},
    "packed bytes": {"layer.w": torch.tensor([[3, 250]], dtype=torch.uint8)},
    "codes with scales": {"layer.codes": torch.ones(8, dtype=torch.int32), "layer.scales": torch.ones(2)},
    "codes with a scale named after them": {"w": torch.ones(8, dtype=torch.int8), "w_scale": torch.ones(1)},
    "bitsandbytes": {"fc.weight": torch.ones(8, 1, dtype=torch.uint8), "fc.weight.absmax": torch.ones(1)},
    "GPTQ": {
        "fc.qweight": torch.ones(2, 2, dtype=torch.int32),
        "fc.qzeros": torch.ones(1, dtype=torch.int32),
    },
}


@pytest.mark.parametrize("state", QUANTISED.values(), ids=QUANTISED)
@pytest.mark.parametrize("integer_buffers", ["refuse", "carry"])
def test_quantised_weights_are_refused_and_never_carried(state, integer_buffers):
    state = {**state, "norm": torch.ones(2)}
    with pytest.raises(InputTypeError, match=r"quantised weights.*dequantised") as caught:
        TaskVector.between(state, state, integer_buffers=integer_buffers)
    assert "carry" not in str(caught.value)


def test_masks_indices_and_counts_are_not_taken_for_quantised_weights():
    state = {
        "w": torch.ones(2),
        "attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8).tril(),
        "relative_position_index": torch.arange(16).reshape(4, 4),
        "fake_quant.scale": torch.ones(3),
        "fake_quant.zero_point": torch.zeros(3, dtype=torch.int32),
        "fake_quant.enabled": torch.ones(1, dtype=torch.uint8),
    }
    assert len(TaskVector.between(state, state, integer_buffers="carry").carried) == 4


def odd_tensors():
    plain = torch.eye(2)
    return {
        "sparse": (
            plain.to_sparse(),
            r"'w' is a tensor of layout torch.sparse_coo; make it dense with \.to_dense",
        ),
        "compressed": (plain.to_sparse_csr(), "layout torch.sparse_csr"),
        "float8": (
            plain.to(torch.float8_e4m3fn),
            "float8_e4m3fn, with which torch cannot calculate; give both",
        ),
        "uninitialised": (
            nn.LazyLinear(2).weight,
            "'w' has no shape yet, as in a lazy module; pass one batch",
        ),
        "quantised by torch": (torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8), "quantised by torch"),
        "nested": (torch.nested.nested_tensor([plain, plain]), "nested tensor"),
    }


@pytest.mark.filterwarnings("ignore:.*prototype stage:UserWarning")
@pytest.mark.filterwarnings("ignore:.*beta state:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantize.*")
@pytest.mark.parametrize(
    "kind", ["sparse", "compressed", "float8", "uninitialised", "quantised by torch", "nested"]
)
def test_tensors_that_are_not_plain_ones_are_named_with_the_remedy(kind):
    tensor, message = odd_tensors()[kind]
    odd, plain = {"w": tensor}, {"w": torch.eye(2)}
    for pair in ((odd, odd), (plain, odd), (odd, plain)):
        with pytest.raises(UserError, match=message):
            TaskVector.between(*pair)
    with pytest.raises(UserError, match=message):
        TaskVector.between(plain, plain).apply_to(odd)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_vector_of_eight_bits_is_refused(dtype):
    state = {"w": torch.ones(2)}
    with pytest.raises(InputTypeError, match=r"dtype is torch\.float8.*narrower than the tensors"):
        TaskVector.between(state, state, dtype=dtype)
    with pytest.raises(InputTypeError, match=r"16 bits or more, got torch\.float8"):
        TaskVector.between(state, state).to(dtype=dtype)
    with pytest.raises(InputTypeError, match=r"flat must be a 1-D floating-point tensor.*float8"):
        TaskVector(torch.ones(2).to(dtype), [("w", (2,))])


def test_half_tensors_beside_wide_ones_are_watched_too():
    start = {"norm": torch.ones(4), **half_model(torch.bfloat16)}
    end = {"norm": torch.full((4,), 2.0), "w": start["w"].clone()}
    end["w"][0] += 1
    with pytest.warns(UserWarning, match="100% of the task vector is exactly 0"):
        TaskVector.between(start, end)


def test_tensors_without_entries_are_named():
    state = {"w": torch.empty(2, 2, device="meta")}
    with pytest.raises(InputTypeError, match=r"'w' is on the device meta.*load the weights first"):
        TaskVector.between(state, state)


def test_factors_of_an_adapter_are_refused_with_the_remedy():
    adapter = {
        "base_model.model.q.lora_A.weight": torch.ones(1, 4),
        "base_model.model.q.lora_B.weight": torch.ones(4, 1),
    }
    message = r"holds 'base_model.model.q.lora_A.weight', a factor of a LoRA adapter.*merging\.adapter_vector"
    for pair in ((adapter, adapter), ({"q.weight": torch.ones(4, 4)}, adapter)):
        with pytest.raises(InputTypeError, match=message):
            TaskVector.between(*pair)


# --- how keys come to differ -----------------------------------------------------------------------------

START = {"layer.0.w": torch.zeros(2), "layer.1.w": torch.zeros(2)}


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [
        (["module.{}"], r"take 'module\.' away in front of the keys, where a wrapper"),
        (["_orig_mod.module.{}"], r"take '_orig_mod\.module\.' away in front of the keys, where wrappers"),
        (["module._orig_mod.{}"], r"take 'module\._orig_mod\.' away"),
        (["model.{}"], r"take 'model\.' away in front of the keys of"),
        (["bert.{}"], r"take 'bert\.' away in front of the keys of"),
        (["base_model.model.{}"], r"take 'base_model\.model\.' away in front of the keys of"),
    ],
)
def test_a_prefix_is_named_on_either_side(keys, remedy):
    wrapped = {keys[0].format(name): tensor for name, tensor in START.items()}
    for pair in ((START, wrapped), (wrapped, START)):
        with pytest.raises(UserError, match=f"keys differ: .*{remedy}"):
            TaskVector.between(*pair)
    with pytest.raises(UserError, match=f"keys differ: .*{remedy}"):
        TaskVector.between(START, START).apply_to(wrapped)


@pytest.mark.parametrize("infix", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"])
def test_a_wrapper_inside_the_keys_is_named_and_the_remedy_works(infix):
    wrapped = {name.replace("layer.", f"layer.{infix}."): tensor for name, tensor in START.items()}
    with pytest.raises(UserError, match="keys differ") as caught:
        TaskVector.between(START, wrapped)
    remedy = str(caught.value).partition("put it: ")[2]
    state = eval(remedy, {"state": wrapped})
    assert set(state) == set(START)


def test_a_model_inside_of_a_larger_one_is_found_and_the_remedy_works():
    whole = {f"vision_model.{name}": tensor for name, tensor in START.items()} | {"text.w": torch.ones(2)}
    for pair in ((START, whole), (whole, START)):
        with pytest.raises(
            UserError, match=r"is a larger model with the other one inside, under 'vision_model\.'"
        ) as e:
            TaskVector.between(*pair)
        remedy = str(e.value).partition("give ")[2].partition(" of its state dict")[0]
        assert set(eval(remedy, {"state": whole})) == set(START)


def test_a_checkpoint_of_a_training_run_is_told_from_a_state_dict():
    checkpoint = {"state_dict": START, "epoch": 3}
    message = (
        r"{} is a checkpoint of a training run.*give what is under 'state_dict': checkpoint\['state_dict'\]"
    )
    with pytest.raises(InputTypeError, match=message.format("finetuned")):
        TaskVector.between(START, checkpoint)
    with pytest.raises(InputTypeError, match=message.format("pretrained")):
        TaskVector.between(START, START).apply_to({"epoch": 3, "state_dict": START})


# --- precision -------------------------------------------------------------------------------------------


def half_model(dtype, *, seed=0, by=0.0):
    generator = source(seed)
    numbers = torch.randn(400, generator=generator)
    return {"w": (0.02 * numbers + by * torch.randn(400, generator=source(9))).to(dtype)}


def test_dtypes_may_differ_from_tensor_to_tensor_and_each_comes_back_in_its_own():
    start = {"w": torch.tensor([1.0, 3.0]).bfloat16(), "norm": torch.tensor([1.0, 1.0 / 3])}
    end = {"w": torch.tensor([1.0078125, -3.0]).bfloat16(), "norm": torch.tensor([2.0, 1.0])}
    tv = TaskVector.between(start, end)
    assert tv.flat.dtype == torch.float32
    assert tv.flat[:2].tolist() == [0.0078125, -6.0]
    state = tv.apply_to(start)
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        "w": torch.bfloat16,
        "norm": torch.float32,
    }
    assert torch.equal(state["w"], end["w"])


def test_a_wider_vector_of_a_half_model_is_exact_and_rounded_once():
    start, end = half_model(torch.bfloat16), half_model(torch.bfloat16, by=0.01)
    tv = TaskVector.between(start, end, dtype=torch.float32)
    truth = end["w"].double() - start["w"].double()
    assert torch.equal(tv.flat.double(), truth)
    edited = tv.apply_to(start, 0.3)["w"]
    assert torch.equal(edited, (start["w"].double() + 0.3 * truth).bfloat16())
    with pytest.raises(
        InputTypeError, match=r"dtype is torch.bfloat16, which is narrower than the tensors, torch.float32"
    ):
        TaskVector.between({"w": truth.float()}, {"w": truth.float()}, dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_edit_in_half_precision_is_rounded_once(dtype):
    start, tv = half_model(dtype), TaskVector(half_model(dtype, seed=3)["w"], [("w", (400,))])
    edited = tv.apply_to(start, 0.3)["w"]
    truth = start["w"].double() + 0.3 * tv.flat.double()
    once = (start["w"].float() + 0.3 * tv.flat.float()).to(dtype)
    assert torch.equal(edited, once)
    twice = start["w"] + 0.3 * tv.flat
    assert (edited.double() - truth).norm() < (twice.double() - truth).norm()


def test_a_narrower_vector_is_refused():
    tv = TaskVector(torch.ones(2, dtype=torch.float16), [("w", (2,))])
    for other in (torch.float32, torch.bfloat16, torch.int32):
        with pytest.raises(TypeError, match=r"dtypes differ at 'w': torch.float16 against"):
            tv.apply_to({"w": torch.zeros(2, dtype=other)})


def test_a_sum_beyond_float16_is_called_an_overflow_with_the_remedy():
    a = TaskVector(torch.tensor([6e4, 1.0], dtype=torch.float16), [("w", (2,))])
    message = (
        r"the sum holds 1 value\(s\) that are NaN or infinite, the first \(inf\) at position \(0,\); .* "
        r"beyond the range of torch\.float16, which ends at 65504: .*\.to\(dtype=torch\.float32\)"
    )
    with pytest.raises(UserError, match=message) as caught:
        a + a
    assert "learning rate" not in str(caught.value)
    wide = a.to(dtype=torch.float32)
    assert (wide + wide).flat.tolist() == [1.2e5, 2.0]
    start = {"w": torch.tensor([6e4, 1.0], dtype=torch.float16)}
    with pytest.raises(UserError, match=r"'w' of the edited model, at scaling_coef=1, .*beyond the range"):
        a.apply_to(start)
    with pytest.raises(UserError, match=r"the task vector holds 1 value.*beyond the range of torch.float16"):
        TaskVector.between({"w": -start["w"]}, start)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1, 2])
def test_one_bad_value_anywhere_is_found(dtype, bad, side):
    """Only the difference is looked at; in the middle of many numbers, and where both models have it."""
    states = [{"v": torch.ones(3, dtype=dtype), "w": torch.ones(5000, dtype=dtype)} for _ in range(2)]
    for state in states if side == 2 else [states[side]]:
        state["w"][2718] = bad
    with pytest.raises(
        UserError, match=r"'w' holds 1 value\(s\).*at position \(2718,\); a run that diverged"
    ):
        TaskVector.between(*states)
    with pytest.raises(
        UserError, match=r"'w' holds 1 value\(s\).*at position \(2718,\); a run that diverged"
    ):
        TaskVector(torch.zeros(5003, dtype=dtype), [("v", (3,)), ("w", (5000,))]).apply_to(
            states[min(side, 1)]
        )


def test_what_rounding_has_eaten_of_a_vector_is_told():
    start = half_model(torch.bfloat16)
    small = {"w": (start["w"].float() + 2e-5 * torch.randn(400, generator=source(2))).bfloat16()}
    with pytest.warns(
        UserWarning, match=r"\d\d% of the task vector is exactly 0.*stored in half precision.*float32"
    ):
        tv = TaskVector.between(start, small)
    assert 0.5 < tv.zero_share() == int((tv.flat == 0).sum()) / 400 < 1
    wide = {"w": start["w"].float()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TaskVector.between(wide, {"w": small["w"].float()})
        TaskVector.between(start, half_model(torch.bfloat16, by=0.01))


@pytest.mark.parametrize(("share", "cosine"), [(0.5, 0.93), (2 / 3, 0.87)])
def test_the_docstring_says_what_zeros_cost(share, cosine):
    """A step s of rounding puts the changes below s/2 to zero: P(|x| < s/2) = share."""
    changes = torch.randn(200_000, generator=source(), dtype=torch.float64)
    step = 2 * math.sqrt(2) * float(torch.erfinv(torch.tensor(share)))
    start = torch.rand(200_000, generator=source(1), dtype=torch.float64).mul(100).div(step).round() * step
    rounded = ((start + changes) / step).round() * step - start
    vectors = [TaskVector(x, [("w", (len(x),))]) for x in (changes, rounded)]
    assert vectors[1].zero_share() == pytest.approx(share, abs=0.01)
    assert vectors[0].cosine(vectors[1]) == pytest.approx(cosine, abs=0.015)


def test_an_edit_that_rounding_undoes_is_told_and_the_remedy_keeps_it():
    start = {"w": torch.ones(100, dtype=torch.bfloat16)}
    tv = TaskVector(torch.full((100,), 2.0**-9), [("w", (100,))]).to(dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match=r"100% stay where they were.*vector\.to\(dtype=torch\.float32\)"):
        assert torch.equal(tv.apply_to(start)["w"], start["w"])
    state = {name: tensor.float() for name, tensor in start.items()}
    assert tv.to(dtype=torch.float32).apply_to(state)["w"].tolist() == [1 + 2.0**-9] * 100


# --- memory and files ------------------------------------------------------------------------------------


def test_the_edited_model_is_contiguous_wherever_the_pretrained_one_is_not(tmp_path):
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    start = {**dict(conv.named_parameters()), "t": torch.arange(6.0).reshape(2, 3).T}
    assert not start["weight"].is_contiguous()
    end = {name: tensor.detach() + 1 for name, tensor in start.items()}
    tv = TaskVector.between(start, end)
    state = tv.apply_to(start)
    assert all(tensor.is_contiguous() for tensor in state.values())
    assert all(torch.equal(state[name], start[name] + dict(tv.items())[name]) for name in start)
    safetensors.torch.save_file(state, tmp_path / "edited.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_vectors_large_enough_for_huge_pages_are_the_same(dtype):
    size = (1 << 22) // dtype.itemsize + 3
    start = {"w": torch.rand(size, generator=source(), dtype=torch.float64).to(dtype)}
    end = {"w": torch.rand(size, generator=source(1), dtype=torch.float64).to(dtype)}
    tv = TaskVector.between(start, end)
    assert torch.equal(tv.flat, end["w"] - start["w"])
    assert torch.equal((tv + tv).flat, tv.flat + tv.flat)
    assert tv.apply_to(start)["w"].shape == (size,)


def test_a_conversion_to_the_same_type_has_storage_of_its_own():
    tv = TaskVector(torch.ones(2), [("w", (2,))])
    for same in (tv.to(dtype=torch.float32), tv.to(device="cpu"), tv.ordered_like(tv), tv + 0):
        assert torch.equal(same.flat, tv.flat)
        assert same._flat.data_ptr() != tv._flat.data_ptr()


def test_a_length_that_was_worked_out_once_is_that_of_the_angle():
    a, b = (TaskVector(torch.randn(300, generator=source(s)), [("w", (300,))]) for s in (0, 1))
    first = a.cosine(b)
    assert first == a.cosine(b) == b.cosine(a)
    assert a.norm() == TaskVector(a.flat, a.layout).norm()


def test_a_vector_remembers_its_past(tmp_path):
    path = tmp_path / "merged.safetensors"
    past = {"rule": "ties", "options": {"density": 0.2}, "tasks": ["cars", "dtd"], "epoch": 1}
    plain = TaskVector(torch.ones(2), [("w", (2,))])
    plain.save(path, about=past)
    loaded = TaskVector.load(path)
    assert loaded.about == past
    assert loaded.to(dtype=torch.float64).about == past
    assert (loaded + loaded).about == {}
    loaded.save(path)
    assert TaskVector.load(path).about == past
    loaded.save(path, about={})
    assert TaskVector.load(path).about == {}
    with safetensors.safe_open(path, framework="pt") as stored:
        assert "about" not in json.loads(stored.metadata()["taskvec_mini.TaskVector/2"].partition(" ")[2])
    with pytest.raises(InputTypeError, match="about must hold what JSON can"):
        plain.save(path, about={"rule": torch.ones(1)})


def test_a_changed_past_is_a_damaged_file(tmp_path):
    path = tmp_path / "merged.safetensors"
    TaskVector(torch.ones(2), [("w", (2,))]).save(path, about={"rule": "ties"})
    path.write_bytes(path.read_bytes().replace(b"ties", b"mean"))
    with pytest.raises(UserError, match="checksum does not fit"):
        TaskVector.load(path)
