"""Where runs are, as an option: apart from the axes, which take long to load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def runs_option(command: F) -> F:
    """``--runs``: the folder of the run directories."""
    return click.option(
        "--runs",
        "runs_root",
        type=click.Path(file_okay=False, path_type=Path),
        default=None,
        help="The folder of the run directories.  [default: runs/ in the checkout, or $QUICFERRY_RUNS]",
    )(command)
