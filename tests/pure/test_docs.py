"""What the documentation says is so: pages made from code are current, links resolve, commands exist."""

from __future__ import annotations

import importlib.util
import re

import pytest

from cli.main import COMMANDS
from quicferry.events import NAMES
from quicferry.experiment.preflight import probes
from quicferry.migration.engines.registry import engines
from quicferry.paths import CHECKOUT
from quicferry.strategies import Strategy

PAGES = sorted(
    path
    for folder in (
        CHECKOUT,
        *(CHECKOUT / name for name in ("docs", "runs", "scenarios", "baselines", "bench", "tests")),
    )
    for path in (folder.glob("*.md") if folder == CHECKOUT else folder.rglob("*.md"))
)
README = (CHECKOUT / "README.md").read_text()
MAKEFILE = (CHECKOUT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def name_of(path):
    return str(path.relative_to(CHECKOUT))


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(page):
    """The names that headings get: lower case, words joined by hyphens, punctuation left out."""
    headings = re.findall(r"^#+ +(.+?) *$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.fixture(scope="module")
def make_docs():
    spec = importlib.util.spec_from_file_location("make_docs", CHECKOUT / "tools" / "make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["events.md", "axes.md", "columns.md", "faults.md"])
def test_a_page_made_from_code_is_current(make_docs, page):
    assert (CHECKOUT / "docs" / page).read_text() == make_docs.PAGES[page](), "run tools/make_docs.py"


@pytest.mark.parametrize("page", ["docs/adr/0014-one-owner.md", "docs/security.md"])
def test_a_page_that_says_what_shows_it_names_tests_that_there_are(page):
    files = list((CHECKOUT / "tests").rglob("*.py"))
    there = {path.name for path in files}
    there |= {name for path in files for name in re.findall(r"def (test_\w+)\(", path.read_text())}
    there |= {path.stem for path in (CHECKOUT / "tests" / "simulation" / "mended").rglob("*.json")}
    rows = [line for line in (CHECKOUT / page).read_text().splitlines() if line.startswith("| ")]
    shown = {word for row in rows for word in re.findall(r"`([\w-]+(?:\.py)?)`", row.split(" | ")[-1])}
    named = {word for word in shown if word.startswith("test_") or "-" in word}
    assert len(named) > 10
    assert named - there == set()


def test_every_event_is_documented():
    page = (CHECKOUT / "docs" / "events.md").read_text()
    assert [name for name in NAMES if f"| `{name}` | {NAMES[name]} |" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_inside_the_project_resolve(page):
    text = without_code(page.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{target} leads nowhere"
        if anchor and other.suffix == ".md":
            assert anchor in anchors(other), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_are_shown_exist(page):
    text = page.read_text()
    for target in re.findall(r"(?:`|^ {4}|\bsudo )make ([a-z-]+)", text, re.MULTILINE):
        assert target in TARGETS, f"make {target}"
    for command in re.findall(r"(?:bin/|`)quicferry ([a-z]+)", text):
        assert command in COMMANDS, f"quicferry {command}"
    for script in re.findall(
        r"(?:`|python |^ {4})((?:tools|provision)/[\w./-]+\.(?:sh|py))", text, re.MULTILINE
    ):
        assert (CHECKOUT / script).is_file(), script


def test_the_readme_names_every_strategy_engine_and_command():
    for name in [*Strategy, *engines()]:
        assert f"`{name}`" in README, name
    for command in COMMANDS:
        assert f"bin/quicferry {command}" in README or f"make {command}" in README, command


def test_every_make_target_says_what_it_does():
    described = set(re.findall(r"^([a-z-]+):.* ## ", MAKEFILE, re.MULTILINE))
    assert described == TARGETS
    assert set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()) == TARGETS


def test_ci_requires_only_probes_that_exist():
    required = re.search(r"^CI_REQUIRES := (\S+)$", MAKEFILE, re.MULTILINE)[1].split(",")
    assert set(required) <= set(probes())
    # the cable stands in for the one, nothing needs the other
    assert set(probes()) - set(required) == {"netem", "criu-tracking", "oci-pre-dump"}


def test_every_page_is_in_the_index():
    index = CHECKOUT / "docs" / "README.md"
    linked = set(re.findall(r"\]\(([^)#\s]+)\)", index.read_text()))
    pages = {
        path.relative_to(index.parent).as_posix() for path in index.parent.rglob("*.md") if path != index
    }
    assert pages <= linked


def test_decision_records_have_numbers_of_their_own_and_a_status():
    records = sorted((CHECKOUT / "docs" / "adr").glob("*.md"))
    numbers = [path.name.partition("-")[0] for path in records]
    assert all(re.fullmatch(r"\d{4}", number) for number in numbers)
    assert len(set(numbers)) == len(numbers)
    for path, number in zip(records, numbers, strict=True):
        text = path.read_text()
        assert text.startswith(f"# {number}: "), path.name
        assert re.search(r"^Status: (accepted|superseded by \d{4})$", text, re.MULTILINE), path.name
