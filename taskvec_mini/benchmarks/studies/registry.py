"""The studies by name; `python -m taskvec_mini.benchmarks record NAME` runs one and writes its record."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from taskvec_mini.benchmarks.data import SUITES
from taskvec_mini.benchmarks.encoders.minilm import first_layers, redrawn_layers
from taskvec_mini.benchmarks.studies.ablations import Probes, Search, Spread
from taskvec_mini.benchmarks.studies.base import RECIPE, TEXT_EPOCHS, TEXT_RECIPE, TEXTS, Several, Study
from taskvec_mini.benchmarks.studies.clip.study import Clip
from taskvec_mini.benchmarks.studies.corrected import DESCENT_RATES, DESCENT_TEXTS, TEXT_DESCENT, Corrected
from taskvec_mini.benchmarks.studies.early_or_late import EarlyOrLate
from taskvec_mini.benchmarks.studies.exchange import RATES, TEXT_RECIPES, TEXTS_OF_FOUR, Exchange
from taskvec_mini.benchmarks.studies.exchange import RECIPES as EXCHANGE_RECIPES
from taskvec_mini.benchmarks.studies.first_epoch import (
    DESCENT_IMAGES,
    EPOCHS,
    IMAGE_RATES,
    IMAGE_RECIPES,
    RECIPES,
    SLOWER,
    FirstEpoch,
)
from taskvec_mini.benchmarks.studies.good_start import CANDIDATES, PARTS, GoodStart
from taskvec_mini.benchmarks.studies.kept_specialists import Forgotten, Pairs, Paths, Readings
from taskvec_mini.benchmarks.studies.rounds import Rounds
from taskvec_mini.benchmarks.studies.subsets import Subsets, some_subsets
from taskvec_mini.benchmarks.studies.task_choice import (
    IMAGE_EPOCH,
    IMAGE_RATE,
    IMAGE_SUITE,
    IMAGE_TASKS,
    TEXT_EPOCH,
    TEXT_SUITE,
    TEXT_TASKS,
    TaskChoice,
)

MINILM = GoodStart(
    "texts from a well-pretrained start: merges, specialists and probes, by rule and age (chapter 6)",
    tasks=replace(TEXT_SUITE, tasks=TEXT_TASKS, validation=120),  # a coefficient needs fewer than a choice
    rules=tuple(name for name in CANDIDATES if name != "wudi_300_steps"),  # see `06_minilm_wudi`
)
EFFICIENTNET = GoodStart(
    "images from a well-pretrained start: merges, specialists and probes, by rule and age (chapter 6)",
    backbone="efficientnet-lite0",
    tasks=replace(IMAGE_SUITE, tasks=IMAGE_TASKS, limit=1500, validation=120),
    recipe=replace(IMAGE_EPOCH, learning_rate=IMAGE_RATE, epochs=4 * PARTS, parts=PARTS),
    ages=(2, 4, 8, 16),
    rules=MINILM.rules,
    options={"kernels": "matrix"},
)
EFFICIENTNET_AGES = replace(
    EFFICIENTNET,
    description="the same runs after a quarter of an epoch, and prolonged to eight (chapter 6)",
    recipe=replace(EFFICIENTNET.recipe, epochs=8 * PARTS),
    ages=(1, 8 * PARTS),
    rules=("mean", "ties", "tsv", "iso_c", "iso_cts", "regmean_from_vectors", "wudi"),
)
MINILM_AGES = replace(
    MINILM,
    description="the same runs prolonged to eight epochs (chapter 6)",
    recipe=replace(MINILM.recipe, epochs=8 * PARTS),
    ages=(8 * PARTS,),
    rules=(*EFFICIENTNET_AGES.rules, "wudi_300_steps"),
)
MINILM_ROUNDS = Rounds(
    "the same from a well-pretrained start, on four tasks of texts with MiniLM (chapter 7)",
    backbone="minilm",
    tasks=replace(TEXTS_OF_FOUR, test=400, runs="rounds"),
    recipe=TEXT_EPOCH,
    budget=4,
    splits=(1, 2, 4),
    post_hoc=True,
)
IN_WORDS = (
    "rsscn7",
    "dtd10",
    "cars",
    "scenes15",
    "cifar10",
    "fashion_mnist",
)  # no signs, no digits
SENTENCES = GoodStart(
    "heads made of sentences: six tasks on images, finetuned and merged under them (chapter 8)",
    backbone="efficientnet-lite0",
    tasks=replace(
        IMAGE_SUITE,
        tasks=IN_WORDS,
        limit=1000,
        validation=120,
        recentre=0,
        heads="zero-shot",
        runs="sentences",
    ),
    recipe=replace(IMAGE_EPOCH, learning_rate=IMAGE_RATE, epochs=4, centre="frozen"),
    ages=(1, 4),
    rules=("mean", "ties", "tsv", "iso_c"),
    options=EFFICIENTNET.options,
)
ONE_PASS = replace(MINILM, ages=(PARTS,), rules=("mean", "iso_c"), jointly=False)
MINILM_WUDI = replace(
    MINILM,
    description="the same under WUDI by 300 steps of Adam, as its authors take it (chapter 6)",
    ages=(PARTS, 4 * PARTS),
    rules=("wudi_300_steps",),
    jointly=False,
)
WEAKER: dict[str, GoodStart] = {  # by what is left of the pretraining
    "3 of 6 layers": replace(ONE_PASS, change=partial(first_layers, layers=3)),
    "1 of 6 layers": replace(ONE_PASS, change=partial(first_layers, layers=1)),
    "last 2 layers redrawn": replace(ONE_PASS, change=partial(redrawn_layers, layers=2)),
    "last 4 layers redrawn": replace(ONE_PASS, change=partial(redrawn_layers, layers=4)),
    "nothing pretrained": replace(ONE_PASS, backbone="random-minilm"),
}
CENTRES = {"frozen": ("frozen", 0), "moved": ("batch", IMAGE_SUITE.recentre)}  # in training, in judging
IMAGE_SEARCH = {  # the files have 96 pixels a side and fewer: larger ones would show nothing more
    f"{size} pixels, centre {name}": TaskChoice(
        "one of the variants",
        backbone="efficientnet-lite0",
        image_size=size,
        tasks=replace(IMAGE_SUITE, limit=1000, recentre=recentre),
        recipe=replace(IMAGE_EPOCH, centre=centre),
        rates=(IMAGE_EPOCH.learning_rate,),
    )
    for size in (64, 96)
    for name, (centre, recentre) in CENTRES.items()
}
STUDIES: dict[str, Study] = {
    "05_first_epoch": FirstEpoch(
        "the first epoch of eight tasks under GD, SGD and AdamW (chapter 5)", recipes=RECIPES
    ),
    "05_full_batch": FirstEpoch("the same under GD at a tenth of the rate (chapter 5)", recipes=SLOWER),
    "05_minilm_descent": FirstEpoch(
        "the first epoch of SGD and full batches on texts, from a well-pretrained start (chapter 5)",
        backbone="minilm",
        tasks=replace(TEXTS_OF_FOUR, limit=300, precision="float32", runs="descent"),
        recipes={
            "gd": replace(TEXT_DESCENT, epochs=EPOCHS),
            "sgd": replace(TEXT_RECIPES["sgd"], epochs=EPOCHS),
        },
        mini_batch=TEXT_RECIPES["sgd"].batch_size,
    ),
    "05_efficientnet_descent": FirstEpoch(
        "the first epoch of SGD and full batches on images, from a well-pretrained start (chapter 5)",
        backbone="efficientnet-lite0",
        tasks=DESCENT_IMAGES,
        recipes={name: replace(recipe, epochs=EPOCHS) for name, recipe in IMAGE_RECIPES.items()},
    ),
    "05_efficientnet_rates": Several(
        "learning rates of GD and SGD for a well-pretrained encoder, by what specialists reach (chapter 5)",
        IMAGE_RATES,
        seeds=(0,),
    ),
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
    "06_what_a_merge_needs": Subsets(
        "merged accuracy against the number of tasks, their kinship and the head's centre (chapter 6)",
        subsets=some_subsets(SUITES["bundle"].default_tasks),
    ),
    "06_search": Search(),
    "06_minilm_tasks": TaskChoice(
        "ten tasks on texts for a well-pretrained encoder, each by itself: what it has to learn (chapter 6)"
    ),
    "06_minilm": MINILM,
    "06_minilm_wudi": MINILM_WUDI,
    "06_minilm_ages": MINILM_AGES,
    "06_minilm_pairs": Pairs(
        "each pair of its tasks merged by itself after one epoch (chapter 6)", specialists=MINILM
    ),
    "06_minilm_forgotten": Forgotten(
        "which training examples its merges forget, by when the specialists learnt them (chapter 6)",
        specialists=MINILM,
    ),
    "06_minilm_readings": Readings(
        "texts that its start has wrong, as a specialist and the merge read them (chapter 6)",
        specialists=MINILM,
        tasks=("banking77", "clinc10"),
    ),
    "06_weaker_starts": Several(
        "the same after one epoch, from encoders of which less is pretrained (chapter 6)", WEAKER
    ),
    "06_efficientnet_search": Several(
        "the size of the images and the centre of the heads, by what specialists reach (chapter 6)",
        IMAGE_SEARCH,
        seeds=(0,),
    ),
    "06_efficientnet": EFFICIENTNET,
    "06_efficientnet_ages": EFFICIENTNET_AGES,
    "06_efficientnet_readings": Readings(
        "images that its start has wrong, as a specialist and the merge read them (chapter 6)",
        specialists=EFFICIENTNET,
        tasks=("mnist", "fashion_mnist", "sign_digits"),
    ),
    "05_efficientnet_paths": Paths(
        "norms and directions from age to age on images, from a well-pretrained start (chapter 5)",
        specialists=EFFICIENTNET,
    ),
    "06_efficientnet_tasks": TaskChoice(
        "ten tasks on images for a well-pretrained encoder, each by itself: what it has to learn (chapter 6)",
        backbone="efficientnet-lite0",
        tasks=IMAGE_SUITE,
        recipe=IMAGE_EPOCH,
        rates=(1e-4, 3e-4, 1e-3),
    ),
    "05_minilm_paths": Paths(
        "norms and directions from age to age on texts, from a well-pretrained start (chapter 5)",
        specialists=MINILM,
    ),
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
        tasks=TEXTS,
        recipe=TEXT_RECIPE,
        epochs=TEXT_EPOCHS,
        rules=("mean", "ties", "tsv", "regmean_from_vectors"),
    ),
    "07_text_rounds": Rounds(
        "the same tasks: a budget of epochs split into rounds, beside joint training (chapter 7)",
        backbone="pocket-text",
        tasks=TEXTS,
        recipe=TEXT_RECIPE,
        post_hoc=True,
    ),
    "07_minilm_rounds": MINILM_ROUNDS,
    "07_minilm_rounds_tsv": replace(
        MINILM_ROUNDS,
        description="the same budget under TSV-M, of the rules the best there after four epochs (chapter 7)",
        rule="tsv",
        post_hoc=False,
    ),
    "08_sentences": SENTENCES,
    "10_exchange_rates": Several(
        "learning rates of SGD for rounds with an exchange, by what specialists reach (chapter 10)",
        RATES,
        seeds=(0,),
    ),
    "10_descent_rates": Several(
        "learning rates of full-batch descent, and of momentum on texts, by what specialists reach "
        "(chapter 10)",
        DESCENT_RATES,
        seeds=(0,),
    ),
    "10_descent_images": Corrected(
        "full-batch descent on four tasks of images: one merge, corrected, rounds (chapter 10)",
        rates=(1e-4, 3e-4, 1e-3),
    ),
    "10_descent_texts": Corrected(
        "full-batch descent on four tasks of texts with MiniLM (chapter 10)",
        backbone="minilm",
        tasks=DESCENT_TEXTS,
        recipe=TEXT_DESCENT,
        rates=(1e-3, 0.01),
    ),
    "10_exchange_images": Exchange(
        "rounds whose tasks exchange a gradient, on four tasks of images: three optimisers (chapter 10)",
        recipes=EXCHANGE_RECIPES,
    ),
    "10_exchange_texts": Exchange(
        "the same on four tasks of texts with MiniLM (chapter 10)",
        backbone="minilm",
        tasks=replace(TEXTS_OF_FOUR, limit=300),  # every row trains on them anew
        recipes=TEXT_RECIPES,
        budget=2,
        splits=(1, 2),
    ),
    "spread": Spread(),
    "clip": Clip(),
    "encoder_probes": Probes(),
}
