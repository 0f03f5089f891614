"""A port that is bound to every address of its host tells them apart, and answers from the right one."""

from __future__ import annotations

import socket
import time

import pytest

from apps.udp import Datagram, UdpPort
from quicferry.model import Endpoint


def drained(port: UdpPort) -> Datagram:
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        if batch := port.drain():
            return batch[0]
        time.sleep(0.001)
    raise AssertionError("nothing came within 5 s")


@pytest.mark.parametrize("stamped", [False, True])
@pytest.mark.parametrize(
    ("listen", "addresses"), [("0.0.0.0", ("127.0.0.1", "127.0.0.2", "127.0.0.77")), ("::", ("::1",))]
)
def test_an_answer_leaves_from_the_address_that_was_asked(listen, addresses, stamped):
    port = UdpPort(Endpoint(listen, 0), lambda _: None, stamped=stamped)
    number = port.socket.getsockname()[1]
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asker:
        asker.settimeout(5.0)
        asker.bind((addresses[0], 0))
        for address in addresses:
            asker.sendto(b"who is there", (address, number))
            datagram = drained(port)
            assert datagram.local == address
            assert port.send(b"me", datagram.sender, datagram.local)
            assert asker.recvfrom(100)[1][:2] == (address, number)
    port.close()


def test_a_port_of_one_address_leaves_the_source_to_the_kernel():
    port = UdpPort(Endpoint("127.0.0.3", 0), lambda _: None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.sendto(b"who is there", port.socket.getsockname())
        assert drained(port).local is None
    port.close()


def test_an_address_that_this_host_has_not_is_a_lost_packet():
    port = UdpPort(Endpoint("0.0.0.0", 0), lambda _: None)
    assert not port.send(b"x", ("127.0.0.1", 9), "192.0.2.1")
    port.close()
