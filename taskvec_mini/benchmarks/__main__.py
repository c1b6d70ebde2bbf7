"""The command line: `python -m taskvec_mini.benchmarks --help` shows what it can do."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from taskvec_mini.benchmarks.cli.parser import parser

# what a user can put right, by other words on the command line, other data, other packages or a larger disk
_FOR_USERS = (ValueError, TypeError, LookupError, OSError, ArithmeticError, ImportError, RuntimeError)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command. The exit status is 0, or 2 after an error, which is printed as one line.

    Args:
        words: the words after the program's name; by default those it was called with.
    """
    options = parser().parse_args(words)
    try:
        _command(options.command)(options)
    except KeyboardInterrupt:
        print("\nstopped; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _FOR_USERS as error:
        if options.debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def studies() -> dict[str, Any]:
    """The studies that `record` knows, by name."""
    from taskvec_mini.benchmarks.studies import registry as module

    return dict(getattr(module, "STUDIES", {}))


def _command(name: str) -> Any:
    """The function behind a command; what it needs is imported only now, so that `--help` is quick."""
    if name == "list":
        from taskvec_mini.benchmarks.cli.list import show

        return lambda options: show(options, studies())
    if name == "record":
        from taskvec_mini.benchmarks.cli.record import record

        return lambda options: record(options, studies())
    if name == "throughput":
        from taskvec_mini.benchmarks.cli.throughput import throughput

        return throughput
    from taskvec_mini.benchmarks.cli import runs as _cli_runs

    return getattr(_cli_runs, name)


def _one_line(error: BaseException) -> str:
    words = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(words).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
