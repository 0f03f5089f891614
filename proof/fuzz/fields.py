"""Hand-off data that can be decoded and make no sense: single values of a real image replaced.

Bytes that are changed blindly seldom are MessagePack of the right shape. Here they say which value of an
image is replaced, and by which one of those at which decoders break.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

Place = tuple[list[Any] | dict[Any, Any], Any]  # a container, and where in it

NASTY: tuple[Any, ...] = (
    0, 1, -1, 7, 255, 1 << 14, (1 << 31) - 1, 1 << 32, (1 << 62) - 1, (1 << 63) - 1, (1 << 64) - 1,
    -(1 << 63),
    0.0, -1.0, 1e-300, 1e308, float("inf"), float("nan"), None, True, False,
    b"", b"\0", b"\xff" * 8, b"\0" * 20, b"\0" * 32, b"\0" * 48, b"\0" * 300,
    "", "reno", "x", [], [[0, 0]], [[5, 3]], [[3, 5], [1, 9]], [[0, (1 << 62) - 1]], {}, {"x": 1},
)  # fmt: skip


def places(value: Any) -> Iterator[Place]:
    """Every place in nested lists and dictionaries that has a value of its own."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, list | dict):
            yield from places(inner)


def replaced(original: Any, data: bytes) -> Any:
    """A copy with a value replaced for every three bytes: two name the place, one the new value."""
    changed = copy.deepcopy(original)
    for at in range(0, len(data) - 2, 3):
        found = list(places(changed))
        if not found:
            break
        container, key = found[int.from_bytes(data[at : at + 2], "big") % len(found)]
        container[key] = copy.deepcopy(NASTY[data[at + 2] % len(NASTY)])
    return changed
