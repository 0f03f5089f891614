"""Runs that are asked for in tests."""

from __future__ import annotations

from typing import Any

from quicferry.spec import RunSpec
from session.request import needs, parts_of


def needs_with(**values: Any) -> list[str]:
    """The probes that a run with these values needs."""
    spec = RunSpec(**values)
    return needs(spec, parts_of(spec))
