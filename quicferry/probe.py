"""What can this machine do? Probes that find out by doing.

One list of probes serves ``quicferry doctor``, the preflight of a run and the skips of the tests,
so that the three never disagree. A probe is a function without arguments that returns a sentence
about what it saw, or raises ``Unsupported`` with the reason and what to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from quicferry.errors import FerryError, Unsupported


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of one probe."""

    name: str
    works: bool
    detail: str  # what was seen, or why it does not work
    hint: str | None = None  # what to do when it does not work
    needed_for: str
    duration_ms: float


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A question to the machine. ``name`` is the word for ``--require=`` in tests."""

    name: str
    needed_for: str
    ask: Callable[[], str]

    def run(self) -> ProbeResult:
        """Ask. Never raises: a probe that breaks is an answer too."""
        begun = time.perf_counter()
        works, hint = True, None
        try:
            detail = self.ask()
        except FerryError as error:
            works, detail, hint = False, str(error), error.hint
        except OSError as error:
            works, detail = False, f"{type(error).__name__}: {error}"
            hint = (
                "run as root on a Linux machine of your own" if isinstance(error, PermissionError) else None
            )
        return ProbeResult(
            name=self.name,
            works=works,
            detail=detail,
            hint=hint,
            needed_for=self.needed_for,
            duration_ms=round((time.perf_counter() - begun) * 1e3, 1),
        )


def require(result: ProbeResult) -> None:
    """Raise ``Unsupported`` when the probe said no."""
    if not result.works:
        raise Unsupported(f"{result.name}: {result.detail}", hint=result.hint)
