"""What both roles have: negotiation and the queue of control frames."""

from __future__ import annotations

import functools

from aioquic.quic.connection import NetworkAddress

from quicferry.quic._aioquic.connection import Datagrams
from quicferry.quic._aioquic.seam import Seam
from quicferry.quic.config import ExtensionConfig
from quicferry.quic.wire import EXTENSION_TYPES, Address, Frame, FrameType
from quicferry.strategies import Strategy, StrategyName, rules_of


@functools.lru_cache(maxsize=64)  # all clients of a server have agreed to much the same
def _extended(negotiated: frozenset[StrategyName]) -> frozenset[StrategyName]:
    return frozenset(name for name in negotiated if rules_of(name).extended)


@functools.lru_cache(maxsize=64)
def _frame_types(negotiated: frozenset[StrategyName]) -> frozenset[FrameType]:
    drafts = {FrameType.ALTERNATIVE_ADDRESS} if Strategy.ALTERNATIVE_ADDRESS in negotiated else set()
    return frozenset((EXTENSION_TYPES if _extended(negotiated) else set()) | drafts)


class Role:
    """One end of the extension. Until it is negotiated it does nothing."""

    def __init__(self, seam: Seam, config: ExtensionConfig) -> None:
        self._seam = seam
        self._config = config
        self._control: list[bytes] = []  # encoded frames to send, in order
        self.negotiated: frozenset[StrategyName] = frozenset()  # the standards included
        self.max_addresses = config.max_addresses
        self.held = False
        self.mute = False
        self.passive = False

    @property
    def extended(self) -> frozenset[StrategyName]:
        """What was negotiated by ``server_migration``; empty where only a standard is used."""
        return _extended(self.negotiated)

    @property
    def frame_types(self) -> frozenset[FrameType]:
        """The frames that may come, or that are an error of their own when they come."""
        return _frame_types(self.negotiated)

    def preferred_address(self, addresses: tuple[Address, ...]) -> bool:
        """A server has none of its client's."""
        return False

    def while_mute(self) -> Datagrams:
        """Nothing: who is mute is silent."""
        return []

    @property
    def negotiated_pool(self) -> bool:
        """Whether one of the negotiated strategies gives the client possible addresses beforehand."""
        return any(rules_of(name).pool for name in self.negotiated)

    @property
    def recovery_suspended(self) -> bool:
        """Whether the loss detection timer is off."""
        return False

    @property
    def connection_ids(self) -> int:
        """As many as upstream deals in, if there is no need for more."""
        return 0

    def admits(self, address: NetworkAddress) -> bool:
        """A server takes packets from everywhere: upstream's business."""
        return False

    def retire_prior_to(self, sequence_number: int) -> None:
        """Only connection IDs that upstream does not know of are ours to retire."""

    def repeated(self, address: NetworkAddress, number: int, responses: list[bytes], now: float) -> None:
        """Relays are the client's business."""

    def response(self, data: bytes, address: NetworkAddress) -> bool:
        """Only a client challenges."""
        return False

    def timer(self) -> float | None:
        """No timer of its own."""
        return None

    def on_timer(self, now: float) -> None:
        """No timer of its own."""

    def send_control(self, frame: Frame) -> None:
        """Queues a frame; it is repeated until it is acknowledged or stale."""
        self._control.append(frame.encode())

    def control_delivered(self, encoded: bytes, acknowledged: bool) -> None:
        """Queues a frame that was lost again, unless it is stale by now."""
        if not acknowledged and self.is_current(encoded):
            self._control.append(encoded)

    def is_current(self, encoded: bytes) -> bool:
        """Whether a control frame still means something."""
        return True

    def _control_datagrams(self, now: float) -> Datagrams:
        self._control = [encoded for encoded in self._control if self.is_current(encoded)]
        if not self._control:
            return []
        datagrams, written = self._seam.control_packet(self._control, self.control_delivered, now)
        del self._control[:written]
        return datagrams
