"""Which baselines there are, what each needs of the machine, and what its run is made of.

A baseline module offers one ``BASELINE``; ours are listed in ``_MODULES``. Others come from outside: entry
points of the group ``quicferry.baselines``, or plug-in files (``quicferry.plugins``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

import msgspec

from quicferry import plugins
from quicferry.errors import InvalidInput, Unsupported
from quicferry.experiment.context import Deployment, RunContext

GROUP = "quicferry.baselines"
#: baseline name -> the module that has it; loaded when it is asked for
_MODULES: dict[str, str] = {
    "no-migration": "baselines.no_migration",
    "quic-reconnect": "baselines.quic_reconnect.baseline",
    "tcp-dns": "baselines.tcp_dns.baseline",
    "mptcp": "baselines.mptcp.baseline",
    "client-migration": "baselines.client_migration.baseline",
    "ip-move-quic": "baselines.ip_move.quic",
    "ip-move-tcp": "baselines.ip_move.tcp",
}


#: axes for strategies: several clients, each a process of its own; several moves, each with its record
MANY_CLIENTS = frozenset({"clients", "access", "load"})
MANY_MOVES = frozenset({"moves", "route"})


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """An alternative to the extension."""

    name: str
    title: str
    summary: str  # one sentence: what keeps client and server together, and what it favours
    deployment: Callable[[RunContext], Deployment]
    needs: tuple[str, ...] = ()  # probes besides those of every run
    moves: bool = True  # whether the server moves at all
    engines: tuple[str, ...] = ()  # that can move it; none named: all
    why_not: str = ""  # why no other engine can
    reads: frozenset[str] = frozenset()  # of the axes for baselines, those that have an effect in it
    honours: frozenset[str] = frozenset()  # of the axes for strategies, those that it has as well
    refuses: Mapping[str, str] = {}  # axes that every run reads but this one cannot honour, and the reason
    borrows_downtime: bool = False  # no engine moves it: it stands still as long as one would take

    def why_not_with(self, engine: str) -> Unsupported | None:
        """Why that engine cannot move this server, on any machine; None if it can."""
        if not self.engines or engine in self.engines:
            return None
        return Unsupported(
            f"the engine {engine} cannot move the server of {self.name}: {self.why_not}",
            hint="choose the engine " + " or ".join(self.engines),
        )


def check_engine(name: str, engine: str) -> None:
    """Raise ``Unsupported`` when that engine cannot move that baseline's server."""
    refused = get(name).why_not_with(engine)
    if refused is not None:
        raise refused


def names() -> tuple[str, ...]:
    """The names of all baselines, ours first. Raises ``InvalidInput`` for a broken plug-in."""
    return (*_MODULES, *_from_outside())


def get(name: str) -> Baseline:
    """The baseline of that name. Raises ``InvalidInput``."""
    if name in _MODULES:
        baseline = import_module(_MODULES[name]).BASELINE
        assert isinstance(baseline, Baseline)
        return baseline
    others = _from_outside()
    if name not in others:
        known = ", ".join((*_MODULES, *others))
        raise InvalidInput(f"there is no baseline {name!r}", hint=f"there are: {known}")
    return others[name]


def _from_outside() -> dict[str, Baseline]:
    found = plugins.table(GROUP, Baseline, (), lambda baseline: baseline.name)
    for name in found:
        if name in _MODULES:
            raise InvalidInput(
                f"a plug-in offers a baseline {name!r}, and so does quicferry itself",
                hint="give that of the plug-in another name",
            )
    return found
