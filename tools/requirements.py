"""Which sentence of a specification is kept where, and which test shows it: ``make requirements``.

    python tools/requirements.py            the table: sentence -> code -> test
    python tools/requirements.py --check    only what is missing; status 1 when something is

A *requirement* is a sentence with MUST or SHOULD: every one of ``docs/wire-format.md``, and those of the RFC
sections in ``docs/requirements.toml``, word for word. Code and tests name the requirement that they stand for
in a comment inside of a function, by some words of it that no other sentence of its section has:

    #: wire-format 3.2: MUST NOT be remembered for 0-RTT
    #: RFC 9000 8.2.1: MUST use unpredictable data in every PATH_CHALLENGE

As in s2n-quic's reports (duvet), the words are the link: a sentence that is changed loses its comments, and
the check says so. A requirement that is kept by aioquic, or that there is a reason not to keep, says that in
the file of the RFC sections; of our own document there are no such exceptions.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SPECIFICATION, RFCS = "docs/wire-format.md", "docs/requirements.toml"
CODE, TESTS = ("quicferry", "apps"), ("tests",)
KEYWORD = re.compile(r"\b(?:MUST|SHOULD)\b")
_HEADING = re.compile(r"#+ (\d+(?:\.\d+)*)\.? ")
_SENTENCE_END = re.compile(r"(?<=[.;:])\s+(?=[A-Z*`])")
_COMMENT = re.compile(r"\s*#: (?P<document>wire-format|RFC \d+) (?P<section>\d+(?:\.\d+)*): (?P<words>.+)$")
#: where the words are explained, not used
_NO_REQUIREMENT = "The key words MUST"


class Requirement(NamedTuple):
    """One sentence. ``reason``: why no code or test of ours stands for it; only of an RFC."""

    document: str
    section: str
    text: str
    reason: str | None = None
    by: str | None = None  # who keeps it besides us: aioquic

    @property
    def place(self) -> str:
        """Where it is written."""
        return f"{self.document} §{self.section}"


class Mention(NamedTuple):
    """A comment that names a requirement."""

    document: str
    section: str
    words: str
    where: str  # file:line function
    in_test: bool


class Traced(NamedTuple):
    """A requirement and all that names it."""

    requirement: Requirement
    code: list[str]
    tests: list[str]

    @property
    def missing(self) -> list[str]:
        """What it lacks: ``code``, ``test``, or nothing."""
        wanted = self.requirement
        if wanted.reason is not None:
            return []
        lacks = [] if self.code or wanted.by else ["code"]
        return lacks + ([] if self.tests else ["test"])


def of_specification(text: str, document: str = "wire-format") -> Iterator[Requirement]:
    """The sentences of a specification in Markdown that have MUST or SHOULD; code blocks are left out."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    section, lines = "", []  # type: tuple[str, list[str]]
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading is None:
            lines.append(line)
        else:
            section, lines = heading.group(1), []
            found.append((section, lines))
    for section, lines in found:
        for sentence in _SENTENCE_END.split(" ".join(" ".join(lines).split())):
            if KEYWORD.search(sentence) and not sentence.startswith(_NO_REQUIREMENT):
                yield Requirement(document, section, sentence.removeprefix("* "))


def of_rfcs(text: str) -> Iterator[Requirement]:
    """The sentences in a file like ``docs/requirements.toml``. Raises ``ValueError`` for one that is none."""
    for row in tomllib.loads(text)["requirement"]:
        sentence = " ".join(row["text"].split())
        if not KEYWORD.search(sentence):
            raise ValueError(f"no MUST and no SHOULD in {sentence!r}")
        yield Requirement(row["document"], row["section"], sentence, row.get("reason"), row.get("by"))


def mentions(source: str, name: str, *, in_test: bool) -> Iterator[Mention]:
    """The comments in one Python file, each with the innermost function or class that it is in."""
    marked = [(number, line) for number, line in enumerate(source.splitlines(), 1) if "#: " in line]
    if not marked:
        return
    places = [
        (node.lineno, node.end_lineno or node.lineno, node.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    for number, line in marked:
        comment = _COMMENT.match(line)
        if comment is None:
            continue
        inside = [place for place in places if place[0] <= number <= place[1]]
        function = max(inside)[2] if inside else "(module)"
        words = " ".join(comment["words"].split())
        yield Mention(comment["document"], comment["section"], words, f"{name} {function}", in_test)


def files(folders: Iterable[str]) -> Iterator[Path]:
    """The Python files of these folders."""
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def all_mentions() -> list[Mention]:
    """Every comment of the checkout."""
    return [
        mention
        for folders, in_test in ((CODE, False), (TESTS, True))
        for path in files(folders)
        for mention in mentions(path.read_text(), str(path.relative_to(ROOT)), in_test=in_test)
    ]


def all_requirements() -> list[Requirement]:
    """Every requirement of the checkout."""
    return [
        *of_specification((ROOT / SPECIFICATION).read_text()),
        *of_rfcs((ROOT / RFCS).read_text()),
    ]


def trace(requirements: list[Requirement], found: list[Mention]) -> tuple[list[Traced], list[str]]:
    """Each requirement with what names it; and the comments that name none, or more than one."""
    traced = [Traced(requirement, [], []) for requirement in requirements]
    stray: list[str] = []
    for mention in found:
        meant = [
            each
            for each in traced
            if (each.requirement.document, each.requirement.section) == (mention.document, mention.section)
            and mention.words in each.requirement.text
        ]
        if len(meant) != 1:
            how = "no sentence has" if not meant else "more than one sentence has"
            stray.append(f"{mention.where}: {how} {mention.words!r} ({mention.document} {mention.section})")
            continue
        (meant[0].tests if mention.in_test else meant[0].code).append(mention.where)
    return traced, stray


def row(traced: Traced) -> str:
    """A line of the table."""
    wanted = traced.requirement
    if wanted.reason is not None:
        return f"| {wanted.place} | {wanted.text} | not kept here: {wanted.reason} | |"
    code = [f"aioquic: {wanted.by}"] if wanted.by else []
    code += [f"`{where}`" for where in traced.code]
    tests = [f"`{where}`" for where in traced.tests]
    return f"| {wanted.place} | {wanted.text} | {', '.join(code)} | {', '.join(tests)} |"


def faults(traced: list[Traced], stray: list[str]) -> list[str]:
    """What is wrong: requirements that lack something, and comments that lead nowhere."""
    lacking = [
        f"{each.requirement.place}: no {' and no '.join(each.missing)} for: {each.requirement.text}"
        for each in traced
        if each.missing
    ]
    return lacking + stray


def main() -> int:
    """Print the table, or with --check only what is wrong."""
    traced, stray = trace(all_requirements(), all_mentions())
    wrong = faults(traced, stray)
    if "--check" not in sys.argv:
        print("| where | requirement | code | test |\n|---|---|---|---|")
        print("\n".join(map(row, traced)))
        left_out = sum(each.requirement.reason is not None for each in traced)
        print(f"\n{len(traced)} requirements, {left_out} of them not kept here for the reason given.")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
