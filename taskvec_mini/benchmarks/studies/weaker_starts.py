"""How good must the start be? The study of a good start again, from encoders that know less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from taskvec_mini.benchmarks.studies.base import Study, StudyRequest
from taskvec_mini.benchmarks.studies.good_start import GoodStart


@dataclass(eq=False)
class WeakerStarts(Study):
    """Merges, specialists and probes as in `GoodStart`, for several starts under one recipe.

    Attributes:
        description: what it measures.
        starts: the studies, by a name of the start; each has its own encoder, or change of it.
    """

    description: str
    starts: Mapping[str, GoodStart]

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All starts, one after the other, each with all seeds."""
        found = {}
        settings = {}
        for name, start in self.starts.items():
            one = replace(start)
            one.seeds = self.seeds
            found[name] = one.run(request)
            settings[name] = dict(one.settings)
            self.data = one.data
        self.settings = settings
        return {"seeds": list(self.seeds), "starts": found}
