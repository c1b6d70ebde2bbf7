"""The weights that come with the library: found, held against their record, read from half precision."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from taskvec_mini import records
from taskvec_mini.errors import MissingFileError, UserError

Module = TypeVar("Module", bound=nn.Module)


def check_exists(path: Path, purpose: str) -> None:
    """A FileNotFoundError with the purpose where there is no such file."""
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}; {purpose}")


def check_sha256(path: Path, expected: str, remedy: str) -> None:
    """A ValueError with the remedy where the file is another one."""
    found = records.checksum(path)
    if found != expected:
        raise UserError(f"{path} has the sha256 {found}, expected {expected}; {remedy}")


def read_into(model: Module, path: Path, *, name: str, remedy: str) -> Module:
    """The model, made on the meta device, with the weights of a file as float32; else a ValueError."""
    try:
        state = {key: value.float() for key, value in load_file(path).items()}
        model.load_state_dict(state, assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not hold the weights of {name} ({error}); {remedy}") from error
    return model
