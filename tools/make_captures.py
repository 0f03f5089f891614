"""Makes the corpus of captures of other people's QUIC: tests/captures/<name>/{capture.pcapng,keys.log}.

    tools/make_captures.py [NAME...]

Each stack plays with itself or with another over the loopback of a network namespace of its own, recorded by
dumpcap. The captures are committed, so that tests need no stack; this makes them again. Needs root, dumpcap,
and of the stacks those that the scenes wanted have: Debian's ``ngtcp2-client``, ``ngtcp2-server`` and
``caddy`` (quic-go); aioquic is a dependency of ours; qh3 (PyPI) from a virtual environment named by
``$QH3_PYTHON``; quiche by npm's ``@matrixai/quic`` from a folder named by ``$QUICHE_NODE``.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from quicferry import process
from quicferry.capture.capture import running_packet_sockets
from quicferry.paths import CHECKOUT
from tests.certificate import certificate

CAPTURES = CHECKOUT / "tests" / "captures"
_INSIDE = "--inside"
PORT = 4433
_GTLSSERVER = "/usr/sbin/gtlsserver"


class Scene:
    """What a scene has to work with: a folder, a certificate, documents to serve."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys.log"
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        self.documents = folder / "www"
        self.documents.mkdir()
        (self.documents / "small").write_bytes(b"s" * 500)
        (self.documents / "index.html").write_bytes(b"i" * 9000)
        (self.documents / "large").write_bytes(bytes(range(256)) * 160)
        made, key = certificate("localhost")
        self.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        self.servers: list[process.Popen[bytes]] = []

    def start(self, argv: Sequence[str | Path], **settings: object) -> None:
        """Start a server and give it a moment."""
        log = (self.folder / "server.log").open("ab")
        with log:
            self.servers.append(process.spawn(argv, stdout=log, stderr=log, cwd=self.folder, **settings))  # type: ignore[arg-type] # of spawn
        time.sleep(0.5)

    def run(self, argv: Sequence[str | Path], seconds: float = 15.0) -> None:
        """Run a client to its end, with the key log in its environment."""
        env = dict(os.environ) | {"SSLKEYLOGFILE": str(self.keys)}
        done = process.run(argv, env=env, cwd=self.folder, timeout_s=seconds, check=False)
        (self.folder / "client.log").write_text(done.stdout + done.stderr)

    def stop(self) -> None:
        """End the servers."""
        for server in self.servers:
            process.stop(server)

    def gtlsserver(self, *options: str, host: str = "127.0.0.1") -> None:
        """ngtcp2's server. One datagram per system call: else the capture sees many glued together."""
        argv: list[str | Path] = [_GTLSSERVER, "-q", "--max-gso-dgrams=1", "-d", self.documents, *options]
        self.start([*argv, host, str(PORT), self.key, self.certificate])

    def gtlsclient(
        self, *options: str, paths: Sequence[str] = ("small", "large"), host: str = "127.0.0.1"
    ) -> None:
        """ngtcp2's client; ends when it has all answers."""
        end = [] if any("--timeout" in option for option in options) else ["--exit-on-all-streams-close"]
        name = f"[{host}]" if ":" in host else host
        urls = [f"https://{name}:{PORT}/{path}" for path in paths]
        self.run(["gtlsclient", "-q", *end, *options, host, str(PORT), *urls])


def _ngtcp2(*client: str, server: Sequence[str] = (), host: str = "127.0.0.1") -> Callable[[Scene], None]:
    def play(scene: Scene) -> None:
        scene.gtlsserver(*server, host=host)
        scene.gtlsclient(*client, host=host)

    return play


def _ngtcp2_early_data(scene: Scene) -> None:
    scene.gtlsserver()
    remember = ("--session-file=session", "--tp-file=parameters", "--token-file=token")
    scene.gtlsclient(*remember, paths=("small",))
    scene.gtlsclient(*remember, paths=("small",))


def _caddy(scene: Scene, client: Callable[[Scene], None]) -> None:
    config = scene.folder / "Caddyfile"
    config.write_text(
        "{\n  admin off\n  auto_https off\n  servers {\n    protocols h1 h2 h3\n  }\n}\n"
        f"https://localhost:{PORT}, https://127.0.0.1:{PORT} {{\n  tls {scene.certificate} {scene.key}\n"
        f"  root * {scene.documents}\n  file_server\n}}\n"
    )
    env = dict(os.environ) | {"HOME": str(scene.folder), "XDG_DATA_HOME": str(scene.folder)}
    scene.start(["caddy", "run", "--config", config, "--adapter", "caddyfile"], env=env)
    time.sleep(1.5)
    client(scene)


def _quic_go(scene: Scene) -> None:
    _caddy(scene, lambda scene: scene.gtlsclient("--sni=localhost"))


def _aioquic(*options: str) -> Callable[[Scene], None]:
    def play(scene: Scene) -> None:
        player: list[str | Path] = [sys.executable, CHECKOUT / "tools" / "captures" / "aioquic_ends.py"]
        scene.start([*player, "server", *options])
        scene.run([*player, "client", *options])

    return play


