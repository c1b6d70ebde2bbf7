"""A task vector is a gradient in disguise: a small library to teach it, prove it and test it.

Start with `vectors.TaskVector` for the algebra, `tasks.digit_tasks` for data, `descent` for training and
`theory` for what the vectors are. Importing this package loads torch and nothing else.
"""

from taskvec_mini.vectors import TaskVector

__all__ = ["TaskVector"]
__version__ = "0.1.0"
