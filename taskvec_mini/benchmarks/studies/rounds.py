"""Where to spend a budget of epochs: one merge, or a merge after every few; beside joint training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec_mini import _files, alternating
from taskvec_mini.benchmarks.data import Task
from taskvec_mini.benchmarks.encoders import (
    Encoder,
    holding,
    load_backbone,
    state_of,
    trained_parameters,
    write_parameters,
)
from taskvec_mini.benchmarks.heads import Head, centre_of
from taskvec_mini.benchmarks.studies.base import (
    IMAGES,
    RECIPE,
    Study,
    StudyRequest,
    Suite,
    SuiteSettings,
    individual_runs,
    inputs_of,
    joint_run,
    make_suite,
    merge_vectors,
    say,
    suite_record,
)
from taskvec_mini.benchmarks.training import (
    ExtraLoss,
    Settings,
    Speed,
    finetune,
    finetune_jointly,
    full_batch_gradient,
)
from taskvec_mini.errors import UserError
from taskvec_mini.rounds import Round
from taskvec_mini.vectors import Layout, TaskVector

BUDGET = 8  # epochs on every task, however they are split into rounds
SPLITS = (1, 2, 4, 8)  # rounds
_SEEDS_APART = 1000  # between the rounds of a run


@dataclass(eq=False)
class Rounds(Study):
    """The study behind chapter 7: every split of the budget under one rule, and joint training.

    Between rounds the rule's vector is taken as it is (λ = 1), for which no images are needed. The last
    merge is measured so, and with λ tuned on validation images as every one-shot merge is.

    Attributes:
        description: what it measures.
        backbone: the name of the encoder.
        tasks: which tasks, and how models are judged.
        recipe: of finetuning, but for epochs and seed.
        budget: epochs on every task.
        splits: into how many rounds it is split.
        rule: that merges.
        post_hoc: whether a finished merge is also trained on, on validation examples alone.
    """

    description: str
    backbone: str = "pocket"
    tasks: SuiteSettings = IMAGES
    recipe: Settings = RECIPE
    budget: int = BUDGET
    splits: Sequence[int] = SPLITS
    rule: str = "mean"
    post_hoc: bool = False

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All seeds, one after the other."""
        backbone = load_backbone(self.backbone, folder=request.data)
        zero_shot: dict[str, Any] = {}
        individual: dict[str, Any] = {}
        joint: dict[str, Any] = {}
        splits: list[dict[str, Any]] = []
        post_hoc: list[dict[str, Any]] = []
        for seed in self.seeds:
            suite = make_suite(backbone, self.tasks, folder=request.data, seed=seed)
            self.settings, self.data = suite_record(
                suite, recipe=self.recipe, epochs=self.budget, rules=[self.rule]
            )
            # at the end of the budget and of every share of it: the first rounds of every split
            epochs = sorted({self.budget, *(self.budget // rounds for rounds in self.splits)})
            runs = individual_runs(suite, recipe=self.recipe, epochs=epochs)
            together = joint_run(suite, recipe=self.recipe, epochs=[self.budget])
            zero_shot[str(seed)] = suite.scores(None, suite.tasks)
            individual[str(seed)] = {
                name: suite.scores(run.state(), [name])[name] for name, run in runs.items()
            }
            joint[str(seed)] = suite.scores(together.state(), suite.tasks)
            for rounds in self.splits:
                splits.append({"seed": seed, "rounds": rounds, **self._split(suite, rounds)})
                say(f"{self.rule}, seed {seed}: {rounds} rounds")
            if self.post_hoc:
                vectors = [run.task_vector() for run in runs.values()]
                post_hoc.append({"seed": seed, **self._post_hoc(suite, vectors)})
        return {
            "budget": self.budget,
            "splits": list(self.splits),
            "rule": self.rule,
            "seeds": list(self.seeds),
            "zero_shot": zero_shot,
            "individual": individual,
            "joint": joint,
            "rounds": splits,
            **({"post_hoc": post_hoc} if self.post_hoc else {}),
            "tasks": list(suite.tasks),
            **suite.sizes(),
            "parameters": sum(part.numel() for part in state_of(backbone.model).values()),
        }

    def _split(self, suite: Suite, rounds: int) -> dict[str, Any]:
        """One split of the budget: every merge as it is, and the last one tuned."""
        epochs = self.budget // rounds

        def folder_of(number: int, name: str) -> Path:
            if number == 1:  # its encoders are there: they are those of plain finetuning
                return suite.experiment.run(name).path
            return suite.experiment.round(number, rule=self.rule, rounds=rounds).run(name).path

        history, last = alternate_tasks(
            suite.backbone,
            suite.heads,
            suite.tasks,
            settings=replace(self.recipe, epochs=epochs, seed=suite.seed),
            rounds=rounds,
            merge=partial(merge_vectors, self.rule),
            measure=lambda theta: suite.scores(theta, suite.tasks),
            folder_of=folder_of,
            precision=suite.precision,
        )
        before = dict(TaskVector(history[-2].theta, last.layout).items())
        return {
            "epochs": epochs,
            "history": [round_record(each) for each in history],
            "tuned": suite.tuned_under(self.rule, before, merged=last, names=suite.tasks),
        }

    def _post_hoc(self, suite: Suite, vectors: Sequence[TaskVector]) -> dict[str, Any]:
        """One merge of finished encoders, tuned; then rounds of one epoch on its validation images alone.

        Beside them stands joint training on the same images from the same parameters.
        """
        merged = merge_vectors(self.rule, vectors)
        start = state_of(suite.backbone.model)
        tuned = suite.tuned_under(self.rule, start, merged=merged, names=suite.tasks)
        model = copy.deepcopy(suite.backbone.model)
        write_parameters(model, merged.apply_to(start, tuned["scaling_coef"]))
        backbone = replace(suite.backbone, name=f"{suite.backbone.name}-merged", model=model)
        held_out = {name: on_validation(task) for name, task in suite.tasks.items()}
        settings = replace(self.recipe, epochs=1, seed=suite.seed)
        history, _ = alternate_tasks(
            backbone,
            suite.heads,
            held_out,
            settings=settings,
            rounds=self.budget,
            merge=partial(merge_vectors, self.rule),
            measure=lambda theta: suite.scores(theta, suite.tasks),
            precision=suite.precision,
        )
        joint = finetune_jointly(
            backbone,
            suite.heads,
            held_out,
            settings=replace(settings, epochs=self.budget),
            keep=[self.budget],
            speed=Speed(precision=suite.precision),
            progress=False,
        )
        return {
            "tuned": tuned,
            "history": [round_record(each) for each in history],
            "joint": suite.scores(joint.state(), suite.tasks),
        }


def on_validation(task: Any) -> Any:
    """The task training on its validation part: all that is left where the specialists' data are gone."""
    inputs, labels = task.part("val")
    return replace(task, **{f"train_{inputs_of(task)}": inputs, "train_labels": labels})


def alternate_tasks(
    backbone: Encoder,
    heads: Mapping[str, Head],
    tasks: Mapping[str, Task],
    *,
    settings: Settings,
    rounds: int,
    merge: Callable[[Sequence[TaskVector]], TaskVector],
    measure: Callable[[Tensor], Mapping[str, float]] | None = None,
    folder_of: Callable[[int, str], Path] | None = None,
    control_variates: bool = False,
    precision: str = "float32",
) -> tuple[list[Round], TaskVector]:
    """`alternating.alternate` on benchmark tasks: all rounds, and what the last of them merged to.

    Args:
        backbone: the encoder with the parameters before the first round; it has them again afterwards.
        heads: the frozen head of each task, by name.
        tasks: by name. The loss of a round is that of validation examples.
        settings: of the finetuning in every round; `settings.epochs` is the number of epochs a round, and the
            optimiser starts afresh in each. Round n takes the seed `settings.seed + 1000 (n - 1)`.
        rounds: how many.
        merge: from the task vectors of a round to the one that is added.
        measure: from parameters, flat (D,), to numbers by name, which are kept with the round.
        folder_of: from the number of a round and the name of a task to the folder of its finetuned encoder. A
            run that was stopped is called again and reads what is there. None keeps nothing.
        control_variates: at the start of every round the tasks exchange the gradients of their whole training
            losses, and task t trains on its loss plus ⟨ḡ − g_t, θ⟩ (SCAFFOLD: Karimireddy et al., ICML 2020).
            The optimiser sees that sum: exact for full-batch descent, a guide with momentum or AdamW.
        precision: of products in finetuning, as in `Speed`; what is exchanged is float32 always.

    Raises:
        DivergedError, UserError, OSError: as `finetune` does.
        UserError: also if `control_variates` meet a centre of the batch.

    Example:
        >>> from taskvec_mini import merging
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> from taskvec_mini.benchmarks.heads.fitted import prototype_head
        >>> encoder, recipe = load_backbone("random-pocket"), Settings(learning_rate=1e-3, epochs=1)
        >>> tasks = load_tasks(["digits"], suite="digits", limit=32)
        >>> heads = {name: prototype_head(encoder, task) for name, task in tasks.items()}
        >>> history, _ = alternate_tasks(
        ...     encoder, heads, tasks, settings=recipe, rounds=2, merge=merging.mean
        ... )
        >>> [(each.number, each.gradient_evaluations) for each in history]
        [(0, 0), (1, 1), (2, 2)]
    """
    if control_variates and settings.centre != "frozen":
        raise UserError(
            f'control_variates need centre="frozen", got {settings.centre!r}: what is exchanged '
            "are gradients of a mean over single examples"
        )
    own = flat(state_of(backbone.model))
    layout = tuple((name, tuple(part.shape)) for name, part in trained_parameters(backbone.model).items())
    merges: list[Tensor] = []

    @torch.no_grad()
    def validation_loss(name: str, theta: Tensor) -> Tensor:
        inputs, labels = tasks[name].part("val")
        head = copy.deepcopy(heads[name]).to(backbone.device)
        with holding(backbone.model, theta):
            batches = [backbone.prepare(each) for each in torch.split(inputs, settings.batch_size)]
            embedded = torch.cat([backbone.model(batch) for batch in batches])
        if settings.centre == "batch":
            embedded = embedded - embedded.mean(0) + centre_of(head)
        return F.cross_entropy(head(embedded), labels.to(embedded.device)).cpu()

    def finetune_each(_losses: Sequence[Any], theta: Tensor, number: int) -> Tensor:
        write_parameters(backbone.model, theta)
        pulls: dict[str, ExtraLoss] = {}
        if control_variates:
            slopes = {
                name: full_batch_gradient(backbone, heads[name], task, batch_size=settings.batch_size)
                for name, task in tasks.items()
            }
            shared = torch.stack(tuple(slopes.values())).mean(0)
            pulls = {name: linear_loss(shared - slope, layout) for name, slope in slopes.items()}
        ends = []
        try:
            for name, task in tasks.items():
                run = finetune(
                    backbone,
                    heads[name],
                    task,
                    settings=replace(settings, seed=settings.seed + _SEEDS_APART * (number - 1)),
                    keep=[settings.epochs],
                    folder=folder_of(number, name) if folder_of else None,
                    speed=Speed(precision=precision),
                    progress=False,
                    extra_loss=pulls.get(name),
                )
                ends.append(flat(run.state()))
        finally:
            write_parameters(backbone.model, own)
        return torch.stack(ends)

    def remembered_merge(vectors: Tensor) -> Tensor:
        merges[:] = [alternating.matrix_rule(merge, layout=layout)(vectors)]
        return merges[0]

    history = alternating.alternate(
        [partial(validation_loss, name) for name in tasks],
        own,
        rounds=rounds,
        epochs=settings.epochs,
        finetune=finetune_each,
        merge=remembered_merge,
        measure=measure,
        control_variates=control_variates,
    )
    return list(history), TaskVector(merges[0], layout)


def linear_loss(slope: Tensor, layout: Layout) -> ExtraLoss:
    """The loss ⟨slope, θ⟩ of a model with parameters of this layout, for `finetune(extra_loss=...)`.

    Its gradient is the slope (D,) in every step. The name holds a checksum of it, so that a folder whose run
    was made with another is refused.

    Example:
        >>> model = torch.nn.Linear(1, 1)
        >>> pull = linear_loss(torch.tensor([2.0, 3.0]), (("weight", (1, 1)), ("bias", (1,))))
        >>> pull(model, torch.Generator()).backward()
        >>> model.weight.grad.item(), model.bias.grad.item()
        (2.0, 3.0)
    """
    parts = dict(TaskVector(slope, layout).items())

    def pull(model: nn.Module, _generator: torch.Generator) -> Tensor:
        named = trained_parameters(model)
        return torch.stack([(named[name] * part.to(named[name])).sum() for name, part in parts.items()]).sum()

    pull.__name__ = f"control_variate_{_files.checksum(parts)}"
    return pull


def flat(state: Mapping[str, Tensor]) -> Tensor:
    """All parameters in one vector (D,)."""
    return torch.cat([part.reshape(-1) for part in state.values()])


def round_record(each: Round) -> dict[str, Any]:
    """A round as its record holds it; cosines that do not exist are left out."""
    angles = {
        "mean_cosine": each.mean_cosine,
        "mean_cosine_from_pretrained": each.mean_cosine_from_pretrained,
    }
    return {
        "round": each.number,
        "test": dict(each.measured),
        "mean_loss": round(each.mean_loss, 6),
        "norms": [round(norm, 5) for norm in each.norms],
        **{name: round(value, 5) for name, value in angles.items() if math.isfinite(value)},
        "gradient_evaluations": each.gradient_evaluations,
        "floats_communicated": each.floats_communicated,
    }
