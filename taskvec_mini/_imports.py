"""Packages that only some features need, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from taskvec_mini.errors import MissingPackageError


def load(module: str, *, needed_for: str, install: str) -> Any:
    """The module, imported now.

    Args:
        module: its full name, such as "torchvision.models".
        needed_for: what cannot be done without it; the beginning of the message.
        install: what pip has to be given: a package, or this one with an extra.

    Raises:
        MissingPackageError: if it cannot be imported; the message has the command that installs it.

    Example:
        >>> load("json", needed_for="reading records", install="json").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f'{needed_for} needs {module.partition(".")[0]} ({error}): python -m pip install "{install}"'
        ) from error
