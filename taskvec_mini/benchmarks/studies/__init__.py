"""The long experiments behind the chapters; `STUDIES` has them by name."""

from taskvec_mini.benchmarks.studies.base import Study, StudyRequest
from taskvec_mini.benchmarks.studies.registry import STUDIES

__all__ = ["STUDIES", "Study", "StudyRequest"]
