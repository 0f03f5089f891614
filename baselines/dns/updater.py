"""Tells the name server where the service is now: RFC 2136 updates, signed with TSIG (RFC 8945).

    python -m baselines.dns.updater --config FILE

Runs at the orchestrator's host. Reads JSON lines on stdin, ``{"address": "10.0.2.2"}``; stdout has
``{"event": {…}}`` and, for every line, ``{"updated": {…}}`` or ``{"outcome": {"error": …}}``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.tsig
import dns.update
import msgspec

from apps.config import read_config
from apps.reporting import event_log, tell
from baselines.dns.config import KEY_ALGORITHM, KEY_NAME, LABEL, NAME, ZONE, UpdaterConfig, kind_of
from quicferry.errors import MigrationError
from quicferry.events import EventLog

#: Two answers over UDP may be lost before it is given up; the first wait is many round trips to a
#: name server of one's own.
TIMEOUTS_S = (0.25, 0.5, 1.0, 2.0)


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """One line of stdin."""

    address: str
    other_address: str = ""  # of the other IP version, with dual stack


class Updater:
    """Sends updates for the one name there is."""

    def __init__(self, config: UpdaterConfig, events: EventLog) -> None:
        self._config = config
        self._events = events
        self._key = dns.tsig.Key(KEY_NAME, Path(config.key).read_text().strip(), KEY_ALGORITHM)

    def message(self, *addresses: str) -> dns.update.UpdateMessage:
        """The signed update that puts one address of each IP version in place of all others."""
        update = dns.update.UpdateMessage(ZONE)
        update.use_tsig(self._key)
        for address in addresses:
            update.replace(LABEL, self._config.ttl_s, kind_of(address), address)
        return update

    def send(self, address: str, other_address: str = "") -> str:
        """Send it until it is answered; returns the rcode. Raises ``MigrationError``."""
        server = self._config.server
        last: Exception | None = None
        for attempt, timeout_s in enumerate(TIMEOUTS_S, 1):
            update = self.message(
                *filter(None, (address, other_address))
            )  # signed anew: a TSIG has a time in it
            self._events.emit("dns.update.sent", record=NAME, address=address, attempt=attempt)
            try:
                answer = dns.query.udp(update, server.host, timeout=timeout_s, port=server.port)
            except (dns.exception.DNSException, OSError) as error:
                last = error
                continue
            code = dns.rcode.to_text(answer.rcode())
            self._events.emit("dns.update.done", record=NAME, address=address, rcode=code)
            if answer.rcode() != dns.rcode.NOERROR:
                raise MigrationError(f"the name server refused the update: {code}", hint="see nameserver.log")
            return code
        raise MigrationError(
            f"the name server did not answer the update: {type(last).__name__}: {last}",
            hint="see nameserver.log in the run directory",
        )


def main() -> None:
    """Send an update for each line on stdin, until its end."""
    config = read_config("baselines.dns.updater", UpdaterConfig)
    updater = Updater(config, event_log(config.vantage, None))
    updater.message("192.0.2.1").to_wire()  # what is loaded at first use is loaded now
    tell("ready", {"name": NAME})
    for line in sys.stdin.buffer:
        try:
            update = msgspec.json.decode(line, type=Update)
            tell(
                "updated",
                {"address": update.address, "rcode": updater.send(update.address, update.other_address)},
            )
        except (msgspec.DecodeError, MigrationError) as error:
            tell("outcome", {"error": str(error), "hint": getattr(error, "hint", None)})


if __name__ == "__main__":
    main()
