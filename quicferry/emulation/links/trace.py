"""Reads the traces of Mahimahi: how the rate of a link changes over time.

A trace is a text file. Each line is a moment in whole milliseconds from its beginning, not decreasing, at
which one packet of 1500 bytes may pass; a moment that stands twice lets two of them pass. When the last
moment is over, the trace begins anew (Netravali et al., Mahimahi, USENIX ATC 2015).
"""

from __future__ import annotations

from pathlib import Path

from quicferry.errors import InvalidInput

OPPORTUNITY_BYTES = 1500
MOST_LINES = 5_000_000


def read_trace(path: str | Path) -> tuple[int, ...]:
    """The moments of a trace, in ms. Raises ``InvalidInput`` that names file and line."""
    try:
        text = Path(path).read_text(encoding="ascii")
    except OSError as error:
        raise InvalidInput(
            f"cannot read the trace {path}: {error.strerror}", hint="name a file that is there"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: this is no text", hint="write a whole number of ms per line") from error
    moments: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if not words:
            continue
        if not words.isdecimal() or len(words) > 10:
            raise InvalidInput(
                f"{path}, line {number}: {words[:40]!r} is no time",
                hint="write a whole number of ms per line",
            )
        moment = int(words)
        if moments and moment < moments[-1]:
            raise InvalidInput(
                f"{path}, line {number}: the time runs back from {moments[-1]} to {moment} ms",
                hint="sort the lines: each is a moment after the beginning of the trace",
            )
        moments.append(moment)
        if len(moments) > MOST_LINES:
            raise InvalidInput(f"{path}: more than {MOST_LINES} lines", hint="cut the trace")
    if not moments or moments[-1] <= 0:
        raise InvalidInput(
            f"{path}: the trace has no length",
            hint="write at least one moment after 0 ms: the last is its end",
        )
    return tuple(moments)


def mean_mbps(moments: tuple[int, ...]) -> float:
    """The mean rate of a trace, in 10^6 bit/s."""
    return len(moments) * OPPORTUNITY_BYTES * 8 / (moments[-1] * 1e3)
