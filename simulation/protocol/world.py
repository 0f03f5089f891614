"""The protocol's world: one client, a service that moves between edges, and what is between them.

Both ends are the project's connections, unchanged. The world stands where sockets and node agents are:
it carries datagrams, hands late ones on, keeps early ones in a waiting room until the server runs, and
moves the server as a story says (``mover``). Each datagram of the client to an address that has not
answered a challenge is decrypted: it must hold probing frames only (RFC 9000 §9.1).
"""

from __future__ import annotations

import asyncio
import functools
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import pull_quic_header

from quicferry.quic import (
    ExtensionConfig,
    MigratableConnection,
    MigrationCommitted,
    MigrationReady,
    PathSwitched,
    PathValidated,
)
from quicferry.quic.wire import Result
from quicferry.strategies import Strategy
from simulation.clock import VirtualLoop
from simulation.determinism import certificate
from simulation.history import History
from simulation.network import DOWN, UP, Address, Blackhole, Datagram, Wire
from simulation.protocol.applications import ClientLoad, Service
from simulation.protocol.endpoint import Endpoint, client_view
from simulation.protocol.fault_kinds import FOREVER
from simulation.protocol.faults import ACTIONS, edge_address
from simulation.protocol.story import EDGES_MOST, Ending, Fault, ServerAddress, Story, Traffic

CLIENT: Address = ("10.0.0.2", 40_000)
RELAY: Address = ("10.0.66.2", 4433)
ATTACKER: Address = ("10.0.67.2", 5000)
INTER_EDGE_S = 0.0005
IDLE_TIMEOUT_S = 30.0
#: when all faults are over and a server runs, this long after it everything must have been answered
LIVENESS_S = 8.0
TURNS_MOST = 60_000  # of one end; far above what any story needs
_PROBING = {0x00, 0x1A, 0x1B, 0x18}
_SIZED = (0x1A, 0x1B)


@dataclass
class Room:
    """The waiting room at the destination of the present move."""

    edge: int
    open: bool = False
    client_came: bool = False
    kept: list[tuple[bytes, Address]] = field(default_factory=list)


