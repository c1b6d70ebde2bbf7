"""Studies of a second: tiny images and texts under the names of the bundle, tiny encoders, short grids."""

from __future__ import annotations

import dataclasses
import json

import torch

from small_encoder import tiny_backbone, tiny_task
from small_texts import tiny_text_encoder, tiny_text_task
from taskvec_mini import records
from taskvec_mini.benchmarks.data import SUITES
from taskvec_mini.benchmarks.studies import StudyRequest, ablations, base, early_or_late, first_epoch
from taskvec_mini.benchmarks.studies import rounds as study_rounds
from taskvec_mini.benchmarks.studies import subsets as study_subsets
from taskvec_mini.benchmarks.training import Settings

CORE = SUITES["bundle"].default_tasks
FEW = ("gtsrb", "rsscn7", "cars")
IMAGES = dataclasses.replace(base.IMAGES, share=0.75, recentre=9)
FEW_IMAGES = dataclasses.replace(IMAGES, tasks=FEW)
TEXTS = dataclasses.replace(base.TEXTS, validation=6, recentre=9)
RECIPE = Settings(learning_rate=0.02, epochs=8, batch_size=16, centre="batch")
GRIDS = {rule: coefs[1:3] for rule, coefs in base.SCALING_COEFS.items()}


def make_small(monkeypatch, folder):
    """Studies that are made from now on load tiny tasks and encoders, and keep their runs in a folder."""
    monkeypatch.setattr(base, "load_tasks", load_tiny)
    monkeypatch.setattr(base, "RUNS", folder)
    monkeypatch.setattr(base, "SCALING_COEFS", GRIDS)
    for module in (first_epoch, early_or_late, study_subsets, study_rounds, ablations):
        monkeypatch.setattr(module, "load_backbone", load_small)


def load_tiny(names, *, suite, folder, limit, seed, tokenizer=None):
    """Tasks of unequal size under names of a suite; each seed has examples of its own."""
    assert folder is None
    if suite == "bundle":
        assert limit is None
        places = {name: CORE.index(name) for name in names}
        return {
            name: hard_task(name, train=40 + 4 * i, seed=1000 * seed + 10 * i) for name, i in places.items()
        }
    assert (suite, limit) == ("text", base.TEXTS.limit)
    tasks = {}
    for i, name in enumerate(names):
        task = tiny_text_task(name, classes=2 + i % 3, train=30 + i)
        order = torch.randperm(len(task.train_labels), generator=torch.Generator().manual_seed(seed))
        parts = {"train_tokens": task.train_tokens[order], "train_labels": task.train_labels[order]}
        tasks[name] = dataclasses.replace(task, **parts)
    return tasks


def hard_task(name, *, train, seed):
    """Patches of noise over every image, so that no encoder is always right."""
    task, parts = tiny_task(name, train=train, seed=seed), {}
    generator = torch.Generator().manual_seed(seed)
    for part in ("train_images", "val_images", "test_images"):
        images = getattr(task, part).long()
        noise = torch.randint(0, 140, (len(images), 4, 4, 3), generator=generator)
        spread = noise.repeat_interleave(8, 1).repeat_interleave(8, 2)
        parts[part] = ((images + spread) // 2).to(torch.uint8)
    return dataclasses.replace(task, **parts)


def load_small(name, *, folder=None):
    """A tiny encoder under the name that was asked for."""
    if name == "pocket-text":
        return tiny_text_encoder()
    return dataclasses.replace(tiny_backbone(seed=len(name)), name=name)


def tiny_tasks(seed):
    """The first three quarters of the training images of each task, as a study takes them."""
    tasks = load_tiny(CORE, suite="bundle", folder=None, limit=None, seed=seed)
    for name, task in tasks.items():
        count = round(0.75 * len(task.train_labels))
        parts = {"train_images": task.train_images[:count], "train_labels": task.train_labels[:count]}
        tasks[name] = dataclasses.replace(task, **parts)
    return tasks


def run(study, seeds=(0, 1)):
    """The results of a study with fewer seeds."""
    study.seeds = seeds
    return study.run(StudyRequest())


def counted(state, head, task, *, recentre, split="test"):
    """The share of images that a head sees rightly, its centre moved by hand; rounded as in a record."""
    backbone = tiny_backbone(seed=len("pocket"))
    backbone.model.load_state_dict(state)
    single = lambda image: backbone.model(backbone.prepare(image[None]))[0].detach()  # noqa: E731
    centre = head.centre
    if recentre:
        first = task.train_images[:recentre]
        centre = sum(map(single, first)) / len(first)
    guesses = [int((head.prototypes @ (single(image) - centre)).argmax()) for image in task.part(split)[0]]
    right = sum(a == b for a, b in zip(guesses, task.part(split)[1].tolist(), strict=True))
    return round(right / len(guesses), 5)


def check_record(folder, results, study, names=FEW):
    """What a study says about itself makes a complete record, and comes back as it was."""
    about = {"seeds": study.seeds, "settings": study.settings, "data": study.data}
    written = records.write(folder / "found.json", results, command="record", seconds=1.0, **about)
    assert records.read(folder / "found.json") == written
    assert written["results"] == json.loads(json.dumps(results))
    assert list(study.data) == [f"{name}.npz" for name in names]
