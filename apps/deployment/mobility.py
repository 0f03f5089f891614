"""A mobile client: it changes its access router and its address, by itself or with the server."""

from __future__ import annotations

import signal
import threading
import time

from apps.deployment.client_service import ClientsApart, LoadClient
from quicferry.emulation import routing
from quicferry.events import Event
from quicferry.experiment.context import RunContext
from quicferry.experiment.itinerary import client_links
from quicferry.record import PLACE_BY_CLIENT_HOST

SETTLED_S = 1.0  # between the client's move and that of the server which follows it
#: of a move that is going on: the clients know of it, the server is about to be frozen
TOGETHER_AT = "migration.checkpoint.started"


class Mobility:
    """The changes of a run's client. ``before_move`` is called when a move begins."""

    def __init__(self, context: RunContext, client: LoadClient | ClientsApart) -> None:
        self._context = context
        self._client = client
        self._how = context.spec.mobility
        self._done = 0
        self._host = context.part("client")
        self._changing: threading.Thread | None = None
        self._links: tuple[str, ...] = ()
        if self._how == "none":
            return
        self._links = client_links(context.topology, context.spec)
        context.client_stops = [
            routing.first_address(routing.handed_over(context.topology, self._host, link), self._host)
            for link in self._links
        ]
        if self._how == "alone":
            context.place_by = PLACE_BY_CLIENT_HOST
        if self._how == "together":
            context.listeners.append(self._listen)

    @property
    def server_stays(self) -> bool:
        """Whether only the client moves."""
        return self._how == "alone"

    def before_move(self) -> None:
        """Change the client's address now, if it is to change before the server does, or alone."""
        if self._how in ("alone", "before"):
            self._change()
        if self._how == "before":
            time.sleep(SETTLED_S)

    def after_move(self) -> None:
        """Wait until a change that a move has set off is over."""
        if self._changing is not None:
            self._changing.join()
            self._changing = None

    def _listen(self, event: Event) -> None:
        if event.name == TOGETHER_AT and self._changing is None:
            self._changing = threading.Thread(target=self._change, name="hand-over")
            self._changing.start()

    def _change(self) -> None:
        """Hand the client over to its next access router, and tell it, as its system would."""
        context = self._context
        self._done += 1
        link, old, new = self._links[self._done], *context.client_stops[self._done - 1 : self._done + 1]
        with context.events.phase("client.handover", link=link, old=old, new=new):
            context.emulator.hand_over(self._host, link)
        if self._client.program is not None:
            self._client.program.process.send_signal(signal.SIGUSR1)
