"""The corpus, and the crashes that are open.

tests/fuzz/corpus/<target>/ holds inputs, small ones; tests/fuzz/open.toml names those of them that crash a
decoder today, and how. A test gives all of them to the decoders: what is listed must crash in exactly
that way, all else must not. Whoever mends a decoder takes its line out; the input stays.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import msgspec

from proof.fuzz.attempt import TIME_S, Crash, TooLong
from quicferry.paths import CHECKOUT

CORPUS = CHECKOUT / "tests" / "fuzz" / "corpus"
OPEN = CHECKOUT / "tests" / "fuzz" / "open.toml"


class OpenCrash(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A crash that is not mended yet."""

    target: str
    input: str  # file of tests/fuzz/corpus/<target>
    error: str
    at: str
    text: str  # what is wrong, and what would be right

    @property
    def crash(self) -> Crash:
        """What it must look like."""
        return Crash(self.error, self.at)


def open_crashes(path: Path = OPEN) -> list[OpenCrash]:
    """The list."""
    with path.open("rb") as file:
        return msgspec.convert(tomllib.load(file).get("crash", []), list[OpenCrash])


def inputs(target: str, corpus: Path = CORPUS) -> list[Path]:
    """The corpus of a target, sorted by name."""
    folder = corpus / target
    return sorted(folder.iterdir()) if folder.is_dir() else []


class Collector:
    """Keeps the smallest input of each crash in a folder, and counts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.smallest: dict[Crash, bytes] = {}
        self.executed = 0

    @property
    def time_s(self) -> float:
        """How long an attempt may take: less, once it is known that the decoder can take too long."""
        return TIME_S / 50 if any(each.error == TooLong.__name__ for each in self.smallest) else TIME_S

    def take(self, crash: Crash | None, data: bytes) -> None:
        """Note the end of one attempt."""
        self.executed += 1
        if crash is None or (crash in self.smallest and len(self.smallest[crash]) <= len(data)):
            return
        self.smallest[crash] = data
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(str(crash).encode()).hexdigest()[:10]
        (self._folder / f"crash-{name}").write_bytes(data)
        (self._folder / f"crash-{name}.txt").write_text(f"{crash}\n")
