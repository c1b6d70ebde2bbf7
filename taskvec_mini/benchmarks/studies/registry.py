"""The long experiments behind the chapters; `python -m taskvec_mini.benchmarks record NAME` runs one.

A study is an object with a text `description` and a method `run(options)`, which returns results as plain
JSON. The options are those of the command line: `options.data` is the folder of the data, or None where it is
not given. What the study's attributes `seeds`, `settings`, `data` (the SHA-256 of each file) and `device` say
after the run goes into the record too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from taskvec_mini.benchmarks.studies import text as study_text
from taskvec_mini.benchmarks.studies.ablations import Search
from taskvec_mini.benchmarks.studies.clip.study import Clip
from taskvec_mini.benchmarks.studies.early_or_late import RECIPE, EarlyOrLate
from taskvec_mini.benchmarks.studies.first_epoch import RECIPES, SLOWER, FirstEpoch
from taskvec_mini.benchmarks.studies.probes import Probes
from taskvec_mini.benchmarks.studies.rounds import Rounds
from taskvec_mini.benchmarks.studies.subsets import MostToGain, WhatAMergeNeeds

STUDIES: dict[str, Any] = {
    "05_first_epoch": FirstEpoch(
        RECIPES, "the first epoch of eight tasks under GD, SGD and AdamW (chapter 5)"
    ),
    "05_full_batch": FirstEpoch(SLOWER, "the same under GD at a tenth of the rate (chapter 5)"),
    "06_early_or_late": EarlyOrLate(
        "merged accuracy of eight tasks against epochs, rule by rule, with references (chapter 6)"
    ),
    "06_another_encoder": EarlyOrLate(
        "the same with a MobileNet from ImageNet, for three rules and up to four epochs (chapter 6)",
        backbone="mobilenet",
        recipe=replace(RECIPE, learning_rate=1e-4),
        epochs=(1, 2, 4),
        rules=("mean", "tsv", "regmean_from_vectors"),
    ),
    "06_what_a_merge_needs": WhatAMergeNeeds(),
    "06_most_to_gain": MostToGain(),
    "06_search": Search(),
    "07_rounds": Rounds(
        "a budget of epochs split into rounds of tuning and averaging, beside joint training (chapter 7)",
        post_hoc=True,
    ),
    "07_rounds_regmean": Rounds(
        "the same budget under the rule that merges best here (chapter 7)",
        rule="regmean_from_vectors",
        splits=(1, 8),
    ),
    "07_text": EarlyOrLate(
        "six tasks on short texts: merged accuracy against epochs (chapter 7)",
        backbone="pocket-text",
        recipe=study_text.RECIPE,
        epochs=study_text.EPOCHS,
        rules=("mean", "ties", "tsv", "regmean_from_vectors"),
        make=study_text.make_text_suite,
    ),
    "07_text_rounds": Rounds(
        "the same tasks: a budget of epochs split into rounds, beside joint training (chapter 7)",
        backbone="pocket-text",
        recipe=study_text.RECIPE,
        make=study_text.make_text_suite,
        post_hoc=True,
    ),
    "clip": Clip(),
    "encoder_probes": Probes(),
}
