"""Fitted heads: prototypes against a slow loop, a probe against scikit-learn."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from small_images import images_of, quarters
from taskvec_mini.benchmarks.encoders import Backbone, embed
from taskvec_mini.benchmarks.heads import linear_probe, prototype_head


class Pooled(nn.Module):
    """A cheap encoder: a seeded linear map of the picture shrunk to 4 x 4 positions."""

    def __init__(self, features=12):
        super().__init__()
        self.map = nn.Linear(48, features)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 0.3, generator=torch.Generator().manual_seed(5))

    def forward(self, images):
        return self.map(nn.functional.adaptive_avg_pool2d(images, 4).flatten(1))


@pytest.fixture(scope="module")
def backbone():
    return Backbone("pooled", Pooled(), image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, features=12)


@pytest.fixture(scope="module")
def task():
    return quarters(4, train=60, val=40, test=40)


# --- prototypes ------------------------------------------------------------------------------------------


def slow_prototypes(embeddings, labels, classes, centred):
    """Image by image, in plain numpy."""
    rows = embeddings.double().numpy()
    centre = sum(rows) / len(rows) if centred else np.zeros(rows.shape[1])
    sums = [np.zeros(rows.shape[1]) for _ in range(classes)]
    counts = [0] * classes
    for row, label in zip(rows, labels.tolist(), strict=True):
        away = row - centre
        sums[label] += away / np.sqrt((away * away).sum())
        counts[label] += 1
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    return centre, np.stack([mean / np.sqrt((mean * mean).sum()) for mean in means])


@pytest.mark.parametrize("centred", [True, False])
def test_prototypes_are_the_mean_directions_of_each_class(backbone, centred):
    task = quarters(3, train=50)  # classes of unequal size, so that a mean of class means would differ
    head = prototype_head(backbone, task, centred=centred, logit_scale=9.0, batch_size=7)
    embeddings = embed(backbone, task.train_images)
    centre, prototypes = slow_prototypes(embeddings, task.train_labels, 3, centred)
    np.testing.assert_allclose(head.centre.numpy(), centre, atol=1e-6)
    np.testing.assert_allclose(head.prototypes.numpy(), prototypes, atol=2e-6)
    assert head.logit_scale == 9.0


def test_prototypes_recognise_unseen_images_and_only_training_images_make_them(backbone, task):
    head = prototype_head(backbone, task)
    answers = head(embed(backbone, task.test_images)).argmax(1)
    assert float((answers == task.test_labels).double().mean()) > 0.9
    other = dataclasses.replace(
        task, val_images=task.val_images.flip(1), test_images=task.test_images.flip(1)
    )
    assert torch.equal(prototype_head(backbone, other).prototypes, head.prototypes)


def test_a_head_does_not_follow_the_encoder_it_was_made_with(task):
    backbone = Backbone("pooled", Pooled(), image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, features=12)
    head = prototype_head(backbone, task)
    before = head.prototypes.clone(), head.centre.clone()
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.add_(1.0)
    assert torch.equal(head.prototypes, before[0])
    assert torch.equal(head.centre, before[1])


@pytest.mark.parametrize("make", [prototype_head, linear_probe])
def test_a_class_without_training_images_is_named(backbone, task, make):
    kept = task.train_labels != 2
    short = dataclasses.replace(
        task, train_images=task.train_images[kept], train_labels=task.train_labels[kept]
    )
    with pytest.raises(
        ValueError, match=r"no training image of 1 of its 4 classes, the first 'class 2'.*limit"
    ):
        make(backbone, short)


def test_two_classes_with_one_picture_are_told_apart_by_nothing(backbone):
    task = quarters(2, train=4)
    same = dataclasses.replace(task, train_images=task.train_images[:1].expand(4, -1, -1, -1))
    with pytest.raises(ValueError, match="is zero, so nothing points to this class"):
        prototype_head(backbone, same)


# --- the linear probe ------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
def test_a_probe_is_scikit_learns_logistic_regression_on_standardised_embeddings(backbone, classes):
    task = quarters(classes, train=60)
    probe = linear_probe(backbone, task, inverse_penalties=[0.05])
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2000))
    pipeline.fit(embed(backbone, task.train_images).double().numpy(), task.train_labels.numpy())
    test = embed(backbone, task.test_images)
    expected = pipeline.predict_proba(test.double().numpy())
    np.testing.assert_allclose(probe.head(test).softmax(1).numpy(), expected, atol=1e-4)
    assert probe.accuracy == pipeline.score(test.double().numpy(), task.test_labels.numpy())


def hard_task():
    """Few images whose labels are wrong now and then, so that the penalty matters."""
    task = quarters(4, train=60, val=60, test=40)
    generator = torch.Generator().manual_seed(3)
    wrong = torch.randint(0, 4, (20,), generator=generator)
    return dataclasses.replace(task, train_labels=torch.cat([wrong, task.train_labels[20:]]))


def test_the_penalty_is_chosen_on_validation_images(backbone):
    task, choices = hard_task(), (1e-6, 0.01, 100.0)
    each = [linear_probe(backbone, task, inverse_penalties=[choice]) for choice in choices]
    scores = [probe.val_accuracy for probe in each]
    assert len(set(scores)) > 1, "the choice must matter for this test to say anything"
    best = scores.index(max(scores))
    chosen = linear_probe(backbone, task, inverse_penalties=choices[::-1])
    assert chosen.inverse_penalty == choices[best]
    assert (chosen.val_accuracy, chosen.accuracy) == (scores[best], each[best].accuracy)


def test_test_images_play_no_part_in_a_probes_choice(backbone):
    task = hard_task()
    labels = torch.arange(4)
    other = dataclasses.replace(task, test_images=images_of(labels, seed=9), test_labels=labels.flip(0))
    first, second = linear_probe(backbone, task), linear_probe(backbone, other)
    assert first.inverse_penalty == second.inverse_penalty
    assert torch.equal(first.head.weight, second.head.weight)
    assert second.accuracy < first.accuracy


def test_of_equal_penalties_the_smallest_counts(backbone, task):
    probe = linear_probe(backbone, task, inverse_penalties=[100.0, 1.0, 10.0])
    assert probe.val_accuracy == 1.0
    assert probe.inverse_penalty == 1.0


def test_a_feature_that_never_changes_does_no_harm(task):
    model = Pooled()
    with torch.no_grad():
        model.map.weight[3] = 0
    probe = linear_probe(
        Backbone("pooled", model, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, features=12), task
    )
    assert probe.accuracy > 0.9
    assert bool(torch.isfinite(probe.head.weight).all())


@pytest.mark.parametrize(("penalties", "words"), [([], "is empty"), ([1.0, 0.0], "above 0")])
def test_penalties_that_cannot_be_are_refused(backbone, task, penalties, words):
    with pytest.raises(ValueError, match=words):
        linear_probe(backbone, task, inverse_penalties=penalties)
