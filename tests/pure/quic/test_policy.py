"""Which addresses a client may be sent to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicferry.errors import InvalidInput
from quicferry.quic import ExtensionConfig
from quicferry.quic.policy import AddressPolicy

PRIVATE = ("10.0.1.2", 4433)
PUBLIC = ("8.8.8.8", 4433)
LOOPBACK = ("127.0.0.1", 4433)


@pytest.mark.parametrize(
    ("candidate", "peer", "reason"),
    [
        (("10.0.2.2", 4433), PRIVATE, None),
        (("9.9.9.9", 443), PRIVATE, None),
        (("9.9.9.9", 443), PUBLIC, None),
        (("10.0.2.2", 4433), LOOPBACK, None),
        (LOOPBACK, LOOPBACK, None),
        (("2606:4700::1", 443), ("2606:4700::2", 443), None),
        (("9.9.9.9", 443), ("::ffff:8.8.8.8", 443), None),
        (("10.0.2.2", 0), PRIVATE, "port 0"),
        (("0.0.0.0", 1), PRIVATE, "unspecified address"),
        (("::", 1), ("fe80::1", 1), "unspecified address"),
        (("224.0.0.1", 1), PRIVATE, "multicast address"),
        (("ff02::1", 1), ("fe80::1", 1), "multicast address"),
        (("255.255.255.255", 1), PRIVATE, "broadcast address"),
        (("10.0.2.2", 1), PUBLIC, "private address from a global peer"),
        (LOOPBACK, PUBLIC, "loopback address from a global peer"),
        (LOOPBACK, PRIVATE, "loopback address from a private peer"),
        (("100.64.0.1", 1), PUBLIC, "private address from a global peer"),
        (("169.254.1.1", 1), PRIVATE, "link-local address from a private peer"),
        (("fd00::1", 1), ("2606:4700::2", 443), "private address from a global peer"),
        (("::ffff:10.0.2.2", 1), ("2606:4700::2", 443), "IPv4-mapped IPv6 address"),
        (("2606:4700::1", 1), PUBLIC, "other address family than the connection's"),
        (("service.example", 1), PUBLIC, "not an IP address"),
    ],
)
def test_the_rules(candidate, peer, reason):
    #: wire-format 10.2: A client MUST refuse multicast
    assert AddressPolicy().denies(candidate, peer) == reason


def test_the_allow_list_narrows():
    policy = AddressPolicy.of(["10.0.2.0/24"])
    assert policy.denies(("10.0.2.9", 1), PRIVATE) is None
    assert policy.denies(("10.0.3.9", 1), PRIVATE) == "not in an allowed network"
    assert policy.denies(("10.0.2.9", 1), PUBLIC) is not None, "it cannot widen"


@given(st.ip_addresses(v=4), st.integers(1, 65535))
def test_a_public_server_points_nowhere_but_into_the_public_network(address, port):
    if not address.is_global:
        assert AddressPolicy().denies((str(address), port), PUBLIC) is not None


def test_a_config_out_of_range_is_refused():
    with pytest.raises(InvalidInput):
        ExtensionConfig(max_addresses=8)
    with pytest.raises(InvalidInput):
        ExtensionConfig(max_addresses=0)
    with pytest.raises(InvalidInput):
        ExtensionConfig(allowed_networks=("10.0.0.1/8",))
