"""The house as CONTRIBUTING.md tells it: maps in all folders, rooms to be taken in, complete tables."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import baselines
from quicferry.migration.engines import registry
from quicferry.paths import CHECKOUT
from quicferry.strategies import strategies
from tools.count_rooms import PACKAGES, circles

FOLDERS = sorted(path.parent for package in PACKAGES for path in (CHECKOUT / package).rglob("__init__.py"))
MOST_ENTRIES = 14


def name_of(folder: Path) -> str:
    return str(folder.relative_to(CHECKOUT))


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_every_folder_says_what_is_in_it(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert text is not None and len(text.split()) >= 5


def test_the_migration_can_be_taken_in_at_a_glance() -> None:
    folder = CHECKOUT / "quicferry" / "migration"
    assert len([entry for entry in folder.iterdir() if entry.name != "__pycache__"]) <= MOST_ENTRIES


def test_a_ring_of_imports_is_found() -> None:
    assert circles([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]) == [{"a", "b", "c"}]
    assert circles([("a", "b"), ("b", "c"), ("a", "c")]) == []


def test_the_readme_names_whatever_can_be_combined() -> None:
    readme = (CHECKOUT / "README.md").read_text()
    for name in [*strategies(), *registry.engines(), *baselines.names()]:
        assert f"| `{name}`" in readme or f", `{name}`" in readme, name
