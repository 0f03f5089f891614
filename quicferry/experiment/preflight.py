"""Collects all probes of the machine, and checks those that a run needs before it starts.

The probes themselves are defined beside what they are about.
"""

from __future__ import annotations

from collections.abc import Iterable

from quicferry.capture import probes as capture_probes
from quicferry.emulation import probes as emulation_probes
from quicferry.emulation.links import probes as link_probes
from quicferry.errors import InvalidInput
from quicferry.experiment import service_probes
from quicferry.migration.criu import probes as criu_probes
from quicferry.migration.criu import runc_probes
from quicferry.probe import Probe, ProbeResult, require

_SOURCES = (
    emulation_probes.PROBES,
    link_probes.PROBES,
    criu_probes.PROBES,
    runc_probes.PROBES,
    capture_probes.PROBES,
    service_probes.PROBES,
)

#: What ``quicferry demo`` cannot do without. netem is not among them: the cable stands in for it.
NEEDED_FOR_DEMO = ("root", "netns", "veth", "shaped-link", "mininet", "criu", "tshark")


def probes() -> dict[str, Probe]:
    """Every probe by its name, in the order in which a doctor would ask."""
    found: dict[str, Probe] = {}
    for source in _SOURCES:
        for probe in source:
            assert probe.name not in found, f"two probes are named {probe.name}"
            found[probe.name] = probe
    return found


def select(names: Iterable[str]) -> list[Probe]:
    """The probes of those names. Raises ``InvalidInput`` for a name that is none."""
    known = probes()
    chosen: list[Probe] = []
    for name in names:
        if name not in known:
            raise InvalidInput(f"there is no probe {name!r}", hint="there are: " + ", ".join(known))
        chosen.append(known[name])
    return chosen


def check(names: Iterable[str]) -> list[ProbeResult]:
    """Ask those probes, one after another. Raises ``Unsupported`` at the first that says no."""
    results: list[ProbeResult] = []
    for probe in select(names):
        result = probe.run()
        require(result)
        results.append(result)
    return results
