"""The kinds of faults in the protocol's world, as a table: how often each is drawn, how long and how strong.

A story is drawn from it, and needs no more: what a kind does is ``faults.ACTIONS``, under the same names.
"""

from __future__ import annotations

from dataclasses import dataclass

FOREVER = 1e6  # seconds


@dataclass(frozen=True)
class Kind:
    """What may be drawn of one kind of fault: ``seconds`` that it lasts, ``amounts`` as the title says."""

    title: str
    weight: int
    seconds: tuple[float, ...] = (0.0,)
    amounts: tuple[float, ...] = (0.0,)


_WHILE = (0.02, 0.1, 0.3, 0.7, 2.0)

KINDS: dict[str, Kind] = {
    "blackhole": Kind("nothing gets through", 8, seconds=_WHILE),
    "loss-bursts": Kind(
        "Gilbert-Elliott loss; the amount is the chance that a burst begins",
        4,
        seconds=(0.5, 2.0, 5.0),
        amounts=(0.01, 0.05, 0.15),
    ),
    "jitter": Kind(
        "up to the amount in seconds later: reorders", 2, seconds=(1.0, 5.0), amounts=(0.002, 0.02)
    ),
    "duplicate": Kind("the amount is the share", 1, seconds=(1.0, 5.0), amounts=(0.1, 1.0)),
    "replay": Kind(
        "every datagram comes again, up to the amount in seconds later",
        1,
        seconds=(1.0, 5.0),
        amounts=(0.5, 2.0),
    ),
    "corrupt": Kind("one bit changed; the amount is the share", 1, seconds=(0.5, 2.0), amounts=(0.02, 0.3)),
    "small-mtu": Kind("larger UDP payloads are lost", 1, seconds=(FOREVER,), amounts=(1280.0,)),
    "rebind": Kind("a NAT gives the client a new address", 3),
    "relay": Kind(
        "an off-path forwarder's copies come first (RFC 9000 §9.3.3), then it stops",
        3,
        seconds=(0.5, 1.5),
        amounts=(0.001,),
    ),
    "server-key-update": Kind("the server updates its keys (RFC 9001 §6)", 2),
    "client-key-update": Kind("the client updates its keys", 2),
    "server-closes": Kind("the service closes the connection", 1),
    "victims": Kind(
        "a malicious server announces moves to strangers, one every so many seconds",
        1,
        seconds=(3.0,),
        amounts=(0.02, 1.05),
    ),
    "replay-elsewhere": Kind(
        "an attacker sends what the client sends to all other edges too, up to the amount in seconds later",
        0,  # drawn by itself, see ``story.draw``
        seconds=(1.0, 3.0),
        amounts=(0.05, 1.5),
    ),
    "lose-one": Kind(
        "one datagram is lost; the amount is how many go before it",
        0,  # of the stories in ``one_loss``
        seconds=(FOREVER,),
    ),
}
