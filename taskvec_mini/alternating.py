"""Alternate tuning and merging: finetune every task for a few epochs, merge, start again from the merge.

A round from θ is θ ← θ + α · merge(τ_1, ..., τ_T), with task vectors τ_t of e epochs that all start at θ.
Zhou et al. proposed it for model merging: *ATM: Improving Model Merging by Alternating Tuning and Merging*,
arXiv:2411.03055. With the mean as the rule it is older than merging. It is local SGD, or federated averaging
with every client in every round: McMahan et al., *Communication-Efficient Learning of Deep Networks from
Decentralized Data*, AISTATS 2017, arXiv:1602.05629; Woodworth et al., *Is Local SGD Better than Minibatch
SGD?*, ICML 2020, arXiv:2002.07839. `local_sgd` has that name for that reason.

With `control_variates` the tasks exchange one gradient at the start of every round (SCAFFOLD: Karimireddy et
al., ICML 2020, arXiv:1910.06378). Rounds of two full-batch steps merged by the mean are then exactly joint
descent (see `theory.merge_gap`). They send as much, too: a gradient up and their mean down is as many numbers
as the parameters down and up, so a round costs two exchanges, as two steps of joint descent do. Only from the
third step of a round on is anything saved, for an error of third order.

One round of one full-batch step *is* a step of gradient descent on the mean loss L̄ = Σ_t L_t / T. With e
steps a round, `descent_bound` says by how much L̄ has to fall. Compare with joint training at equal cost:
`rounds * epochs` steps of `theory.multitask_descent`, or of mini-batches on a `MeanLoss`.

    >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum() / 2]
    >>> history = alternate(bowls, torch.tensor([3.0]), rounds=2, epochs=1, learning_rate=0.5)
    >>> [each.theta.item() for each in history]
    [3.0, 2.0, 1.5]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.descent import BatchLoss, Loss, finetune, gradient_descent
from taskvec_mini.errors import UserError
from taskvec_mini.rounds import Round, angles, losses_at
from taskvec_mini.theory import potential
from taskvec_mini.vectors import Layout, TaskVector

Finetuning = Callable[[Sequence[Any], Tensor, int], Tensor]
Merging = Callable[[Tensor], Tensor]
Rule = Callable[..., TaskVector]
Measure = Callable[[Tensor], Mapping[str, float]]


def alternate(
    losses: Sequence[Loss],
    start: Tensor | Round,
    *,
    rounds: int,
    epochs: int,
    learning_rate: float | None = None,
    finetune: Finetuning | None = None,
    merge: Merging | None = None,
    scaling_coef: float = 1.0,
    control_variates: bool = False,
    measure: Measure | None = None,
    progress: Callable[[Round], None] | None = None,
) -> Iterator[Round]:
    """Rounds of tuning and merging, one after the other: a `Round` as soon as it is done, the start first.

    Args:
        losses: T functions from theta (D,) to a scalar. They are evaluated at every merge.
        start: theta before the first round (D,), or the `Round` to go on from; that one is not given again.
        rounds: the number of the last round, counted from the pretrained start also when going on.
        epochs: epochs of a task in a round: full-batch steps, or what your own `finetune` does.
        learning_rate: of the full-batch steps; left out with a `finetune` of your own.
        finetune: from (losses, theta, number of the round) to finetuned parameters (T, D);
            `descent.gradient_descent` by default. `benchmarks.studies.rounds` has one for benchmark tasks.
        merge: from task vectors (T, D) to one vector (D,), the mean by default; see `matrix_rule`.
        scaling_coef: what the merged vector is multiplied with; 1 and the mean make the weights' average.
        control_variates: exchange gradients at the start of every round. Full-batch steps do it themselves,
            with the gradients of their first step: no gradient more, 2TD more numbers sent. A `finetune` of
            your own has to do it, and each round then counts one more gradient a task.
        measure: from theta to numbers by name, such as accuracies, kept with the round.
        progress: called with each round.

    Raises:
        ValueError: at once if a number is out of range, there are no losses, or `learning_rate` and
            `finetune` are both given or both left out; in a round if `finetune` or `merge` returns another
            shape, or values that are not finite.
        TypeError: at once if `start` is neither flat parameters nor a Round.
        DivergedError: in a round, as `descent.gradient_descent` does.

    Example:
        >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum() / 2]
        >>> run = {"epochs": 3, "learning_rate": 0.5}
        >>> first, last = alternate(bowls, torch.tensor([3.0]), rounds=1, **run)
        >>> last.theta.item(), last.gradient_evaluations, last.floats_communicated
        (1.25, 6, 4)
        >>> [later.number for later in alternate(bowls, last, rounds=3, **run)]
        [2, 3]
        >>> exchanging = {"rounds": 1, "epochs": 2, "learning_rate": 0.5, "control_variates": True}
        >>> *_, last = alternate(bowls, torch.tensor([3.0]), **exchanging)
        >>> last.gradient_evaluations, last.floats_communicated
        (4, 8)
    """
    if (finetune is None) == (learning_rate is None):
        raise UserError("give either learning_rate, for full-batch steps, or a finetune of your own")
    if learning_rate is not None:
        rate = _checks.positive_number("learning_rate", learning_rate)

    def full_batch(tasks: Sequence[Any], theta: Tensor, _: int) -> Tensor:
        paths = gradient_descent(
            tasks, theta, learning_rate=rate, epochs=epochs, control_variates=control_variates
        )
        return paths[:, -1]

    return _rounds(
        losses,
        start,
        rounds=rounds,
        epochs=epochs,
        tune=finetune or full_batch,
        merge=merge,
        scaling_coef=scaling_coef,
        exchanges=2 if control_variates else 1,
        extra_gradients=int(control_variates and finetune is not None),
        measure=measure,
        progress=progress,
    )


def local_sgd(
    losses: Sequence[BatchLoss],
    start: Tensor | Round,
    *,
    rounds: int,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    weights: Sequence[float] | None = None,
    control_variates: bool = False,
    measure: Measure | None = None,
    progress: Callable[[Round], None] | None = None,
    **options: Any,
) -> Iterator[Round]:
    """Federated averaging with all clients (FedAvg, local SGD): `alternate` with mini-batches and the mean.

    The order of the examples in a round depends on the seed and the number of the round alone, so a run that
    goes on from a `Round` ends at the same bits. The optimiser starts afresh in every round.

    Args:
        losses: T functions of theta and an index tensor with a length, such as `networks.flat_loss` makes.
        start, rounds, epochs, measure, progress: as for `alternate`.
        learning_rate, batch_size, options: as for `descent.finetune`.
        seed: decides the orders, at least 0.
        control_variates: exchange the gradients of the whole losses at the start of every round, as
            `descent.finetune` says: one more gradient a task and 2TD more numbers sent in each.
        weights: how much each task counts; equal if None. McMahan et al. give each client the number of its
            examples: `[len(loss) for loss in losses]`.

    Raises:
        ValueError, TypeError, DivergedError: as `alternate` and `descent.finetune` do.

    Example:
        >>> pull = lambda theta, index=None: (theta - 2).square().sum() / 2
        >>> run = {"learning_rate": 0.5, "batch_size": 1, "examples": 2, "seed": 0}
        >>> *_, last = local_sgd([pull], torch.zeros(1), rounds=1, epochs=1, **run)
        >>> last.theta.item()
        1.5
    """
    seed = _checks.seed("seed", seed)
    recipe = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size, **options}
    recipe["control_variates"] = control_variates

    def tune(tasks: Sequence[Any], theta: Tensor, number: int) -> Tensor:
        words = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0]))
        return finetune(list(tasks), theta, generator=generator, **recipe)[:, -1]

    return _rounds(
        losses,
        start,
        rounds=rounds,
        epochs=epochs,
        tune=tune,
        merge=None if weights is None else weighted_mean(weights),
        scaling_coef=1.0,
        exchanges=2 if control_variates else 1,
        extra_gradients=int(control_variates),
        measure=measure,
        progress=progress,
    )


# merging rules on the matrix of task vectors


def weighted_mean(weights: Sequence[float]) -> Merging:
    """The rule Σ_t w_t τ_t / Σ_t w_t on task vectors (T, D), for `alternate`.

    Raises:
        ValueError: if a weight is below 0 or all are 0; when called, if there is not one for each task.

    Example:
        >>> weighted_mean([3, 1])(torch.tensor([[4.0], [8.0]]))
        tensor([5.])
    """
    numbers = [_checks.finite_number("a weight", weight) for weight in _checks.not_empty("weights", weights)]
    if min(numbers) < 0 or sum(numbers) == 0:
        raise UserError(f"weights must be 0 or above, with at least one above 0; got {numbers}")

    def merge(vectors: Tensor) -> Tensor:
        if len(numbers) != len(vectors):
            raise UserError(f"got {len(numbers)} weights for {len(vectors)} tasks; give one for each")
        shares = torch.tensor(numbers, dtype=vectors.dtype, device=vectors.device) / sum(numbers)
        return shares @ vectors

    return merge


def matrix_rule(rule: Rule, *, layout: Layout | None = None, **settings: Any) -> Merging:
    """A rule of `merging` as a function of task vectors in rows (T, D), for `alternate`.

    Args:
        rule: a function from task vectors to a task vector, such as `merging.ties`.
        layout: name and shape of each tensor in a row; rules that look at each tensor need it. None takes a
            row as one tensor. `[(name, p.shape) for name, p in model.named_parameters()]` makes one.
        settings: further arguments of the rule.

    Raises:
        ValueError, TypeError: when called, as `rule` does, or if the layout does not add up to D.

    Example:
        >>> from taskvec_mini import merging
        >>> matrix_rule(merging.ties, density=0.5)(torch.tensor([[4.0, 1.0], [2.0, -1.0]]))
        tensor([3., 0.])
    """

    def merge(vectors: Tensor) -> Tensor:
        places = layout or [("theta", (vectors.shape[1],))]
        return rule([TaskVector(row, places) for row in vectors], **settings).flat

    return merge


# joint training, for comparison


class MeanLoss:
    """The mean L̄ of T losses as one loss, for joint training with `descent.finetune`.

    With an index of n examples it takes n from every task, so that a step costs T gradients of batches. Task
    t takes them t/T of the way further on: where the tasks share one set of images, a batch does not show
    the same image in all disguises.

    Raises:
        ValueError: if there are no losses; when asked for its length or a batch, if the numbers of examples
            differ.

    Example:
        >>> pair = MeanLoss([lambda theta: theta.sum(), lambda theta: 3 * theta.sum()])
        >>> pair(torch.ones(2)).item()
        4.0
    """

    def __init__(self, losses: Sequence[BatchLoss] | Sequence[Loss]):
        self.losses: list[Any] = _checks.not_empty("the list of losses", list(losses))

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """L̄ at theta (D,), over all examples or over those that the index tensor means."""
        if index is None:
            return torch.stack([loss(theta) for loss in self.losses]).mean()
        size, tasks = len(self), len(self.losses)
        places = [(index + t * size // tasks) % size for t in range(tasks)]
        return torch.stack([loss(theta, at) for loss, at in zip(self.losses, places, strict=True)]).mean()

    def __len__(self) -> int:
        sizes = {len(loss) for loss in self.losses}
        if len(sizes) > 1:
            raise UserError(f"the tasks have {sorted(sizes)} examples; cut them to one number for batches")
        return sizes.pop()


# what is known about a round


def experts_edge(losses: Sequence[Loss], theta: Tensor, *, learning_rate: float, epochs: int = 1) -> float:
    """The leading term of (1/T) Σ_t L_t(θ_t) − L̄(θ⁺): −ηe (1/T) Σ_t ‖g_t − ḡ‖², never above 0.

    θ_t is task t after e full-batch steps from theta and θ⁺ the average of them all. What is left is of
    second order in η. So for small steps the merge does *worse* on L̄ than the experts do on their own tasks,
    and the experts' own losses bound nothing.

    Raises:
        ValueError, TypeError: as `theory.potential` does, or if `learning_rate` or `epochs` is out of range.

    Example:
        >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum() / 2]
        >>> experts_edge(bowls, torch.tensor([5.0]), learning_rate=0.1)
        -0.1
    """
    time = _checks.positive_number("learning_rate", learning_rate) * _checks.whole_number("epochs", epochs)
    tasks = len(_checks.not_empty("the list of losses", losses))
    return -2 * time / tasks * float(potential(losses, theta, scaling_coef=1 / tasks))


def descent_bound(
    loss: float, gradient: float, *, learning_rate: float, epochs: int, curvature: float, slope: float
) -> float:
    """The most that L̄ can be after a round: L̄ − (s/2)‖∇L̄‖² + (s/2)(βηG(e−1)/2)², with s = ηe ≤ 1/β.

    Proof: θ⁺ = θ − s v, where v is the mean of all e·T gradients met. Smoothness gives L̄(θ⁺) ≤ L̄ − s⟨∇L̄, v⟩
    + βs²‖v‖²/2, and with βs ≤ 1 that is at most L̄ − (s/2)‖∇L̄‖² + (s/2)‖v − ∇L̄‖². After j steps a task is
    at most jηG from θ, so its gradient has changed by at most βjηG; the mean over j is βηG(e−1)/2. ∎

    It holds for rounds of full-batch steps merged by the mean, where every L_t has curvature of at most β
    and L̄ too on the segment from θ to θ⁺, and gradients of at most G, on the paths of the tasks and the
    segments from θ to them.

    Args:
        loss: L̄ before the round.
        gradient: the norm ‖∇L̄‖ there.
        learning_rate: η of the local steps.
        epochs: e, the local steps of a round.
        curvature: β, a bound on ‖∇²L_t‖₂ for every task.
        slope: G, a bound on ‖∇L_t‖ for every task.

    Raises:
        ValueError: if a number is out of range, or ηe is above 1/β, where the inequality says nothing.

    Example:
        >>> descent_bound(2.0, 1.0, learning_rate=0.5, epochs=1, curvature=2.0, slope=3.0)
        1.75
        >>> descent_bound(2.0, 1.0, learning_rate=0.25, epochs=2, curvature=2.0, slope=3.0)
        1.890625
    """
    rate = _checks.positive_number("learning_rate", learning_rate)
    steps = _checks.whole_number("epochs", epochs)
    beta = _checks.positive_number("curvature", curvature)
    time = rate * steps
    if time * beta > 1 + 1e-12:
        raise UserError(
            f"learning_rate times epochs is {time:g}, above 1 / curvature = {1 / beta:g}, where the "
            f"inequality says nothing; for {steps} epochs lower learning_rate to {1 / beta / steps:g}"
        )
    drift = beta * rate * _checks.finite_number("slope", slope) * (steps - 1) / 2
    return loss - time / 2 * gradient**2 + time / 2 * drift**2


# the loop


def _rounds(
    losses: Sequence[Any],
    start: Tensor | Round,
    *,
    rounds: int,
    epochs: int,
    tune: Finetuning,
    merge: Merging | None,
    scaling_coef: float,
    exchanges: int,
    extra_gradients: int,
    measure: Measure | None,
    progress: Callable[[Round], None] | None,
) -> Iterator[Round]:
    epochs = _checks.whole_number("epochs", epochs)
    alpha = _checks.finite_number("scaling_coef", scaling_coef)
    tasks = _checks.not_empty("the list of losses", losses)
    rounds = _checks.whole_number("rounds", rounds)

    def look(theta: Tensor) -> dict[str, Any]:
        measured = dict(measure(theta)) if measure else {}
        return {"losses": tuple(losses_at(tasks, theta[None])[0].tolist()), "measured": measured}

    if isinstance(start, Round):
        first = start
        if len(start.losses) != len(tasks):
            raise UserError(
                f"start knows {len(start.losses)} tasks, got {len(tasks)}; go on with the same losses"
            )
    else:
        theta = _checks.flat_parameters("start", start).detach().clone()
        norms, cosines = angles(torch.zeros(len(tasks), 1))
        first = Round(
            number=0,
            theta=theta,
            pretrained=theta,
            norms=norms,
            cosines=cosines,
            norms_from_pretrained=norms,
            cosines_from_pretrained=cosines,
            **look(theta),
        )

    def run() -> Iterator[Round]:  # apart, because a generator would check when its first round is asked for
        last = first
        if first is not start:
            if progress:
                progress(first)
            yield first
        while last.number < rounds:
            tuned = tune(tasks, last.theta, last.number + 1)
            vectors = _expected("finetune", tuned, shape=(len(tasks), len(last.theta))) - last.theta
            merged = merge(vectors) if merge else vectors.mean(0)
            theta = last.theta + alpha * _expected("merge", merged, shape=tuple(vectors.shape[1:]))
            norms, cosines = angles(vectors)
            from_pretrained = angles(vectors, last.theta - last.pretrained)
            last = Round(
                number=last.number + 1,
                theta=theta,
                pretrained=last.pretrained,
                norms=norms,
                cosines=cosines,
                norms_from_pretrained=from_pretrained[0],
                cosines_from_pretrained=from_pretrained[1],
                gradient_evaluations=last.gradient_evaluations + len(tasks) * (epochs + extra_gradients),
                floats_communicated=last.floats_communicated + 2 * exchanges * vectors.numel(),
                **look(theta),
            )
            if progress:
                progress(last)
            yield last

    return run()


def _expected(who: str, result: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(result, Tensor) or tuple(result.shape) != shape:
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise UserError(f"{who} must return a tensor of shape {shape}, got {got}; look at what it stacks")
    _checks.check_finite(f"what {who} returned", result)
    return result.detach()
