"""Probes for what the baselines need: Multipath TCP, and a DNS server that takes signed updates.

Each does the real thing in network and mount namespaces of its own, so that no port, file or daemon
of the host is touched: ``python -m quicferry.experiment.service_probes mptcp|dns`` runs in there.
"""

from __future__ import annotations

import base64
import os
import secrets
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from quicferry import process
from quicferry.errors import FerryError, Unsupported, last_line
from quicferry.probe import Probe

if TYPE_CHECKING:
    import dns.rcode
    import dns.tsig

IPPROTO_MPTCP = 262  # include/uapi/linux/in.h; socket.IPPROTO_MPTCP came with Python 3.10 on new libcs only
SOL_MPTCP = 284  # include/linux/socket.h
MPTCP_INFO = 1  # include/uapi/linux/mptcp.h
#: struct mptcp_info begins with six counters of one byte; flags follow at the next multiple of four
_MPTCP_FLAGS_AT = 8
_FLAG_FALLBACK = 1
_FLAG_REMOTE_KEY = 2

#: Where AppArmor's profile of named lets it write (Debian, Ubuntu): the probe mounts its own tmpfs there.
NAMED_DIRECTORY = Path("/var/cache/bind")
_ZONE = "edge.test."
_KEY = "probe."
_NAMED_READY_S = 30.0


def _in_private_namespaces(name: str) -> str:
    """Run one of ``_PROBE_BODIES`` in private namespaces; the sentence it prints."""
    if os.geteuid() != 0:
        raise Unsupported("a private network namespace needs root", hint="run it as root")
    argv = [
        "unshare",
        "--net",
        "--mount",
        sys.executable,
        "-m",
        __name__,
        name,
    ]
    done = process.run(argv, check=False, timeout_s=30.0)
    if done.status != 0:
        words = done.stderr.strip().splitlines() or ["no message"]
        hint = words[-1].removeprefix("hint: ") if words[-1].startswith("hint: ") else None
        raise Unsupported(words[-2] if hint and len(words) > 1 else words[-1], hint=hint)
    return done.stdout.strip()


def talk_mptcp() -> str:
    """Open an MPTCP connection over loopback, send both ways, and ask the kernel whether it was one.

    Raises ``Unsupported`` when the kernel has no MPTCP, has it switched off, or fell back to TCP.
    """
    hint = "use a kernel with CONFIG_MPTCP and `sysctl net.mptcp.enabled=1`"
    process.run(["ip", "link", "set", "lo", "up"])
    switch = Path("/proc/sys/net/mptcp/enabled")
    if not switch.exists():
        raise Unsupported("this kernel has no MPTCP", hint=hint)
    switch.write_text("1\n")  # a new network namespace has its own switch
    limits = process.run(["ip", "mptcp", "limits", "show"]).stdout.strip()
    try:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    except OSError as error:
        raise Unsupported(f"an MPTCP socket cannot be made: {error}", hint=hint) from error
    with listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(5)

        def echo() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(5)
                peer.sendall(peer.recv(64).upper())
                peer.recv(64)

        server = threading.Thread(target=echo, daemon=True)
        server.start()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as client:
            client.settimeout(5)
            client.connect(listener.getsockname())
            client.sendall(b"ferry")
            answer = client.recv(64)
            try:
                info = client.getsockopt(SOL_MPTCP, MPTCP_INFO, 128)
            except OSError as error:
                raise Unsupported(f"the connection fell back to TCP: {error}", hint=hint) from error
        server.join(5)
    (flags,) = struct.unpack_from("=I", info, _MPTCP_FLAGS_AT)
    if flags & _FLAG_FALLBACK or not flags & _FLAG_REMOTE_KEY:
        raise Unsupported(f"the connection fell back to TCP (flags {flags:#x})", hint=hint)
    if answer != b"FERRY":
        raise Unsupported(f"the echo came back as {answer!r}", hint=hint)
    return f"a connection over loopback, both keys exchanged, {limits}"