def _qh3(scene: Scene) -> None:
    python = os.environ.get("QH3_PYTHON", "python3")
    scene.gtlsserver()
    scene.run([python, CHECKOUT / "tools" / "captures" / "qh3_client.py"])


def _quiche(scene: Scene) -> None:
    modules = Path(os.environ.get("QUICHE_NODE", ".")).absolute() / "node_modules"
    script = scene.folder / "quiche.mjs"
    shutil.copy(CHECKOUT / "tools" / "captures" / "quiche_ends.mjs", script)
    (scene.folder / "node_modules").symlink_to(modules)
    scene.run(["node", script])


def _mptcp(scene: Scene) -> None:
    """The kernel's MPTCP (version 1) with two subflows and an address that is announced."""
    process.run(["sysctl", "-qw", "net.mptcp.enabled=1"])
    process.run(["ip", "mptcp", "limits", "set", "subflow", "4", "add_addr_accepted", "4"])
    process.run(["ip", "addr", "add", "10.77.0.2/32", "dev", "lo"])
    process.run(["ip", "mptcp", "endpoint", "add", "10.77.0.2", "dev", "lo", "signal"])
    player: list[str | Path] = [sys.executable, CHECKOUT / "tools" / "captures" / "mptcp_ends.py"]
    scene.start([*player, "server"])
    scene.run([*player, "client"])
    scene.keys.write_text("# TCP without TLS\n")


_ONLY = "--ciphers=NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+"
_REBINDING = ("--change-local-addr=20ms", "--nat-rebinding", "--delay-stream=60ms")
_V2 = ("-v", "v1", "--other-versions=v2draft,v1")
_PREFERRED = f"--preferred-ipv4-addr=127.0.0.2:{PORT + 1}"
SCENES: dict[str, Callable[[Scene], None]] = {
    "ngtcp2": _ngtcp2("--key-update=1ms", "--delay-stream=20ms"),
    "ngtcp2-retry": _ngtcp2(server=("-V",)),
    "ngtcp2-v2-draft": _ngtcp2(*_V2, server=("--preferred-versions=v2draft,v1",)),
    "ngtcp2-negotiation": _ngtcp2("-v", "0x1a2a3a4a", "--preferred-versions=v1"),
    "ngtcp2-no-ids": _ngtcp2("--scid=", _ONLY + "CHACHA20-POLY1305"),
    "ngtcp2-moving": _ngtcp2("--change-local-addr=20ms", "--delay-stream=60ms"),
    "ngtcp2-rebinding": _ngtcp2(*_REBINDING),
    "ngtcp2-preferred": _ngtcp2("--delay-stream=60ms", server=(_PREFERRED,)),
    "ngtcp2-early-data": _ngtcp2_early_data,
    "ngtcp2-ccm": _ngtcp2(_ONLY + "AES-128-CCM"),
    "ngtcp2-ipv6": _ngtcp2(_ONLY + "AES-256-GCM", host="::1"),
    "quic-go": _quic_go,
    "aioquic": _aioquic(),
    "aioquic-v2": _aioquic("v2"),
    "aioquic-retry": _aioquic("retry"),
    "qh3": _qh3,
    "quiche": _quiche,
    "mptcp": _mptcp,
}  # fmt: skip


def _record(name: str) -> None:
    """Play one scene, in this network namespace, and keep its capture and secrets."""
    process.run(["ip", "link", "set", "lo", "up"])
    process.run(["ip", "link", "set", "lo", "mtu", "1500"])
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder))
        capture = scene.folder / "capture.pcapng"
        recorder = process.spawn(["dumpcap", "-q", "-i", "lo", "-f", "udp or tcp", "-w", capture])
        try:
            while running_packet_sockets(recorder.pid) == 0:
                time.sleep(0.02)
            time.sleep(0.3)
            SCENES[name](scene)
            time.sleep(0.5)
        finally:
            scene.stop()
            time.sleep(0.7)
            process.stop(recorder)
        if not scene.keys.is_file() or not capture.is_file():
            said = "".join(log.read_text() for log in scene.folder.glob("*.log"))
            sys.exit(f"{name}: no secrets, nothing was kept\n{said[-2000:]}")
        kept = CAPTURES / name
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy(capture, kept / "capture.pcapng")
        shutil.copy(scene.keys, kept / "keys.log")
        print(f"{name}: {capture.stat().st_size} bytes")


def main(arguments: list[str]) -> None:
    """Make the scenes that are named, or all."""
    if arguments[:1] == [_INSIDE]:
        _record(arguments[1])
        return
    for name in arguments or SCENES:
        again = [sys.executable, "-m", "tools.make_captures", _INSIDE, name]
        done = process.run(["unshare", "--net", *again], check=False, timeout_s=60, cwd=CHECKOUT)
        print(done.stdout + done.stderr, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
