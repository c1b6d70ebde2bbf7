"""Errors that a user can put right: by other arguments, another file, one more package, a larger disk.

Each is a `UserError` and also an error of Python's own kind, so that `except FileNotFoundError` works as
everywhere. The command line prints a `UserError` as one line; any other error is a bug of this library and
shows its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """What a user can put right. The message names the thing, its value and the remedy.

    Example:
        >>> issubclass(MissingFileError, UserError), issubclass(MissingFileError, FileNotFoundError)
        (True, True)
    """


class InputTypeError(UserError, TypeError):
    """An argument of the wrong kind."""


class FileError(UserError, OSError):
    """A file or folder that cannot be read or written.

    Example:
        >>> FileError(28, "the disk is full").errno
        28
    """

    __init__ = OSError.__init__  # ValueError's, which comes first, would leave the number of the error out


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder that is not there."""


class NoConnectionError(FileError, ConnectionError):
    """A machine that does not answer."""


class MissingPackageError(UserError, ImportError):
    """A package that is not installed; the message says how to get it."""
