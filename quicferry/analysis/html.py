"""What both kinds of page have in common: how their template is read, and how they become a file."""

from __future__ import annotations

from pathlib import Path

import jinja2

from quicferry.errors import StoreError


def template(name: str) -> jinja2.Template:
    """A template of ``quicferry/analysis/templates``; what it is given is escaped, and must be complete."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("quicferry.analysis"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def write_html(path: Path, page: str) -> None:
    """Write a page, with the folders above it. Raises ``StoreError``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}", hint="choose another file with -o"
        ) from error
