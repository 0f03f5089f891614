"""What an endpoint offers and how patient it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from quicferry.errors import InvalidInput
from quicferry.quic.policy import AddressPolicy
from quicferry.quic.wire import MAX_ADDRESSES
from quicferry.strategies import StrategyName, strategies


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Times in seconds, all the client's unless it says otherwise."""

    #: between two challenges to one candidate while the downtime is expected to run, at the least: a late
    #: probe is a late switch, so it is less than the RTT of a near edge
    probe_interval_s: float = 0.010
    #: ... and a downtime is covered by about this many probes, so that a long one costs no more
    probes_per_downtime: int = 100
    #: what all clients of a server may send together while it moves: with more than a few of them each
    #: probes less often (0: no bound). One takes a server some 0.2 ms with its answer
    probes_per_second: float = 1000.0
    #: ... but no less often than this, whatever the server wishes
    probe_interval_wish_max_s: float = 1.0
    #: how many clients' first answers a server expects to have read in a second after it has resumed
    answers_per_second: float = 2000.0
    #: afterwards each interval is this many times the one before, up to ``probe_interval_max_s``
    probe_backoff: float = 1.25
    probe_interval_max_s: float = 0.250
    #: where the handshake has agreed to nothing (a standard address), the interval is one PTO and doubles
    #: with each probe, up to this
    gentle_interval_max_s: float = 3.0
    #: where addresses are asked one by one, each is waited for at most this long
    longest_turn_s: float = 60.0
    #: challenges of 1200 bytes to addresses that have never been heard: so many at once, over all
    #: announcements of a connection, and then so many a second. It bounds what a server can have its
    #: client send to third parties
    probe_allowance: int = 256
    probe_allowance_per_second: float = 40.0
    #: the downtime that is expected when nothing was announced
    unannounced_downtime_s: float = 2.0
    #: patience beyond the downtime; half the idle timeout when that is sooner
    give_up_s: float = 30.0
    #: a client that may be sent something (a stream is open, or it takes datagrams) asks for a sign of life
    #: after so long a silence: it has nothing in flight whose loss would tell it that its server, or its own
    #: address, has changed
    quiet_s: float = 3.0
    #: the first probes leave after a random time up to this; spreads the load of many clients
    start_delay_max_s: float = 0.0
    #: two announcements that are closer than this: the second is answered with ``busy``
    epoch_interval_s: float = 1.0

    def shared_interval_s(self, clients: int) -> float:
        """How often each of so many clients may probe, in seconds between two challenges to a candidate."""
        #: wire-format 4.2: SHOULD wish for an interval
        if self.probes_per_second <= 0:
            return self.probe_interval_s
        shared_s = min(self.probe_interval_wish_max_s, clients / self.probes_per_second)
        return max(self.probe_interval_s, shared_s)


class Probing(enum.StrEnum):
    """How a client looks for a server that may be at one of several addresses."""

    RACE = "race"  # all at once, every few milliseconds
    ONE_BY_ONE = "one-by-one"  # as published: one after another, each waited for twice as long


class Congestion(enum.StrEnum):
    """What the congestion window of a new path begins with."""

    INITIAL_WINDOW = "initial-window"  # RFC 9000 §9.4
    CAREFUL_RESUME = "careful-resume"  # draft-ietf-tsvwg-careful-resume, with what was known of the old path


@dataclass(frozen=True, kw_only=True)
class ExtensionConfig:
    """The extension at one endpoint. Raises ``InvalidInput`` for values out of range."""

    strategies: frozenset[StrategyName] = field(default_factory=lambda: frozenset(strategies()))
    max_addresses: int = MAX_ADDRESSES  # 1..7: the candidates of one race
    max_known_addresses: int = 16  # that a server may have named and not retired
    max_probes: int = 512  # per candidate
    preferred_address: tuple[tuple[str, int], ...] = ()  # server: said in the handshake, one of each family
    allowed_networks: tuple[str, ...] | None = None  # CIDR; None: no allow-list
    accept_moves: bool = True  # client: False answers every announcement with ``refused``
    congestion: Congestion = Congestion.INITIAL_WINDOW
    probing: Probing = Probing.RACE  # client, of candidates that it was told beforehand
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        if not 1 <= self.max_addresses <= MAX_ADDRESSES:
            raise InvalidInput(f"max_addresses is {self.max_addresses}", hint=f"give 1 to {MAX_ADDRESSES}")
        families = [":" in host for host, _ in self.preferred_address]
        if len(families) != len(set(families)):
            raise InvalidInput("two preferred addresses of one family", hint="give at most one of each")
        try:
            AddressPolicy.of(self.allowed_networks)
        except ValueError as error:
            raise InvalidInput(f"allowed_networks: {error}", hint="write them like 10.0.0.0/8") from error

    @property
    def policy(self) -> AddressPolicy:
        """The rules for addresses."""
        return AddressPolicy.of(self.allowed_networks)
