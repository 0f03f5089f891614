"""What this machine can run: lines are drawn accordingly."""

from __future__ import annotations

import sys
from random import Random

from proof.explore.command import accepted
from proof.explore.levels import factors
from quicferry.errors import FerryError
from quicferry.experiment import preflight
from quicferry.spec import RunSpec
from session.request import needs, parts_of


def unsupported() -> frozenset[str]:
    """The probes of all runs that say no here; each is asked once, and its reason printed."""
    refused = set()
    for levels in factors().values():
        for level in levels:
            for extra in ({}, {"engine": "criu-post-copy"}, {"engine": "criu-hybrid"}):
                spec = accepted({**extra, **level.draw(Random(1))})
                refused |= set(needs(spec, parts_of(spec))) if spec is not None else set()
    for name in sorted(refused):
        try:
            preflight.check([name])
        except FerryError as error:
            print(f"explore: not on this machine: {name}: {error}", file=sys.stderr)
        else:
            refused.discard(name)
    return frozenset(refused)


def can(spec: RunSpec, refused: frozenset[str]) -> bool:
    """Whether a run needs nothing of what is refused."""
    return not refused.intersection(needs(spec, parts_of(spec)))
