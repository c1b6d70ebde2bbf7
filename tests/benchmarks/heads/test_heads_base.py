"""Heads as modules: logits against the formula, and what moves, copies and files make of them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from taskvec_mini.benchmarks.heads import (
    LinearHead,
    PrototypeHead,
    centre_of,
    kept_head,
    load_head,
    save_head,
    stored_head,
)
from taskvec_mini.errors import MissingFileError, UserError
from taskvec_mini.vectors import TaskVector


def some_head(classes=3, features=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(classes + 1, features, generator=generator)
    return PrototypeHead(nn.functional.normalize(rows[:-1], dim=1), rows[-1], 7.3)


def some_linear_head():
    generator = torch.Generator().manual_seed(2)
    return LinearHead(torch.randn(3, 5, generator=generator), torch.randn(3, generator=generator))


EMBEDDINGS = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
HEADS = pytest.mark.parametrize("make", [some_head, some_linear_head])


# --- a head ----------------------------------------------------------------------------------------------


def test_logits_are_scaled_cosines_from_the_centre():
    head = some_head()
    embeddings = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    found = head(embeddings)
    for i, embedding in enumerate(embeddings.double().numpy()):
        away = embedding - head.centre.double().numpy()
        for j, prototype in enumerate(head.prototypes.double().numpy()):
            cosine = away @ prototype / np.sqrt(away @ away) / np.sqrt(prototype @ prototype)
            assert found[i, j].item() == pytest.approx(7.3 * cosine, abs=1e-5)


def test_gradients_reach_the_embeddings_and_not_the_head():
    head, embeddings = some_head(), torch.ones(2, 5, requires_grad=True)
    head(embeddings)[:, 0].sum().backward()
    assert float(embeddings.grad.norm()) > 0
    assert not head.prototypes.requires_grad
    assert not head.centre.requires_grad


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prototypes": torch.ones(3, 4)}, r"\(3, 4\) and \(5,\)"),
        ({"prototypes": torch.ones(5)}, r"\(C, F\)"),
        ({"centre": torch.zeros(3, 5)}, r"\(3, 5\) and \(3, 5\)"),
        ({"prototypes": torch.tensor([[1.0] * 5, [0.0] * 5])}, "class 1 is zero"),
        ({"centre": torch.full((5,), float("nan"))}, "centre holds 5 value"),
        ({"prototypes": torch.full((3, 5), float("inf"))}, "prototypes holds 15 value"),
        ({"logit_scale": 0.0}, "logit_scale must be above 0"),
        ({"logit_scale": float("nan")}, "logit_scale must be finite"),
    ],
)
def test_a_head_that_cannot_work_is_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        PrototypeHead(
            **{"prototypes": torch.eye(3, 5), "centre": torch.zeros(5), "logit_scale": 7.3, **changed}
        )


def test_a_linear_head_is_a_matrix_product():
    weight, bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, 20.0])
    assert LinearHead(weight, bias)(torch.tensor([[1.0, 1.0]])).tolist() == [[13.0, 27.0]]
    with pytest.raises(UserError, match=r"weight must be \(C, F\) and bias \(C,\), got \(2, 2\) and \(3,\)"):
        LinearHead(weight, torch.zeros(3))


# --- a head is a module ----------------------------------------------------------------------------------


@HEADS
def test_nothing_in_a_head_is_trained(make):
    head = make()
    assert not list(head.parameters())
    assert not any(buffer.requires_grad for buffer in head.buffers())
    assert not head.train().training
    model = nn.Sequential(nn.Linear(5, 5), head).train()
    assert not head.training
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"0"}


def test_a_head_made_of_parameters_is_frozen_too():
    trained = nn.Parameter(torch.eye(3, 5))
    head = PrototypeHead(trained, torch.zeros(5, requires_grad=True), 2.0)
    assert not list(head.parameters())
    assert not head(EMBEDDINGS).requires_grad


@HEADS
def test_a_head_in_double_precision_is_the_formula_in_double_precision(make):
    head = make()
    wide = copy.deepcopy(head).double()
    assert wide(EMBEDDINGS.double()).dtype == torch.float64
    assert head(EMBEDDINGS).dtype == torch.float32  # a copy was made wide, not this one
    torch.testing.assert_close(wide(EMBEDDINGS.double()).float(), head(EMBEDDINGS))


def test_the_scale_is_rounded_by_no_change_of_number_format():
    head = PrototypeHead(torch.eye(3, 5), torch.zeros(5), 0.1)
    for _ in range(2):
        assert copy.deepcopy(head).float().double().logit_scale == 0.1
        other = PrototypeHead(torch.ones(3, 5), torch.ones(5), 7.0)
        other.load_state_dict(head.state_dict())
        head = other
    assert head.logit_scale == 0.1
    direction = nn.functional.normalize(EMBEDDINGS.double(), dim=1)
    assert torch.equal(head.double()(EMBEDDINGS.double()), 0.1 * direction[:, :3])


def test_a_head_moves_to_another_device():
    head = copy.deepcopy(some_head()).to("meta")
    assert {buffer.device.type for buffer in head.buffers()} == {"meta"}
    assert head(torch.zeros(2, 5, device="meta")).shape == (2, 3)


@HEADS
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))], ids=["copy", "pickle"]
)
def test_copies_answer_with_the_same_bits_and_share_no_memory(make, copied):
    head = make()
    other = copied(head)
    assert torch.equal(other(EMBEDDINGS), head(EMBEDDINGS))
    for buffer in other.buffers():
        buffer.zero_()
    assert head(EMBEDDINGS).any()


def test_only_a_head_with_a_centre_has_one_to_move():
    head = some_head()
    assert centre_of(head) is head.centre
    with pytest.raises(UserError, match=r"a LinearHead has no centre to move; use heads\.prototype_head"):
        centre_of(some_linear_head())


# --- files -----------------------------------------------------------------------------------------------


@HEADS
def test_a_head_comes_back_from_its_file_bit_for_bit(tmp_path, make):
    head = make()
    save_head(head, tmp_path / "head.safetensors")
    loaded = load_head(tmp_path / "head.safetensors")
    assert type(loaded) is type(head)
    assert loaded.state_dict().keys() == head.state_dict().keys()
    assert all(torch.equal(part, head.state_dict()[name]) for name, part in loaded.state_dict().items())
    assert torch.equal(loaded(EMBEDDINGS), head(EMBEDDINGS))
    assert [path.name for path in tmp_path.iterdir()] == ["head.safetensors"]


@pytest.mark.parametrize("position", [-1, -30, 60])
def test_a_flipped_bit_is_noticed(tmp_path, position):
    path = tmp_path / "head.safetensors"
    save_head(some_head(), path)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"head\.safetensors"):
        load_head(path)


def test_heads_and_task_vectors_are_not_taken_for_one_another(tmp_path):
    vector = TaskVector(torch.ones(4), [("weight", (4,))])
    vector.save(tmp_path / "vector.safetensors")
    with pytest.raises(ValueError, match="no head; write it again with save_head"):
        load_head(tmp_path / "vector.safetensors")
    save_head(some_head(), tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match="no task vector"):
        TaskVector.load(tmp_path / "head.safetensors")


def test_a_pickle_and_a_missing_file_are_refused(tmp_path):
    torch.save({"prototypes": torch.ones(2)}, tmp_path / "head.pt")
    with pytest.raises(ValueError, match="pickle"):
        load_head(tmp_path / "head.pt")
    with pytest.raises(FileNotFoundError):
        load_head(tmp_path / "none.safetensors")
    with pytest.raises(OSError, match="none"):
        save_head(some_head(), tmp_path / "none" / "head.safetensors")


def test_parts_of_one_tensor_and_turned_ones_can_be_saved(tmp_path):
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(3)).T
    head = PrototypeHead(rows[:3], rows[3], 1.5)
    save_head(head, tmp_path / "head.safetensors")
    assert torch.equal(load_head(tmp_path / "head.safetensors")(EMBEDDINGS), head(EMBEDDINGS))


def test_a_head_of_another_kind_is_not_written_because_it_could_not_be_read(tmp_path):
    class Steeper(PrototypeHead):
        pass

    with pytest.raises(TypeError, match="writes a PrototypeHead or a LinearHead, got Steeper"):
        save_head(Steeper(torch.eye(2), torch.zeros(2), 1.0), tmp_path / "head.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_head_is_made_once_and_a_lost_or_damaged_one_is_explained(tmp_path):
    path, made = tmp_path / "run" / "head.safetensors", []

    def make(task):
        made.append(task)
        return some_head()

    first = kept_head(path, "a task", make)
    again = kept_head(path, "a task", make)
    assert made == ["a task"]
    assert torch.equal(first(EMBEDDINGS), again(EMBEDDINGS))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"head\.safetensors .*; delete this file and give the command that"):
        stored_head(path)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"no head .*; give the command that made the runs"):
        stored_head(path)