class ProtocolWorld:
    """One play. ``live`` is all of it; ``history`` tells afterwards."""

    def __init__(self, loop: VirtualLoop, story: Story, history: History) -> None:
        self.loop = loop
        self.story = story
        self.history = history
        self.rng = random.Random(f"wire {story.seed}")
        self.wire = Wire(loop, self.rng, _Delays(story.rtt_s / 2))
        self.client_at: Address = CLIENT
        self.here = 1  # the edge where the server runs, or will again
        self.server: Endpoint | None = None
        self.service = Service()
        self.ever_at: set[Address] = {edge_address(1)}
        self.left_at: dict[Address, float] = {}
        self.heard_at: float | None = None  # the first new byte since the server runs at another edge
        self.forwards: dict[int, int] = {}
        self.handed_on_by: dict[int, int] = {}  # the same, and what it was until a moment ago
        self.room: Room | None = None
        self.relay_ahead_s: float | None = None
        self.relayed = False  # by now, or a moment ago
        self.ever_relayed = False
        self.replayed_after_s: float | None = None
        self.connected = asyncio.Event()
        self.answers: dict[int, Result] = {}  # epoch -> what the client said
        self.number = 0  # of the present move
        self.calm_at = loop.time()
        self.closed_by_service = False
        self.close_thrown_away = False  # closed by a destination that was taken down again
        self.validated: set[Address] = {edge_address(1)}
        self.to_victims_bytes = 0
        self.misuse_at: float | None = None
        self._anchors: dict[str, list[Fault]] = {}
        for fault in story.faults:
            self._anchors.setdefault(fault.anchor, []).append(fault)
        self.load = ClientLoad(loop.time, history.violated)
        client, self.server_configuration = _configurations(story)
        preferred = next((m.to for m in story.moves if m.strategy is Strategy.PREFERRED_ADDRESS), None)
        self.extension = ExtensionConfig(
            preferred_address=() if preferred is None else (edge_address(preferred),)
        )
        self.client = Endpoint(
            loop,
            MigratableConnection(
                configuration=client,
                extension=ExtensionConfig(strategies=frozenset(story.strategies)),
            ),
            self._client_event,
            self._client_sends,
        )
        loop.set_exception_handler(self._raised)

    # ------------------------------------------------------------------ the story's frame

    def mark(self, anchor: str, **detail: Any) -> None:
        """Something happened that faults may be anchored to."""
        self.history.note("world", anchor, **detail)
        for fault in self._anchors.pop(anchor, ()):
            self.calm(fault.delay_s + (fault.seconds if fault.seconds < FOREVER else 0.0))
            if fault.delay_s:
                self.loop.physics(fault.delay_s, self._begin, fault)
            else:  # at this very moment, before anything else happens
                self._begin(fault)

    def calm(self, after_s: float = 0.0) -> None:
        """Nothing may be expected before now and so many seconds."""
        self.calm_at = max(self.calm_at, self.loop.time() + after_s)

    def _begin(self, fault: Fault) -> None:
        self.history.note("fault", fault.kind, seconds=fault.seconds, direction=fault.direction)
        end = ACTIONS[fault.kind](self, fault)
        if end is not None and fault.seconds < FOREVER:
            self.loop.physics(fault.seconds, self._end, fault, end)

    def _end(self, fault: Fault, end: Callable[[], None]) -> None:
        self.history.note("fault", f"{fault.kind} over")
        end()

    def _raised(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None:
            self.history.violated("raised", str(context.get("message")))
        else:
            self.raised(error)

    def raised(self, error: BaseException) -> None:
        """Code that is never to raise has raised."""
        at = error.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        function = at.tb_frame.f_code.co_name if at is not None else "?"
        self.history.violated(f"raised:{type(error).__name__}:{function}", str(error))

    async def until(self, condition: Callable[[], bool], until_s: float, every_s: float = 0.01) -> bool:
        """Wait for a condition; returns whether it holds."""
        while not condition():
            if self.loop.time() >= until_s:
                return False
            await asyncio.sleep(every_s)
        return True

    async def connect(self) -> bool:
        """The handshake, before anything goes wrong."""
        self.client.connection.connect(edge_address(1), self.loop.time())
        self.client.proceed()
        if not await self.until(self.connected.is_set, self.loop.time() + 5.0):
            self.history.violated("no-handshake", "no handshake within 5 s")
            return False
        await asyncio.sleep(4 * self.story.rtt_s)
        return True

    # ------------------------------------------------------------------ datagrams

    def _client_sends(self, data: bytes, address: Address) -> None:
        self._guard(self.client)
        if address not in self.validated:
            self._check_probing(data, address)
        self.history.packet(UP, address, data)
        if address == RELAY:
            if self.relay_ahead_s is not None:
                self.loop.call_later(self.story.rtt_s / 2, self._at_edge, self.here, data, self.client_at)
            return
        if not address[0].startswith("10.0."):
            self.to_victims_bytes += len(data)
            return
        edge = int(address[0].split(".")[2])
        self.wire.send(Datagram(data, UP, address), functools.partial(self._arrive_up, edge, self.client_at))
        if self.replayed_after_s is not None:
            self._replay_elsewhere(data, edge)

    def _replay_elsewhere(self, data: bytes, edge: int) -> None:
        """An attacker's copy comes to every other edge, from its own address and from the client's."""
        assert self.replayed_after_s is not None
        for number in range(1, EDGES_MOST + 1):
            if number != edge:
                source = self.rng.choice((ATTACKER, self.client_at))
                after_s = self.rng.uniform(0.0, self.replayed_after_s)
                self.loop.physics(after_s, self._at_edge, number, data, source)

    def _arrive_up(self, edge: int, source: Address, data: bytes) -> None:
        self._at_edge(edge, data, source)

    def server_sends(self, edge: int, data: bytes, address: Address) -> None:
        """A datagram leaves the server at an edge."""
        if self.server is not None:
            self._guard(self.server)
        at = edge_address(edge)
        self.history.packet(DOWN, at, data)
        if address != self.client_at:
            return  # the NAT has forgotten that mapping
        if self.relay_ahead_s is not None:
            ahead_s = max(0.0, self.story.rtt_s / 2 - self.relay_ahead_s)
            self.loop.call_later(ahead_s, self._at_client, RELAY, data)
        self.wire.send(Datagram(data, DOWN, at), functools.partial(self._at_client, at))

    def _at_client(self, source: Address, data: bytes) -> None:
        self.client.receive(data, source)
        self.client.proceed()

    def _at_edge(self, edge: int, data: bytes, source: Address) -> None:
        room = self.room
        if self.server is None and self.number == 0:
            self._first_datagram(data, source)
        elif self.server is not None and self.here == edge:
            self._deliver(data, source)
            if room is not None and room.edge == edge and not room.open:
                self.open_room()
        elif edge in self.forwards:
            self.loop.call_later(INTER_EDGE_S, self._handed_on, self.forwards[edge], data, source)
        elif room is not None and room.edge == edge and not room.open:
            room.client_came = True
            room.kept.append((data, source))

    def _handed_on(self, edge: int, data: bytes, source: Address) -> None:
        if self.room is not None and self.room.edge == edge and not self.room.open:
            self.room.kept.append((data, source))
        elif self.server is not None and self.here == edge:
            self._deliver(data, source)
        elif edge in self.forwards:  # the server has moved on from there, too
            self.loop.call_later(INTER_EDGE_S, self._handed_on, self.forwards[edge], data, source)

    def open_room(self) -> None:
        """What has waited goes in, before the server's first flight."""
        room = self.room
        assert room is not None and self.server is not None
        room.open = True
        kept, room.kept = room.kept, []
        for data, source in kept:
            self.server.receive(data, source)
        self.server.proceed()

    def open_later(self, room: Room) -> None:
        """The client has not come by itself; what was handed on is let in now."""
        if room is self.room and not room.open and self.server is not None and self.here == room.edge:
            self.open_room()

    def _deliver(self, data: bytes, source: Address) -> None:
        if self.server is None:
            return
        self.server.receive(data, source)
        self.server.proceed()

    def _first_datagram(self, data: bytes, source: Address) -> None:
        """What a listening server does with a client's first Initial."""
        header = pull_quic_header(Buffer(data=data), host_cid_length=8)
        connection = MigratableConnection(
            configuration=self.server_configuration,
            extension=self.extension,
            original_destination_connection_id=header.destination_cid,
        )
        self.server = self.serve(1, connection)
        self._deliver(data, source)

    def serve(self, edge: int, connection: MigratableConnection) -> Endpoint:
        """An endpoint that runs a server's connection at an edge, maybe behind a NAT."""
        is_translated = self.story.server_address is ServerAddress.TRANSLATED
        return Endpoint(
            self.loop,
            connection,
            functools.partial(self._server_event, connection),
            functools.partial(self.server_sends, edge),
            f"192.168.{edge}.2" if is_translated else None,
        )

    def _guard(self, end: Endpoint) -> None:
        if end.turns > TURNS_MOST:
            self.history.violated("endless", "an end is called again and again without end")
            end.stop()

    def _check_probing(self, data: bytes, address: Address) -> None:
        if len(data) < 1200:
            self.history.violated("probing:size", f"a probe of {len(data)} bytes to {address}")
        sent = frames(data, self.client.connection)
        if not sent <= _PROBING:
            self.history.violated(
                "probing:frames", f"frames {sorted(sent - _PROBING)} to {address} before it was validated"
            )

    # ------------------------------------------------------------------ events of the two ends

    def _client_event(self, event: quic_events.QuicEvent) -> None:
        if isinstance(event, quic_events.StreamDataReceived):
            self.load.received(event.stream_id, event.data, event.end_stream)
            if self.heard_at is None:
                self.heard_at = self.loop.time()
            return
        if isinstance(event, quic_events.StreamReset):
            self.load.was_reset(event.stream_id)
        elif isinstance(event, quic_events.HandshakeCompleted):
            self.connected.set()
        elif isinstance(event, PathValidated):
            self.validated.add(event.address)
        elif isinstance(event, PathSwitched):
            self._check_switch(event.new)
            self.mark(f"switched {self.number}", new=event.new)
            return
        elif isinstance(
            event,
            quic_events.ConnectionIdIssued | quic_events.ConnectionIdRetired | quic_events.PingAcknowledged,
        ):
            return
        self.history.note("client", type(event).__name__, **_plain(event))

    def _is_cut_off(self) -> bool:
        """Whether nothing gets through, one way or both, but by a relay."""
        return any(isinstance(each, Blackhole) for each in self.wire.impairments)

    def _check_switch(self, new: Address) -> None:
        """The client may only go where the server is, or was until a moment ago."""
        is_unsaid = self.story.server_address is not ServerAddress.KNOWN and self.number > 0
        if new == RELAY and is_unsaid and self.relayed:
            # a word that names no address counts for the path that it comes on (docs/wire-format.md, 10.1)
            self.history.note("oracle", "the client follows a copy of the server's word to a relay")
            return
        if new == RELAY and self.ever_relayed and self._is_cut_off():
            # RFC 9000 §9.3.3: who hands on what its own path does not carry may have it (wire-format.md, 6.4)
            self.history.note("oracle", "the client tries the path of a relay while its own is dead")
            return
        if new not in self.ever_at:
            moved = "never moved" if self.number == 0 else "had moved"
            self.history.violated(
                f"drawn-away:{moved.replace(' ', '-')}",
                f"the client goes to {new}, where no server ever was; the server {moved}",
            )
            return
        left_at = self.left_at.get(new)
        if self.server is not None and new != edge_address(self.here) and left_at is not None:
            gone_s = self.loop.time() - left_at
            if gone_s > 1.5 * self.story.rtt_s + 0.01 and not self.story.faults_delay:
                self.history.violated(
                    "switched-to-left-edge",
                    f"the client goes to {new}, which the server left {gone_s:.3f} s ago",
                )
        else:
            self.loop.physics(2 * self.story.rtt_s, self._check_rtt)

    def check_overhead(self, obeyed: frozenset[int]) -> None:
        """A restored server that speaks first must have brought something new by now, if it had anything.

        ``obeyed``: the requests that had come before the freeze; others were lost, or had their way to go.
        """
        if self.story.faults or self.heard_at is not None or self.server is None:
            return
        *earlier, last = self.story.moves[: self.number]
        if any(move.ending is Ending.FENCED for move in (*earlier, last)):
            return  # the client has more than a server knows that goes on from the freeze
        at_once = last.after_s < 2 * self.story.rtt_s
        if earlier and earlier[-1].ending is Ending.ROLLED_BACK and at_once:
            return  # nor has it heard what of its flight had arrived when it was frozen the first time
        open_now = [
            each
            for each in self.load.open
            if each.received < each.size_bytes and each.what == "request" and each.number in obeyed
        ]
        if self.story.traffic is Traffic.DOWNLOAD and open_now:
            self.history.violated(
                "overhead:download", "a server that speaks first has brought nothing new after a round trip"
            )

    def _check_rtt(self) -> None:
        """What a client takes for the RTT of a path must be near to it: its probe timeout comes from it."""
        found_s = client_view(self.client.connection)["rtt_s"]
        if found_s > 3 * self.story.rtt_s + 0.05 and not self.story.faults_delay:
            self.history.violated(
                "rtt-estimate", f"the path has {self.story.rtt_s} s, the client takes it for {found_s:.3f} s"
            )

    def _server_event(self, connection: MigratableConnection, event: quic_events.QuicEvent) -> None:
        if isinstance(event, quic_events.StreamDataReceived):
            answer = self.service.take(event.stream_id, event.data, event.end_stream, self.history.violated)
            if answer is not None:
                connection.send_stream_data(event.stream_id, answer, True)
        elif isinstance(event, quic_events.StreamReset):
            connection.reset_stream(event.stream_id, event.error_code)
        elif isinstance(event, quic_events.HandshakeCompleted):
            if self.story.pool:
                pool = [edge_address(edge) for edge in self.story.pool]
                connection.offer_addresses(pool, self.loop.time())
        elif isinstance(event, MigrationReady):
            self.answers[event.epoch] = event.result
            self.history.note("server", "MigrationReady", epoch=event.epoch, result=str(event.result))
        elif isinstance(event, MigrationCommitted):
            self.mark(f"committed {self.number}")
        elif isinstance(event, quic_events.ConnectionTerminated):
            self.history.note("server", "ConnectionTerminated", **_plain(event))

    # ------------------------------------------------------------------ what faults do

    def rebind(self) -> None:
        """The NAT gives the client another address; what goes to the old one is lost."""
        self.client_at = ("10.0.0.2", self.client_at[1] + 1)

    def begin_relay(self, ahead_s: float) -> None:
        """A forwarder's copies come so much earlier than the network does."""
        self.relay_ahead_s = ahead_s
        self.relayed = self.ever_relayed = True

    def end_relay(self) -> None:
        """The forwarder stops; whoever goes through it is cut off."""
        self.relay_ahead_s = None
        self.loop.physics(self.story.rtt_s, self._forget_relay)  # what it has handed on arrives

    def _forget_relay(self) -> None:
        self.relayed = self.relay_ahead_s is not None

    def close_by_service(self) -> None:
        """The service ends the connection."""
        if self.server is not None and not self.server.stopped:
            self.server.connection.close(error_code=0, reason_phrase="restarting")
            self.server.proceed()
            self.closed_by_service = True
            self.calm()

    def misuse(self, victims: int, every_s: float) -> Callable[[], None]:
        """A malicious server names strangers to its client, again and again, until the returned call."""
        strangers = [(f"10.9.{number}.2", 53) for number in range(1, victims + 1)]
        self.misuse_at = self.loop.time()
        going = [True]

        def announce(epoch: int) -> None:
            server = self.server
            if not going[0] or server is None or server.stopped:
                return
            connection, now = server.connection, self.loop.time()
            strategy = next((s for s in self.story.strategies if "explicit" in s), None)
            if strategy is None:
                return
            if epoch > 101:
                connection.abort_migration(epoch - 1, "operator", now)
            connection.prepare_migration(epoch, strategy, strangers, 300, True, now)
            server.proceed()
            self.loop.call_later(every_s, announce, epoch + 1)

        announce(101)

        def end() -> None:
            going[0] = False

        return end


def frames(data: bytes, sender: Any) -> set[int]:
    """The frame types of a 1-RTT datagram; what follows one that is not probing is not looked at."""
    buf = Buffer(data=data)
    pull_quic_header(buf, host_cid_length=8)
    crypto = sender._cryptos[tls.Epoch.ONE_RTT].send
    _, plain, _, _ = crypto.decrypt_packet(data, buf.tell(), sender._packet_number)
    types: set[int] = set()
    body = plain
    while body:
        frame_type = Buffer(data=body[:8].ljust(8, b"\0")).pull_uint_var()
        types.add(frame_type)
        if frame_type == 0:  # hundreds of them fill a probe up
            body = body.lstrip(b"\0")
        elif frame_type in _SIZED:
            body = body[9:]  # a type of one byte and eight of data
        else:
            break
    return types


class _Delays(dict[Address, float]):
    """All paths are alike, but a little longer with each edge, as distances are."""

    def __init__(self, one_way_s: float) -> None:
        super().__init__()
        self._one_way_s = one_way_s

    def __missing__(self, edge: Address) -> float:
        number = int(edge[0].split(".")[2])
        return self._one_way_s * (1 + number / 1000)


def _configurations(story: Story) -> tuple[QuicConfiguration, QuicConfiguration]:
    common: dict[str, Any] = {
        "alpn_protocols": ["ferry"],
        "idle_timeout": IDLE_TIMEOUT_S,
        "max_datagram_size": story.max_datagram_bytes,
        "max_datagram_frame_size": 65_536,
    }
    client = QuicConfiguration(is_client=True, **common)
    client.verify_mode = ssl.CERT_NONE
    client.server_name = "service.test"
    server = QuicConfiguration(is_client=False, **common)
    server.certificate, server.private_key = certificate()
    return client, server


def _plain(event: Any) -> dict[str, Any]:
    return {name: str(value) for name, value in vars(event).items() if not isinstance(value, bytes)}
