"""How several runs ended together: why some could not be had here, and whether the whole is a failure."""

from __future__ import annotations

from collections.abc import Sequence

import baselines
from quicferry.errors import EXIT_CODES, FerryError, Unsupported
from quicferry.record import RunResult


class SomeFailed(FerryError):
    """Not every run succeeded; all results have been printed."""

    already_printed = True

    def __init__(self, message: str, bad: Sequence[RunResult]) -> None:
        super().__init__(message, hint=bad[0].hint)
        #: 3 when nothing worse came than a service that suffered or a path that was overloaded
        self.exit_code = 3 if all(exit_code(result) == 3 for result in bad) else 1


def exit_code(result: RunResult) -> int:
    """The exit status of a command for which this is the only result."""
    return EXIT_CODES.get(result.outcome, 1)


def reasons(results: Sequence[RunResult]) -> list[str]:
    """Why some of what was asked for cannot be had here, a line each."""
    return sorted({why_not(result) for result in results if result.outcome == "unsupported"})


def why_not(result: RunResult) -> str:
    """Why a run could not be made here, in a line."""
    hint = f" ({result.hint})" if result.hint else ""
    return f"{result.strategy} · {result.engine}: unsupported: {result.error}{hint}"


def is_not_meant(result: RunResult) -> bool:
    """Whether that engine cannot move that baseline's server on any machine."""
    if result.kind != "baseline" or result.outcome != "unsupported":
        return False
    try:
        baselines.check_engine(result.strategy, result.engine)
    except Unsupported:
        return True
    return False


def raise_for(results: Sequence[RunResult]) -> None:
    """Raise when a run did not succeed: ``Unsupported`` when none could, else ``SomeFailed``.

    A cell that no machine can fill is told in the table and is no failure as long as others are filled.
    """
    bad = [result for result in results if result.outcome != "succeeded"]
    if any(result.outcome == "succeeded" for result in results):
        bad = [result for result in bad if not is_not_meant(result)]
    if not bad:
        return
    first = bad[0]
    message = f"{len(bad)} of {len(results)} runs did not succeed; the first one: {first.error}"
    if all(result.outcome == "unsupported" for result in results):
        error: FerryError = Unsupported(message, hint=first.hint)
        error.already_printed = True
        raise error
    raise SomeFailed(message, bad)
