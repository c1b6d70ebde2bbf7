"""Tasks: what one is, the suites of them, and one door to all, `load_tasks`."""

from taskvec_mini.benchmarks.data.duplicates import near_duplicates, near_pairs, without_near_duplicates
from taskvec_mini.benchmarks.data.examples import Examples, example_images, read_examples
from taskvec_mini.benchmarks.data.suites import SUITES, Suite, load_tasks
from taskvec_mini.benchmarks.data.tasks import DATA_VARIABLE, PARTS, ImageTask, Task, TextTask, unit_of
from taskvec_mini.benchmarks.data.texts import TextTokenizer, file_checksums
from taskvec_mini.benchmarks.data.tokenizer import (
    MAX_LENGTH,
    PADDING,
    SPECIAL,
    VOCABULARY,
    VOCABULARY_SIZE,
    Tokenizer,
    load_tokenizer,
)

__all__ = [
    "DATA_VARIABLE",
    "MAX_LENGTH",
    "PADDING",
    "PARTS",
    "SPECIAL",
    "SUITES",
    "VOCABULARY",
    "VOCABULARY_SIZE",
    "Examples",
    "ImageTask",
    "Suite",
    "Task",
    "TextTask",
    "TextTokenizer",
    "Tokenizer",
    "example_images",
    "file_checksums",
    "load_tasks",
    "load_tokenizer",
    "near_duplicates",
    "near_pairs",
    "read_examples",
    "unit_of",
    "without_near_duplicates",
]
