"""Addresses that a server has named, or has been at, are forgotten when nobody says them any more."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from aioquic import tls
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.quic.packet import pull_quic_header

from quicferry.quic import ClientState
from quicferry.quic.addresses import AddressBook
from quicferry.quic.frame_types import FrameType
from quicferry.quic.wire import SmAddress
from quicferry.strategies import RULES, Strategy

from .harness import EDGE_1, EDGE_2, Address, Pair, edge

IDLE_S = 10.0
LIFETIME_S = 3 * IDLE_S
EDGE_3 = edge(3)


def pair_with(pool: list[Address], *, hand_off: bool = False) -> Pair:
    pair = Pair(idle_timeout_s=IDLE_S, hand_off=hand_off)
    pair.handshake(settle_s=0.5)
    if pool:
        pair.server.offer_addresses(pool, pair.now)
    pair.drive(limit_s=0.5)
    assert known(pair) == set(pool)
    return pair


def known(pair: Pair) -> set[Address]:
    """What the client may probe: it looks at ages when it is about to."""
    role = pair.client._role
    role._forget_expired(pair.now)
    return {frame.ipv4 for frame in role._book.known.values()} | set(role._visited)


def use(pair: Pair, for_s: float, every_s: float = 4.0) -> None:
    """One request now and then."""
    pair.load(every_s, until=pair.now + for_s)
    pair.drive(limit_s=for_s)
    assert pair.drive(pair.answered, limit_s=2.0)


def move(pair: Pair, epoch: int, to: Address, strategy: Strategy, **keywords) -> None:
    pair.move(strategy, to=to, epoch=epoch, **keywords)
    pair.request()
    assert pair.drive(lambda: pair.client._network_paths[0].addr == to, limit_s=5.0)
    assert pair.drive(pair.answered, limit_s=5.0)
    pair.drive(limit_s=0.2)


def probed(pair: Pair, since: float) -> set[Address]:
    return {address for at, address, _ in pair.up if at >= since}


def say_no_more(pair: Pair) -> None:
    """The server as one that does not name its pool again."""
    pair.server._role._naming.say_again = lambda sequences: None


def namings(pair: Pair, since: float) -> list[float]:
    """When packets with SM_ADDRESS left the server."""
    return [at for at, _, data in pair.down if at >= since and names_something(data, pair)]


def names_something(data: bytes, pair: Pair) -> bool:
    buf = Buffer(data=data)
    pull_quic_header(buf, host_cid_length=8)
    crypto = pair.server._cryptos[tls.Epoch.ONE_RTT].send
    _, plain, _, _ = crypto.decrypt_packet(data, buf.tell(), pair.server._packet_number)
    return encode_uint_var(FrameType.SM_ADDRESS) in plain


def test_a_pool_that_is_not_named_again_is_forgotten_and_never_probed():
    #: wire-format 6.8: A client MUST forget an address
    pair = pair_with([EDGE_2, EDGE_3])
    say_no_more(pair)
    use(pair, LIFETIME_S - 3.0)
    assert known(pair) == {EDGE_2, EDGE_3}
    use(pair, 5.0)
    assert known(pair) == set()
    pair.freeze(EDGE_2)
    since = pair.now
    pair.request()
    pair.drive(limit_s=4.0)
    assert probed(pair, since) == {EDGE_1}, "it goes on asking where its server was"
    # it follows all the same: the server speaks where it is, as in the symmetric strategies
    pair.resume(1, Strategy.POOL, EDGE_2, False)
    assert pair.drive(lambda: pair.client._network_paths[0].addr == EDGE_2, limit_s=3.0)
    assert pair.drive(pair.answered, limit_s=3.0)
    assert EDGE_3 not in probed(pair, since)


def test_a_pool_in_use_is_named_again_in_time_and_no_more_often():
    #: wire-format 6.8: A server MUST name its pool again
    pair = pair_with([EDGE_2, EDGE_3])
    since = pair.now
    for _ in range(20):
        use(pair, IDLE_S)
        assert known(pair) == {EDGE_2, EDGE_3}
    times = namings(pair, since)
    between = [later - at for at, later in itertools.pairwise(times)]
    assert len(times) >= 9
    assert min(between) >= IDLE_S and max(between) <= 2 * IDLE_S
    assert pair.server._role._naming._next_sequence == 3, "by the numbers that they have"


def test_a_lost_naming_is_sent_again():
    pair = pair_with([EDGE_2, EDGE_3])
    lost: list[bytes] = []

    def drop(data: bytes, address: Address, direction: str) -> bool:
        if direction == "down" and len(lost) < 3 and names_something(data, pair):
            lost.append(data)
            return True
        return False

    pair.network.drop = drop
    use(pair, 2 * LIFETIME_S)
    assert len(lost) == 3
    assert known(pair) == {EDGE_2, EDGE_3}


def test_an_idle_connection_is_not_kept_alive_by_its_pool():
    #: wire-format 6.8: It SHOULD NOT do so
    pair = pair_with([EDGE_2, EDGE_3])
    heard_at, sent = pair.now, len(pair.down)
    pair.drive(limit_s=IDLE_S + 1.0)
    assert len(pair.down) == sent, "nothing leaves for it"
    assert pair.client._close_event is not None and pair.server._close_event is not None
    assert pair.now - heard_at < LIFETIME_S, "the pool outlives the connection"


def test_a_connection_that_is_hardly_used_keeps_its_pool():
    """One packet in each idle timeout, and a move just before the connection would end."""
    pair = pair_with([EDGE_2, EDGE_3])
    every_s = IDLE_S - 0.5
    use(pair, 8 * every_s + 0.1, every_s=every_s)
    pair.drive(limit_s=every_s - 0.2)
    since = pair.now
    move(pair, 1, EDGE_2, Strategy.POOL)
    assert probed(pair, since) >= {EDGE_2, EDGE_3}
    pair.assert_open()


@pytest.mark.parametrize("hand_off", [False, True])
def test_the_pool_is_followed_after_a_long_time_at_each_place(hand_off):
    #: wire-format 6.8: A server MUST name its pool again
    pair = pair_with([EDGE_2, EDGE_3], hand_off=hand_off)
    use(pair, 2 * LIFETIME_S)
    for epoch, to in enumerate((EDGE_2, EDGE_3, EDGE_2), start=1):
        since = pair.now
        move(pair, epoch, to, Strategy.POOL)
        assert to in probed(pair, since)
        if hand_off:
            assert namings(pair, pair.resumed_at), "another clock: the destination names them all at once"
        use(pair, 2 * LIFETIME_S)
        # the first place was not in the pool: it is forgotten when it was left long ago
        assert known(pair) == {EDGE_2, EDGE_3}
    pair.assert_open()
    assert pair.client._role._seam.free_cids >= 2, "no connection ID was lost on the way"


@pytest.mark.parametrize("age_s", [IDLE_S - 2.0, 2 * IDLE_S - 2.5])
def test_the_age_of_a_pool_crosses_a_move_that_comes_before_it_is_named_again(age_s):
    pair = pair_with([EDGE_2, EDGE_3], hand_off=True)
    say_no_more(pair)  # the source; the destination is another object
    use(pair, age_s, every_s=3.0)
    move(pair, 1, EDGE_2, Strategy.POOL)
    assert namings(pair, pair.resumed_at)
    use(pair, LIFETIME_S - 1.0)
    assert known(pair) >= {EDGE_2, EDGE_3}


def test_a_source_that_goes_on_names_its_pool_again():
    pair = pair_with([EDGE_2, EDGE_3])
    pair.freeze(EDGE_2)
    pair.drive(limit_s=2.0)
    pair.server_at = EDGE_1
    pair.server.abort_migration(1, "operator", pair.now)
    since = pair.now
    pair.request()
    assert pair.drive(pair.answered, limit_s=2.0)
    assert namings(pair, since)


@pytest.mark.parametrize("strategy", [s for s in RULES if RULES[s].extended and RULES[s].carries_address])
def test_what_was_announced_is_forgotten_and_announced_anew(strategy):
    #: wire-format 6.8: It MUST send SM_ADDRESS for each address
    pair = pair_with([])
    numbers = []
    for epoch, to in enumerate((EDGE_2, EDGE_3, EDGE_2, EDGE_3), start=1):
        move(pair, epoch, to, strategy)
        assert to in known(pair)
        numbers.append(pair.server._role._naming._next_sequence)
        use(pair, LIFETIME_S + 5.0)
        assert known(pair) == set(), "neither what was named nor where it has been"
        assert pair.client._network_paths[0].addr == to, "the address in use does not expire"
    assert numbers == [2, 3, 3, 3], "the numbers are those that they had"
    assert pair.client._role._seam.free_cids >= 2
    pair.assert_open()


def test_an_announcement_in_force_keeps_its_address():
    pair = pair_with([])
    pair.server.prepare_migration(1, Strategy.REACTIVE_EXPLICIT, [EDGE_2], 200, False, pair.now)
    use(pair, 2 * LIFETIME_S)
    assert pair.client.migration_state is ClientState.ANNOUNCED
    assert known(pair) == {EDGE_2}
    pair.freeze(EDGE_2)
    pair.after(0.2, lambda: pair.resume(1, Strategy.REACTIVE_EXPLICIT, EDGE_2, False))
    pair.request()
    assert pair.drive(lambda: pair.client._network_paths[0].addr == EDGE_2, limit_s=3.0)


def test_the_way_back_does_not_lead_to_where_a_server_was_long_ago():
    pair = pair_with([])
    move(pair, 1, EDGE_2, Strategy.SYMMETRIC)
    use(pair, 5.0)
    assert known(pair) == {EDGE_1}
    use(pair, LIFETIME_S)
    pair.freeze(EDGE_3)
    since = pair.now
    pair.request()
    pair.drive(limit_s=4.0)
    assert probed(pair, since) == {EDGE_2}


def test_the_connection_id_of_a_forgotten_address_is_retired_and_replaced():
    pair = pair_with([])
    move(pair, 1, EDGE_2, Strategy.SYMMETRIC)
    role = pair.client._role
    use(pair, 5.0)
    free, cid = role._seam.free_cids, role._seam.take_cid()
    role._kept.put(EDGE_1, cid, math.inf)  # as of a way back that may still be needed
    use(pair, LIFETIME_S)
    assert known(pair) == set()
    assert not role._kept.has(EDGE_1)
    use(pair, 1.0)
    assert cid.cid not in {each.cid for each in pair.server._host_cids}
    assert role._seam.free_cids == free


def test_a_server_that_resumes_where_it_was_goes_on_naming_its_pool():
    """A process that is restored on the same host: there is no new path, and no packet that commits."""
    pair = pair_with([EDGE_2, EDGE_3], hand_off=True)
    pair.freeze(EDGE_1)
    pair.after(0.2, lambda: pair.resume(1, Strategy.POOL, EDGE_1, True))
    since = pair.now
    use(pair, 2 * LIFETIME_S)
    assert len(namings(pair, since + 0.2)) >= 4
    assert known(pair) >= {EDGE_2, EDGE_3}


def test_a_number_that_was_taken_back_is_not_known_again_by_a_late_naming():
    book = AddressBook(16)
    frame = SmAddress.of(1, EDGE_2, pool=True)
    assert book.enter(frame, 0.0)
    assert not book.enter(frame, 5.0), "named again"
    assert book.expire(5.0, ()) == [] and book.expire(5.1, {1}) == []
    assert book.expire(5.1, ()) == [frame]
    assert book.enter(frame, 6.0), "forgotten, and named anew"
    book.enter(dataclasses.replace(frame, retire=True), 7.0)
    assert not book.enter(frame, 8.0)
    assert not book.known and book.expire(1000.0, ()) == []
