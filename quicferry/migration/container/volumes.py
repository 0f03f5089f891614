"""The volumes of a container, as they are asked for: ``NAME:/path`` or ``/directory:/path:ro``."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from quicferry.errors import InvalidInput

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HINT = "write NAME:/path for a volume that moves, /directory:/path:ro for a directory that all hosts have"
#: These are the container's own.
OWN = ("/proc", "/dev", "/run", "/sys")


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """One volume: a named one, empty at first, that moves along, or a directory of every host."""

    source: str  # a name, or an absolute path
    target: str  # where the container sees it

    @property
    def moves(self) -> bool:
        """Whether its files belong to the container."""
        return not self.source.startswith("/")


class ContainerFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What a container is given of files, besides what the packaged workload needs of the system."""

    image: str | None = None  # a directory, see ``oci_image``; None: nothing but the system's
    volumes: list[Volume] = []
    disk_mib: int = 0  # of random contents that the container has written to its layer when it starts


def parse(text: str | None) -> list[Volume]:
    """The volumes of a list with commas. Raises ``InvalidInput``."""
    found: list[Volume] = []
    for words in filter(None, (text or "").split(",")):
        source, _, rest = words.partition(":")
        target, _, mode = rest.partition(":")
        named = NAME.fullmatch(source) is not None
        if not (named or source.startswith("/")) or not target.startswith("/") or ".." in Path(target).parts:
            raise InvalidInput(f"the volume {words!r} is not understood", hint=HINT)
        if mode != ("" if named else "ro"):
            raise InvalidInput(
                f"the volume {words!r} cannot be had",
                hint="a directory of the machine is for reading (:ro), as it does not move; a named one does",
            )
        if target == "/" or any(target == own or target.startswith(f"{own}/") for own in OWN):
            raise InvalidInput(f"{target} is the container's own and cannot be a volume", hint=HINT)
        if any(each.target == target or (named and each.source == source) for each in found):
            raise InvalidInput(f"the volume {words!r} is named twice", hint=HINT)
        if not named:
            _check_directory(source)
        found.append(Volume(source=source, target=target))
    return found


def _check_directory(source: str) -> None:
    if not Path(source).is_dir():
        raise InvalidInput(
            f"the volume {source} does not exist at the destination: there is no such directory",
            hint="make it on every host, or name a volume that moves (NAME:/path)",
        )
