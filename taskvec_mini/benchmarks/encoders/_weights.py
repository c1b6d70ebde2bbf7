"""Where weights come from: files of this library, files of other libraries, the Hugging Face Hub."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from taskvec_mini import _checks, _files, _imports, records
from taskvec_mini.errors import FileError, MissingFileError, UserError

Module = TypeVar("Module", bound=nn.Module)
FOLDER = Path(__file__).parent / "weights"  # of this library's own
_TIMEOUT = 5.0  # seconds until an unanswered question to the Hub is an error


def check_exists(path: Path, *, remedy: str) -> None:
    """A MissingFileError with the remedy where there is no such file."""
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}; {remedy}")


def read_recorded(
    make: Callable[[], Module], path: Path, *, name: str, remedy: str
) -> tuple[Module, dict[str, Any]]:
    """A model of this library with the weights in a file, as float32, and the results in its record.

    The record X.json beside X.safetensors says how the weights were made, and which bytes they are.

    Args:
        make: makes the model; its own weights are never drawn.
        path: the weights, in half precision.
        name: the model's, for messages.
        remedy: what to do about a missing or damaged file, for messages.

    Raises:
        MissingFileError: if weights or record are not there.
        UserError: if a checksum does not fit, or the file does not hold these weights.
    """
    record = path.with_suffix(".json")
    check_exists(path, remedy=remedy)
    check_exists(record, remedy=remedy)
    results = records.read(record)["results"]
    results = results if isinstance(results, dict) else {}
    _files.check_sha256(path, str(results.get("sha256")), remedy=remedy)
    with torch.device("meta"):  # no weights are drawn, because all are read
        model = make()
    try:
        state = {key: value.float() for key, value in load_file(path).items()}
        model.load_state_dict(state, assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not hold the weights of {name} ({error}); {remedy}") from error
    return model, results


def read_state(path: Path, *, remedy: str) -> dict[str, Tensor]:
    """The named tensors of a safetensors or PyTorch file; of training checkpoints those of the model.

    No pickle is run: of a PyTorch file only tensors are read.

    Raises:
        MissingFileError: if there is no such file.
        UserError: if it cannot be read, or as a pickle that would have to be run.
    """
    check_exists(path, remedy=remedy)
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read as weights ({_first_line(error)}); {remedy}") from error
    state = found.get("state_dict", found) if isinstance(found, Mapping) else found
    _checks.named_tensors(str(path), state)
    return {name.removeprefix("module."): part for name, part in state.items()}


def hub_file(
    repository: str,
    file: str,
    *,
    what: str,
    revision: str = "main",
    install: str = "taskvec-mini[clip]",
) -> Path:
    """A file of a model repository of the Hugging Face Hub: from the cache, or downloaded into it.

    Args:
        repository: its name, such as "timm/vit_base_patch32_clip_224.openai".
        file: the name of the file in it.
        what: what it holds; the beginning of the message.
        revision: a branch, or the commit whose file it has to be.
        install: what brings `huggingface_hub`, for the message.

    Raises:
        FileError: if it is not in the cache and cannot be downloaded; the message says why, and where it is.
        MissingPackageError: if `huggingface_hub` is not installed.
    """
    hub = _imports.load("huggingface_hub", needed_for=f"downloading {what}", install=install)
    cached = hub.try_to_load_from_cache(repository, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:  # one question first: without a network the download itself would be tried for half a minute
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, revision=revision), timeout=_TIMEOUT)
        return Path(hub.hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # of one of several network libraries
        cause: BaseException = error
        while cause.__cause__ is not None:  # the Hub's own message does not say what happened
            cause = cause.__cause__
        raise FileError(
            f"{what} could not be downloaded ({type(cause).__name__}: {_first_line(cause)}); try again with "
            "a network, or give the same command on a machine that has one and copy its cache of Hugging "
            "Face to this one (~/.cache/huggingface, or what HF_HOME names); in Python you can also fetch "
            f"https://huggingface.co/{repository}/resolve/{revision}/{file} and pass its path"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