def update_dns() -> str:
    """Start ``named`` with a zone of its own, change it by a TSIG-signed RFC 2136 update, read it back.

    Raises ``Unsupported`` when named does not start, refuses the update or took one that is not signed.
    """
    process.run(["ip", "link", "set", "lo", "up"])
    if not NAMED_DIRECTORY.is_dir():
        raise Unsupported("bind9 is not installed", hint="run `make setup`")
    process.run(["mount", "-t", "tmpfs", "-o", "mode=0755,size=16m", "tmpfs", NAMED_DIRECTORY])
    secret = base64.b64encode(secrets.token_bytes(32)).decode()
    (NAMED_DIRECTORY / "zone").write_text(
        f"$ORIGIN {_ZONE}\n$TTL 1\n@ SOA ns hostmaster 1 60 60 600 1\n@ NS ns\n"
        "ns A 127.0.0.1\nserver A 10.0.1.2\n"
    )
    import dns.rcode  # dnspython takes a third of a second to load, and few runs have a name server
    import dns.tsig

    configuration = NAMED_DIRECTORY / "named.conf"
    configuration.write_text(
        f"""key "{_KEY}" {{ algorithm hmac-sha256; secret "{secret}"; }};
controls {{ }};
options {{
    directory "{NAMED_DIRECTORY}"; pid-file none; session-keyfile none;
    listen-on {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no; empty-zones-enable no; notify no;
}};
zone "{_ZONE}" {{ type primary; file "zone"; allow-update {{ key "{_KEY}"; }}; }};
"""
    )
    log = NAMED_DIRECTORY / "log"
    begun = time.monotonic()
    with log.open("wb") as stream:
        named = process.spawn(["named", "-g", "-n", "1", "-c", configuration], stderr=stream)
    try:
        while _address_of_server(0.2) != "10.0.1.2":
            if named.poll() is not None or time.monotonic() - begun > _NAMED_READY_S:
                last = last_line(log.read_text(errors="replace"))
                raise Unsupported(f"named does not answer: {last}", hint="reinstall bind9")
            time.sleep(0.02)
        ready_ms = (time.monotonic() - begun) * 1e3
        if _update("10.0.9.9", None) == dns.rcode.NOERROR:
            raise Unsupported("named took an update that was not signed", hint="reinstall bind9")
        begun = time.monotonic()
        code = _update("10.0.2.2", dns.tsig.Key(_KEY, secret, "hmac-sha256"))
        update_ms = (time.monotonic() - begun) * 1e3
        seen = _address_of_server(2.0)
        if code != dns.rcode.NOERROR or seen != "10.0.2.2":
            raise Unsupported(
                f"the signed update was answered {dns.rcode.to_text(code)}, the name is at {seen}",
                hint="reinstall bind9",
            )
    finally:
        process.stop(named)
    return f"named ready in {ready_ms:.0f} ms, a signed update took {update_ms:.1f} ms and was read back"


def _address_of_server(timeout_s: float) -> str | None:
    import dns.exception
    import dns.message
    import dns.query
    import dns.rdatatype

    question = dns.message.make_query(f"server.{_ZONE}", dns.rdatatype.A)
    try:
        answer = dns.query.udp(question, "127.0.0.1", timeout=timeout_s)
    except (dns.exception.DNSException, OSError):
        return None
    texts = [item.to_text() for rrset in answer.answer for item in rrset]
    return texts[0] if len(texts) == 1 else None


def _update(address: str, key: dns.tsig.Key | None) -> dns.rcode.Rcode:
    import dns.exception
    import dns.query
    import dns.update

    update = dns.update.UpdateMessage(_ZONE)
    if key is not None:
        update.use_tsig(key)
    update.replace("server", 1, "A", address)
    try:
        return dns.query.tcp(update, "127.0.0.1", timeout=5).rcode()
    except dns.exception.DNSException as error:
        raise Unsupported(
            f"named did not answer an update: {type(error).__name__}: {error}", hint="reinstall bind9"
        ) from error


PROBES = [
    Probe(name="mptcp", needed_for="the MPTCP baseline", ask=lambda: _in_private_namespaces("mptcp")),
    Probe(name="dns", needed_for="the TCP+DNS baseline", ask=lambda: _in_private_namespaces("dns")),
]

_PROBE_BODIES = {"mptcp": talk_mptcp, "dns": update_dns}


def main() -> int:
    """Run the body of a probe: one line on stdout, or a reason and a hint on stderr and status 1."""
    try:
        seen = _PROBE_BODIES[sys.argv[1]]()
    except FerryError as error:
        reason, hint = str(error), error.hint
    except OSError as error:
        reason, hint = f"{type(error).__name__}: {error}", None
    else:
        sys.stdout.write(seen + "\n")
        return 0
    sys.stderr.write(reason + "\n" + (f"hint: {hint}\n" if hint else ""))
    return 1


if __name__ == "__main__":
    sys.exit(main())
