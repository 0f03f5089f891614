"""Draws the state machines of the extension, from the code's tables, into docs/wire-format.md.

python -m tools.draw_states            rewrites the diagrams between their markers
python -m tools.draw_states --check    exits with 1 when they are not current
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from quicferry.quic.tables import CLIENT, SERVER

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "wire-format.md"


S = TypeVar("S", bound=enum.StrEnum)
I = TypeVar("I", bound=enum.StrEnum)  # noqa: E741  (the letter of an automaton's input alphabet)


def diagram(table: Mapping[tuple[S, I], S]) -> str:
    """A table as a Mermaid state diagram; arrows between the same two states are one arrow."""
    arrows: dict[tuple[S, S], list[str]] = {}
    for (state, sent), reached in table.items():
        arrows.setdefault((state, reached), []).append(str(sent).replace(":", ""))
    first = next(iter(table))[0]
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first.name}"]
    lines += [
        f"    {state.name} --> {reached.name}: {' / '.join(sent)}"
        for (state, reached), sent in arrows.items()
    ]
    return "\n".join([*lines, "```"])


def updated(text: str) -> str:
    """The document with current diagrams. Raises ``ValueError`` when a marker is missing."""
    for name, drawn in (("client", diagram(CLIENT)), ("server", diagram(SERVER))):
        before, marker, rest = text.partition(f"<!-- states: {name} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        if not end:
            raise ValueError(f"{DOCUMENT.name} has no markers for the {name}")
        text = before + marker + drawn + end + after
    return text


def main() -> int:
    """The command."""
    text = DOCUMENT.read_text()
    current = updated(text)
    if "--check" in sys.argv[1:]:
        print("current" if current == text else "not current: run tools/draw_states.py")
        return int(current != text)
    DOCUMENT.write_text(current)
    return 0


if __name__ == "__main__":
    sys.exit(main())
