"""What was found: new faults and those that are known, in a file beside the runs.

``known.toml`` lists faults that are open: a kind of complaint and the words of a line with which it
comes. Any other is new. A known fault that is mended is taken out by hand, with the change that mends it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

KNOWN = Path(__file__).with_name("known.toml")


class KnownFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An open fault. All of ``line`` must be found in the command, ``kind`` in the complaint's kind."""

    kind: str
    text: str
    line: list[str] = []  # regular expressions
    unless: list[str] = []  # regular expressions of which none may be found in the command


class Finding(msgspec.Struct, kw_only=True):
    """A fault that was seen."""

    kind: str
    words: str
    line: str  # as drawn
    shortest: str | None = None  # as minimised; None: not tried, or it did not come again
    confirmed: bool = False  # came again in two of three runs
    test: str = ""  # the shortest line as a test
    known: str | None = None  # the text of the known fault
    run_dir: str | None = None


def read_known(path: Path = KNOWN) -> list[KnownFault]:
    """The open faults. Raises ``OSError``, ``tomllib.TOMLDecodeError`` and ``msgspec.ValidationError``."""
    with path.open("rb") as file:
        return msgspec.convert(tomllib.load(file).get("fault", []), list[KnownFault])


def known_as(known: Iterable[KnownFault], kind: str, line: str) -> str | None:
    """The text of the known fault that this is; None for a new one."""
    for fault in known:
        if (
            re.search(fault.kind, kind)
            and all(re.search(each, line) for each in fault.line)
            and not any(re.search(each, line) for each in fault.unless)
        ):
            return fault.text
    return None


def as_test(values: Mapping[str, Any], kind: str) -> str:
    """The line as a test for tests/e2e/proof: fails while a run of these values has that fault."""
    name = re.sub(r"[^a-z]+", "_", kind.lower()).strip("_")[:50]
    return (
        f"def test_{name}(tmp_path: Path) -> None:\n"
        f"    seen = perform({dict(values)!r}, tmp_path)\n"
        f"    assert {kind!r} not in [kind_of(each) for each in complaints(seen)]\n"
    )


def append(path: Path, finding: Finding) -> None:
    """Add it to the file of findings, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(finding) + b"\n")


def summary(findings: Iterable[Finding]) -> list[str]:
    """The findings in words, one of each kind and shortest line, new ones first."""
    grouped: dict[tuple[bool, str, str], list[Finding]] = {}
    for finding in findings:
        what = finding.known or finding.kind
        grouped.setdefault((finding.known is not None, what, finding.shortest or ""), []).append(finding)
    rows = []
    for (is_known, what, _), some in sorted(grouped.items(), key=lambda item: item[0]):
        first = some[0]
        word = "known" if is_known else "NEW" if first.confirmed else "seen once"
        rows.append(
            f"{word}: {what} ({len(some)} times)\n    {first.words}\n    {first.shortest or first.line}"
        )
    return rows
