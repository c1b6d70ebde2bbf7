"""All merging rules by name, with what the command line, the files and the studies have to know of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from taskvec_mini import _checks
from taskvec_mini.errors import UserError
from taskvec_mini.merging.rules import (
    breadcrumbs,
    consensus,
    dare,
    iso_c,
    iso_cts,
    mean,
    regmean_from_vectors,
    task_arithmetic,
    ties,
    tsv,
    wudi,
)
from taskvec_mini.vectors import TaskVector


@dataclass(frozen=True)
class Rule:
    """One way to merge task vectors.

    Attributes:
        function: from task vectors to the merged one; its options are keywords.
        summary: what it does, in a line.
        form: what T equal vectors give: T times what one gives ("sum"), or the same ("mean"), or what is left
            of it where the rule cuts. So λ is near 1/T to 0.5, or near 1. The two rules with isotropic
            matrices are sums with a λ near 1, and take the mean of what is no matrix.
        streams: whether it adds entry by entry and so needs no tensor whole; `merge_files` then holds a few
            pieces of a tensor, and T copies of one tensor for all other rules.

    Example:
        >>> RULES["ties"].options
        {'density': 0.2, 'per_tensor': False, 'elect': 'mass', 'combine': 'mean'}
        >>> [name for name, rule in RULES.items() if rule.draws]
        ['dare']
    """

    function: Callable[..., TaskVector]
    summary: str
    form: Literal["sum", "mean"]
    streams: bool = False

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.__name__

    @property
    def draws(self) -> bool:
        """Whether it draws at random and has to be given a `generator`."""
        return "generator" in inspect.signature(self.function).parameters

    @property
    def options(self) -> dict[str, Any]:
        """The options and their defaults, without the generator."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {each.name: each.default for each in parameters if each.name != "generator"}

    def check_options(self, given: Mapping[str, Any]) -> None:
        """An error unless these are options of the rule, and a generator is among them where it draws.

        Raises:
            TypeError: if the generator is missing or is none.
            ValueError: if there is no such option.
        """
        known = {**self.options, **({"generator": None} if self.draws else {})}
        for option in given:
            if not known:
                raise UserError(f"{self.name} has no options, but {option!r} is given; leave it out")
            _checks.named_choice(f"option of {self.name}", option, known)
        if self.draws:
            _checks.random_source(given.get("generator"))


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(task_arithmetic, "the sum of all task vectors", form="sum", streams=True),
        Rule(mean, "the mean: with a coefficient of 1, the average of all models", form="mean", streams=True),
        Rule(ties, "trim small entries, elect a sign, merge those that agree", form="mean"),
        Rule(dare, "drop entries at random, rescale the others, then sum", form="sum"),
        Rule(breadcrumbs, "mask the smallest and the largest entries, then sum", form="sum"),
        Rule(consensus, "the sum, where enough tasks are not drowned by the others", form="sum"),
        Rule(tsv, "top singular directions of each task, made orthogonal", form="mean"),
        Rule(iso_c, "the sum of each matrix, all its singular values made equal", form="sum"),
        Rule(iso_cts, "the same, with some directions that are of one task alone", form="sum"),
        Rule(regmean_from_vectors, "least squares, with vectors in place of inputs", form="mean"),
        Rule(wudi, "the same without a ridge, exactly or by steps from the sum", form="mean"),
    )
}
