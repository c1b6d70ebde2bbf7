"""Templates and words for classes: every class gets words of its own, also for CLIP's tokenizer."""

import dataclasses
import os
import string
from pathlib import Path

import numpy as np
import open_clip
import pytest

from small_images import quarters
from taskvec_mini.benchmarks.data import torchvision_sets
from taskvec_mini.benchmarks.data.suites import bundle_files
from taskvec_mini.benchmarks.heads import TEMPLATES, templates_for, words_for

DATA = os.environ.get("TASKVEC_MINI_DATA")
SIGNS = torchvision_sets.sources()["gtsrb"].class_names
EUROSAT = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
    "Residential", "River", "SeaLake",
)  # fmt: skip


def named(name, classes):
    """A task of this name and these classes; only words matter."""
    return dataclasses.replace(quarters(len(classes)), name=name, class_names=tuple(classes))


@pytest.mark.parametrize(
    ("templates", "error", "words"),
    [
        ("a {}", TypeError, r"several texts, got one; pass templates=\['a \{\}'\]"),
        ([], ValueError, "templates is empty"),
        (["a {}", "nothing"], ValueError, r"'nothing' must have one \{\}"),
        (["{} or {}"], ValueError, r"must have one \{\}"),
        (["{} {0}"], ValueError, r"must have one \{\}"),
        (["{name}"], ValueError, r"must have one \{\}"),
    ],
)
def test_templates_need_one_place_for_the_class(templates, error, words):
    with pytest.raises(error, match=words):
        templates_for(named("pets", ["cat", "dog", "owl", "newt"]), templates)


def test_classes_whose_names_are_codes_get_words():
    assert words_for(named("mnist", ["0", "7", "9 - nine", "x"])) == [
        "the digit 0",
        "the digit 7",
        "the digit 9",
        "x",
    ]
    assert words_for(named("streetchars", ["8", "B", "Q", "0"])) == [
        "the digit 8",
        "the letter B",
        "the letter Q",
        "the digit 0",
    ]
    assert words_for(named("eurosat", ["SeaLake", "AnnualCrop", "forest", "River"]))[2:] == [
        "forest",
        "a river",
    ]
    assert words_for(named("resisc45", ["sea_ice", "a/b", "ship", " golf  course "])) == [
        "sea ice",
        "a b",
        "ship",
        "golf course",
    ]


def test_every_traffic_sign_has_words_under_its_name_and_under_its_number():
    names = SIGNS
    numbers = [str(label) for label in range(43)]
    words = words_for(named("gtsrb", names))
    assert words == words_for(named("gtsrb", numbers))
    assert len(set(words)) == 43
    for name, sign in zip(names, words, strict=True):
        if name.startswith("speed limit"):
            assert sign == f"at most {name.split()[-1]} kilometres an hour"
        for side in ("left", "right"):
            if f" {side}" in name and "narrows" not in name:
                assert f" {side}" in sign, name


def test_the_texts_of_our_data_sets_differ_from_class_to_class_for_the_tokenizer():
    """The tokenizer forgets capitals; no two classes may become one."""
    for name, classes in (
        ("gtsrb", SIGNS),
        ("eurosat", list(EUROSAT)),
        ("streetchars", [*string.digits, *string.ascii_uppercase]),
    ):
        words = words_for(named(name, classes))
        tokens = open_clip.tokenize([TEMPLATES[name][0].replace("{}", each) for each in words])
        assert len(tokens.unique(dim=0)) == len(classes), name
        assert int((tokens > 0).sum(1).max()) < 40


@pytest.mark.skipif(not DATA, reason="TASKVEC_MINI_DATA names no folder of real images")
def test_every_task_of_the_bundle_has_templates_and_different_words():
    for name, known in bundle_files().items():
        with np.load(Path(DATA) / known.file, allow_pickle=False) as stored:
            classes = list(map(str, stored["class_names"]))
        assert templates_for(named(name, classes))
        assert len(set(words_for(named(name, classes)))) == len(classes), name
