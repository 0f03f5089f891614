"""The authoritative name server of a run: BIND's ``named`` with one zone, changed by signed updates.

    python -m baselines.dns.nameserver --config FILE

Runs in the DNS host in a mount namespace of its own (``unshare --mount``), because named writes its
journal beside the zone and AppArmor's profile allows it only one directory, which is the machine's.
Its stdout is events. SIGTERM ends it, and named with it.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import dns.exception
import dns.message
import dns.query

from apps.config import read_config
from apps.reporting import print_event
from baselines.dns.config import (
    DNS_PORT,
    KEY_ALGORITHM,
    KEY_NAME,
    LABEL,
    NAME,
    ZONE,
    NameServerConfig,
    kind_of,
)
from quicferry import process
from quicferry.errors import EmulationError, FerryError, Unsupported
from quicferry.events import EventLog
from quicferry.experiment.service_probes import NAMED_DIRECTORY
from quicferry.slowness import longer

READY_S = 15.0
POLL_S = 0.02


def zone_text(config: NameServerConfig) -> str:
    """The zone file: the apex records and the service's address with the TTL that was asked for."""
    addresses = filter(None, (config.address, config.other_address))
    return (
        f"$ORIGIN {ZONE}\n$TTL {config.ttl_s}\n"
        "@ SOA ns hostmaster 1 60 60 600 1\n@ NS ns\n"
        f"ns {kind_of(config.listen)} {config.listen}\n"
        + "".join(f"{LABEL} {config.ttl_s} {kind_of(address)} {address}\n" for address in addresses)
    )


def named_configuration(config: NameServerConfig, secret: str) -> str:
    """named.conf: no recursion, no control channel, updates only with the key and only of addresses."""
    own, none = f"{{ {config.listen}; }}", "{ none; }"
    kinds = " ".join(kind_of(address) for address in (config.address, config.other_address) if address)
    four, six = (none, own) if ":" in config.listen else (own, none)
    return f"""key "{KEY_NAME}" {{ algorithm {KEY_ALGORITHM}; secret "{secret}"; }};
controls {{ }};
options {{
    directory "{NAMED_DIRECTORY}"; pid-file none; session-keyfile none;
    listen-on port {DNS_PORT} {four}; listen-on-v6 port {DNS_PORT} {six};
    recursion no; dnssec-validation no; empty-zones-enable no; notify no;
}};
zone "{ZONE}" {{
    type primary; file "zone";
    update-policy {{ grant "{KEY_NAME}" name {NAME} {kinds}; }};
}};
"""


def answers(config: NameServerConfig, timeout_s: float) -> bool:
    """Whether the name is served."""
    question = dns.message.make_query(NAME, kind_of(config.address))
    try:
        answer = dns.query.udp(question, config.listen, timeout=timeout_s, port=DNS_PORT)
    except (dns.exception.DNSException, OSError):
        return False
    return any(item.to_text() == config.address for rrset in answer.answer for item in rrset)


def serve(config: NameServerConfig) -> None:
    """Run named until SIGTERM. Raises ``Unsupported`` when it does not come up or ends by itself."""
    if not NAMED_DIRECTORY.is_dir():
        raise Unsupported("bind9 is not installed", hint="run `make setup`")
    process.run(["mount", "-t", "tmpfs", "-o", "mode=0755,size=16m", "tmpfs", NAMED_DIRECTORY])
    (NAMED_DIRECTORY / "zone").write_text(zone_text(config))
    configuration = NAMED_DIRECTORY / "named.conf"
    configuration.write_text(named_configuration(config, Path(config.key).read_text().strip()))
    configuration.chmod(0o600)
    ended = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    events = EventLog(config.vantage, sink=print_event)
    argv: list[str | Path] = ["named", "-g", "-n", "1", "-c", configuration]
    named = process.spawn(argv, stderr=sys.stderr.fileno())
    try:
        begun = time.monotonic()
        while not answers(config, 0.2):
            if named.poll() is not None or time.monotonic() - begun > longer(READY_S):
                raise Unsupported("named does not answer", hint="see nameserver.log in the run directory")
            time.sleep(POLL_S)
        events.emit("dns.started", zone=ZONE, record=NAME, address=config.address, ttl_s=config.ttl_s)
        stillness = process.Stillness()
        while not ended:
            if (status := named.poll()) is not None:
                raise EmulationError(f"named {process.how_ended(status)}", hint="see nameserver.log")
            if stillness.is_for_good(named.pid):
                raise EmulationError("named stands still (SIGSTOP)", hint="see nameserver.log")
            signal.sigtimedwait([], 0.1)  # sleeps, and wakes at once for SIGTERM
    finally:
        process.stop(named)


def main() -> None:
    """Run BIND's named until SIGTERM; errors go to stderr, with their exit code."""
    try:
        serve(read_config("baselines.dns.nameserver", NameServerConfig))
    except FerryError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
