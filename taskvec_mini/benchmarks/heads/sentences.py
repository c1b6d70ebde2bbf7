"""Sentences for an encoder that has only ever seen images: a linear map from one space to the other.

A classifier has a direction for each of its classes, and a sentence encoder has an embedding of each of their
names. Ridge regression from the embeddings to the directions then places any other sentence among the images:
DeViSE (Frome et al., NeurIPS 2013) learnt such a map from words, and LiT (Zhai et al., CVPR 2022,
arXiv:2111.07991) trains a whole text tower for an image encoder that stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec_mini import _checks, _imports
from taskvec_mini.benchmarks.encoders import TextBackbone, embed, load_backbone
from taskvec_mini.benchmarks.encoders.efficientnet import WEIGHTS, classifier_rows
from taskvec_mini.errors import UserError

IMAGENET_TEMPLATES = ("a photo of {}", "a picture of {}", "{}")
PENALTY = 5.0  # of the ridge; between 0.5 and 10 as many names that were left out are found again


@dataclass(frozen=True, eq=False)
class SentenceTower:
    """From sentences to directions among the embeddings of an image encoder.

    Attributes:
        sentences: the encoder of sentences.
        weight: (text features, image features), float64: what a centred embedding is multiplied with.
        centre: (text features,), float64: the mean embedding of the names that the map was fitted to.
    """

    sentences: TextBackbone
    weight: Tensor
    centre: Tensor

    def directions(self, words: Sequence[str], *, templates: Sequence[str]) -> Tensor:
        """A unit direction (len(words), image features), float32, for each of some words.

        Every template is filled with the words; the embeddings are brought to length one and averaged, as
        for CLIP, before they are mapped.
        """
        rows = word_embeddings(self.sentences, words, templates=templates)
        return F.normalize((rows - self.centre) @ self.weight, dim=1).float()


def fit_sentence_tower(
    sentences: TextBackbone,
    words: Sequence[str],
    directions: Tensor,
    *,
    templates: Sequence[str] = IMAGENET_TEMPLATES,
    penalty: float = PENALTY,
) -> SentenceTower:
    """Ridge regression from the embeddings of some words to the directions that a classifier has for them.

    It minimises Σ_i ‖(e_i − ē) W − d_i‖² + penalty ‖W‖², where e_i is the mean unit embedding of the filled
    templates, ē the mean over words, and d_i the i-th row of the classifier, less their mean, at length one.

    Args:
        sentences: the encoder of sentences.
        words: N names of classes.
        directions: (N, features), the rows of a classifier on an image encoder's embeddings.
        templates: sentences with a `{}`, where a word goes.
        penalty: above 0.

    Raises:
        UserError: if there are not as many rows as words, or the penalty is not above 0.

    Example:
        >>> sentences = load_backbone("random-pocket-text")
        >>> tower = fit_sentence_tower(sentences, ["a cat", "a dog", "a car"], torch.eye(3))
        >>> tower.directions(["a cat"], templates=["{}"]).shape
        torch.Size([1, 3])
    """
    if directions.ndim != 2 or len(directions) != len(words):
        raise UserError(
            f"directions must have a row for each of the {len(words)} words, got the shape "
            f"{tuple(directions.shape)}"
        )
    penalty = _checks.positive_number("penalty", penalty, example=PENALTY)
    rows = word_embeddings(sentences, words, templates=templates)
    centre = rows.mean(0)
    rows = rows - centre
    wanted = directions.double().cpu()
    wanted = F.normalize(wanted - wanted.mean(0), dim=1)
    gram = rows.T @ rows + penalty * torch.eye(rows.shape[1], dtype=rows.dtype)
    return SentenceTower(sentences, torch.linalg.solve(gram, rows.T @ wanted), centre)


def sentence_tower(name: str) -> SentenceTower:
    """The tower of an encoder from ImageNet, fitted to the names of its 1,000 classes; takes ten seconds.

    The sentence encoder is `minilm`. No image plays a part, but both encoders were pretrained on much: what
    the tower makes of words is zero-shot for a task whose images and labels neither has seen.

    Args:
        name: one of the EfficientNets in `encoders.BACKBONES`.

    Raises:
        UserError: if the encoder has no classifier here.
        MissingPackageError: if the weights or the sentence encoder are not installed.
    """
    if name not in WEIGHTS:
        raise UserError(f"{name} has no rows for ImageNet's classes here, only {', '.join(WEIGHTS)} have")
    models = _imports.load("torchvision.models", needed_for="ImageNet's names", install="torchvision")
    names: list[str] = models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    sentences = load_backbone("minilm")
    assert isinstance(sentences, TextBackbone)
    return fit_sentence_tower(sentences, names, classifier_rows(name))


def word_embeddings(sentences: TextBackbone, words: Sequence[str], *, templates: Sequence[str]) -> Tensor:
    """Unit embeddings (len(words), features), float64: the mean direction over the filled templates."""
    texts = [template.replace("{}", word) for word in words for template in templates]
    rows = F.normalize(embed(sentences, sentences.tokenize(texts)).double().cpu(), dim=1)
    return F.normalize(rows.view(len(words), len(templates), -1).mean(1), dim=1)
