"""The shortest line that still fails: axes are put back to their defaults while it does.

Delta debugging (Zeller and Hildebrandt, *Simplifying and isolating failure-inducing input*, IEEE TSE
28(2), 2002), first many axes at a time, then one by one. A fault may show only sometimes: a line fails
when two of three runs do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

TRIES, ENOUGH = 3, 2

Fails = Callable[[Mapping[str, Any]], bool]


def repeatedly(once: Fails, tries: int = TRIES, enough: int = ENOUGH) -> Fails:
    """``once`` asked until ``enough`` of ``tries`` said yes, or cannot any more."""

    def fails(values: Mapping[str, Any]) -> bool:
        yes = no = 0
        while yes < enough and no <= tries - enough:
            if once(values):
                yes += 1
            else:
                no += 1
        return yes >= enough

    return fails


def minimise(
    values: Mapping[str, Any], fails: Fails, valid: Callable[[Mapping[str, Any]], bool], most: int = 60
) -> dict[str, Any]:
    """The values that are needed for ``fails``; asks it at most ``most`` times. ``values`` must fail.

    Only values are tried that ``valid`` allows: an axis that another one needs stays until that is gone.
    """
    kept = dict(values)
    asked = 0
    size = max(1, len(kept) // 2)
    while True:
        removed = False
        names = list(kept)
        for at in range(0, len(names), size):
            out = names[at : at + size]
            rest = {name: value for name, value in kept.items() if name not in out}
            if len(rest) == len(kept) or not valid(rest):
                continue
            if asked >= most:
                return kept
            asked += 1
            if fails(rest):
                kept, removed = rest, True
        if size == 1 and not removed:
            return kept
        size = max(1, size // 2)
