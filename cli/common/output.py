"""What all commands share: where output goes, JSON, errors as messages, and asking for root.

stdout belongs to results: a table for a reader, or with ``--json`` one JSON object per line for a
script. Progress and messages go to stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from quicferry.errors import FerryError, Unsupported

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])


def stderr_console() -> Console:
    """A rich console for progress and messages."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def stdout_console() -> Console:
    """A rich console for tables that are the result of a command.

    Where there is no terminal to ask for its width, lines are as long as their content.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=160)
    return console


def json_option(command: F) -> F:
    """The ``--json`` flag, with one meaning and one help text in every command."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object per line on stdout, nothing else."
    )(command)


def print_json(value: object) -> None:
    """Print anything msgspec can encode as one line of JSON on stdout."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def say(message: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def say_error(message: str, *, hint: str | None = None) -> None:
    """Print an error and what to do about it on stderr."""
    say(f"quicferry: {message}")
    if hint:
        say(f"  hint: {hint}")


def report(error: FerryError, *, as_json: bool) -> None:
    """Tell of an error on stderr; with ``as_json`` also as one object on stdout, if none told of it yet."""
    if as_json and not error.already_printed:
        with contextlib.suppress(OSError):  # it may be this that cannot be written
            print_json({"outcome": error.outcome, "error": str(error), "hint": error.hint})
    say_error(str(error), hint=error.hint)


def ask_for_root(what: str) -> None:
    """Raise ``Unsupported`` unless the effective user is root. ``what`` completes "… needs root"."""
    if os.geteuid() != 0:
        line = " ".join(["sudo", "bin/quicferry", *sys.argv[1:]])
        raise Unsupported(f"{what} needs root: it makes network namespaces", hint=f"run `{line}`")
