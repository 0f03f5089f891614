"""The shortest line that still fails: axes are put back to their defaults while it does.

Delta debugging (Zeller and Hildebrandt, *Simplifying and isolating failure-inducing input*, IEEE TSE
28(2), 2002), first many axes at a time, then one by one. A fault may show only sometimes: a line fails
when two of three runs do; on the way to a shorter one, where most lines that are asked do not fail and each
run takes seconds, one of two is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: (runs, of which so many fail): to call a line failing, and to go on with a shorter one
DECIDE, ON_THE_WAY = (3, 2), (2, 1)

Fails = Callable[[Mapping[str, Any]], bool]


def repeatedly(once: Fails, rule: tuple[int, int] = DECIDE) -> Fails:
    """``once`` asked until enough of the tries said yes, or cannot any more."""
    tries, enough = rule

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
    values: Mapping[str, Any],
    fails: Fails,
    valid: Callable[[Mapping[str, Any]], bool],
    in_time: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """The values that are needed for ``fails``, as far as it is ``in_time``. ``values`` must fail.

    Only values are tried that ``valid`` allows: an axis that another one needs stays until that is gone.
    """
    kept = dict(values)
    size = max(1, len(kept) // 2)
    while True:
        removed = False
        names = list(kept)
        for at in range(0, len(names), size):
            out = names[at : at + size]
            rest = {name: value for name, value in kept.items() if name not in out}
            if len(rest) == len(kept) or not valid(rest):
                continue
            if not in_time():
                return kept
            if fails(rest):
                kept, removed = rest, True
        if size == 1 and not removed:
            return kept
        size = max(1, size // 2)
