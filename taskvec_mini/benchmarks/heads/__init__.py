"""Frozen heads: from embeddings to classes. Fitted to training data, or made of the names of the classes."""

from taskvec_mini.benchmarks.heads.base import (
    Head,
    LinearHead,
    PrototypeHead,
    centre_of,
    kept_head,
    load_head,
    save_head,
    stored_head,
)
from taskvec_mini.benchmarks.heads.fitted import Probe, check_classes, linear_probe, prototype_head
from taskvec_mini.benchmarks.heads.sentences import SentenceTower, fit_sentence_tower, sentence_tower
from taskvec_mini.benchmarks.heads.templates import TEMPLATES, templates_for, templates_in, words_for
from taskvec_mini.benchmarks.heads.zero_shot import KINDS, kind_of, zero_shot_head

__all__ = [
    "KINDS",
    "TEMPLATES",
    "Head",
    "LinearHead",
    "Probe",
    "PrototypeHead",
    "SentenceTower",
    "centre_of",
    "check_classes",
    "fit_sentence_tower",
    "kept_head",
    "kind_of",
    "linear_probe",
    "load_head",
    "prototype_head",
    "save_head",
    "sentence_tower",
    "stored_head",
    "templates_for",
    "templates_in",
    "words_for",
    "zero_shot_head",
]
