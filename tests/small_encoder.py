"""A tiny encoder with tiny tasks and heads, which the tests of finetuning and of evaluation share."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from small_images import quarters
from taskvec_mini.benchmarks.encoders import Backbone
from taskvec_mini.benchmarks.heads import PrototypeHead
from taskvec_mini.benchmarks.training import Settings, finetune


def tiny_backbone(seed=0):
    """Images of 8 x 8 pixels to 6 numbers, by a convolution and two layers."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 6), nn.Tanh()
    )
    generator = torch.Generator().manual_seed(seed)
    for part in model.parameters():
        nn.init.normal_(part, 0.0, 0.4, generator=generator)
    return Backbone("tiny", model, image_size=8, mean=(0.4, 0.4, 0.4), std=(0.2, 0.3, 0.2), features=6)


def tiny_task(name="quarters", *, train=37, classes=4, seed=0):
    return dataclasses.replace(quarters(classes, train=train, seed=seed), name=name)


def tiny_head(classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = nn.functional.normalize(torch.randn(classes, 6, generator=generator), dim=1)
    return PrototypeHead(rows, torch.full((6,), 0.1), 5.0)


def tiny_run(
    *, backbone=None, head=None, task=None, folder=None, keep=None, extra_loss=None, speed=None, **changes
):
    """A quiet run of the tiny encoder; `changes` are settings."""
    settings = Settings(**{"learning_rate": 0.01, "epochs": 3, "batch_size": 16, **changes})
    return finetune(
        backbone or tiny_backbone(),
        head or tiny_head(),
        task or tiny_task(),
        settings=settings,
        folder=folder,
        keep=keep,
        progress=False,
        extra_loss=extra_loss,
        speed=speed,
    )


def flat_of(model):
    return torch.cat([part.detach().reshape(-1) for part in model.parameters()])
