"""The worlds by name, each as the four functions that everything else needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from simulation.history import History
from simulation.ownership import play as ownership_play
from simulation.ownership import shorten as ownership_shorten
from simulation.ownership import story as ownership_story
from simulation.protocol import play as protocol_play
from simulation.protocol import shorten as protocol_shorten
from simulation.protocol import story as protocol_story


@dataclass(frozen=True)
class World:
    """A kind of simulation."""

    name: str
    kind: type[Any]
    draw: Callable[[int], Any]
    play: Callable[[Any], History]
    shorter: Callable[[Any], Iterator[Any]]  # stories with a little less in them, the boldest first

    def read(self, data: bytes) -> Any:
        """A story from JSON. Raises ``msgspec.DecodeError``."""
        return msgspec.json.decode(data, type=self.kind)

    def write(self, story: Any) -> bytes:
        """A story as JSON."""
        return msgspec.json.format(msgspec.json.encode(story), indent=1) + b"\n"

    def tell(self, story: Any) -> str:
        """A story for people: what differs from the defaults, one line for each step."""
        return "\n".join(_told(story, self.kind.__name__))


def _told(value: Any, name: str, depth: int = 0) -> Iterator[str]:
    fields = msgspec.structs.fields(value)
    plain: list[str] = []
    nested: list[tuple[str, Any]] = []
    for field in fields:
        content = getattr(value, field.name)
        default = field.default if field.default is not msgspec.NODEFAULT else None
        if isinstance(content, list) and content and isinstance(content[0], msgspec.Struct):
            nested += [(f"{field.name[:-1]} {number}", each) for number, each in enumerate(content, 1)]
        elif content != default and content != []:
            shown = [str(each) for each in content] if isinstance(content, list) else content
            plain.append(f"{field.name}={shown}")
    yield f"{'  ' * depth}{name}: {', '.join(plain)}"
    for title, each in nested:
        yield from _told(each, title, depth + 1)


WORLDS: dict[str, World] = {
    "protocol": World(
        "protocol",
        protocol_story.Story,
        protocol_story.draw,
        protocol_play.play,
        protocol_shorten.shorter,
    ),
    "ownership": World(
        "ownership",
        ownership_story.Story,
        ownership_story.draw,
        ownership_play.play,
        ownership_shorten.shorter,
    ),
}
