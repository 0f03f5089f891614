"""Links without a shape: one veth pair each."""

from __future__ import annotations

from pathlib import Path

from quicferry.errors import Unsupported
from quicferry.model import Link, LinkReading
from quicferry.process import run


def choose_backend() -> str:
    """The best backend there is."""
    return "plain"


class LinkLayer:
    """Makes the links of one deployment."""

    def __init__(self, backend: str, seed: int, work_dir: Path) -> None:
        self.backend = backend
        self._links: list[tuple[Link, int, int, str, str]] = []

    def add(self, link: Link, a_pid: int, b_pid: int, a_interface: str, b_interface: str) -> None:
        """One link between the network namespaces of two processes. Raises ``Unsupported``."""
        if not link.is_plain:
            raise Unsupported(f"link {link.name} has a shape")
        self._links.append((link, a_pid, b_pid, a_interface, b_interface))

    def start(self) -> None:
        """Make them. Raises ``CommandFailed``."""
        lines = [
            f"link add {a} netns {a_pid} mtu {link.mtu_bytes} type veth peer name {b} netns {b_pid} "
            f"mtu {link.mtu_bytes}"
            for link, a_pid, b_pid, a, b in self._links
        ]
        run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")

    def readings(self) -> list[LinkReading]:
        """What is there."""
        return [
            LinkReading(link=link.name, sender=s, receiver=r, backend="plain", asked=shape)
            for link, *_ in self._links
            for s, r, shape in ((link.a, link.b, link.a_to_b), (link.b, link.a, link.b_to_a))
        ]

    def stop(self) -> None:
        """Nothing to end."""
