"""Tells when a container of a run has ended, or the server in it has ended or stands still."""

from __future__ import annotations

from collections.abc import Callable

from quicferry.errors import FerryError, MigrationError
from quicferry.process import Stillness, children_of, state_of

#: Between two looks a server can have ended in one container and not yet begun in another.
LOOKS = 2


class ContainerWatch:
    """The containers of all edges of a run, by their first processes. A ``Member`` of the run.

    ``judges_server`` says whether a server has to be there and to run now. It has not from its freeze to the
    move's end: it stands still and is nowhere for a moment, and the agents see to it, by deadlines.
    """

    def __init__(self, judges_server: Callable[[], bool]) -> None:
        self._judges_server = judges_server
        self._inits: dict[str, int] = {}
        self._still: dict[int, Stillness] = {}
        self._seen: str | None = None  # where the server was last
        self._missed = 0  # looks without a server

    def add(self, edge: str, init_pid: int) -> None:
        """The first process of an edge's container, as seen from here."""
        self._inits[edge] = init_pid

    def ended(self) -> FerryError | None:
        """See ``Member``."""
        for edge, pid in list(self._inits.items()):
            if state_of(pid) is None:
                return _broken(f"the container of {edge} has ended")
            if self._stands_still(pid):
                return _broken(f"the container of {edge} stands still (SIGSTOP)")
        if not self._judges_server():
            self._missed = 0
            return None
        return self._server_ended()

    def _server_ended(self) -> FerryError | None:
        servers = {
            edge: [child for child in children_of(pid) if state_of(child) is not None]
            for edge, pid in list(self._inits.items())
        }
        self._still = {
            pid: still
            for pid, still in self._still.items()
            if pid in self._inits.values() or any(pid in pids for pids in servers.values())
        }
        for edge, pids in servers.items():
            for pid in pids:
                if self._stands_still(pid):
                    return _broken(f"the server at {edge} stands still (SIGSTOP)")
        here = next((edge for edge, pids in servers.items() if pids), None)
        if here is not None:
            self._seen, self._missed = here, 0
        elif self._seen is not None:
            self._missed += 1
        return _broken(f"the server at {self._seen} has ended") if self._missed >= LOOKS else None

    def _stands_still(self, pid: int) -> bool:
        return self._still.setdefault(pid, Stillness()).is_for_good(pid)


def _broken(what: str) -> MigrationError:
    return MigrationError(
        f"{what} in the middle of the run", hint="see the logs of agents and server in logs/"
    )
