"""The client's load and its account: what was sent, what came back from which address, and if it was right.

No socket and no QUIC: it is given a way to send and told what arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from apps.config import ClientConfig
from apps.workload import (
    BACKLOG_BYTES,
    CHUNK_BYTES,
    PAD,
    Ask,
    Chain,
    HeaderReader,
    Reply,
    RequestShape,
    chain_of,
    content,
    header,
)
from quicferry.events import EventLog
from quicferry.record import ClientSummary, LateRecord, RequestRecord, TransferRecord
from quicferry.units import NS_PER_MS, NS_PER_S, now_ns, ns_to_ms

#: of a larger answer each part is service already; what fits into a packet comes all at once
LARGE_ANSWER_BYTES = 2048
LATE_NOTED_NS = 50 * NS_PER_MS  # less is every machine's, and of more often than that a note is enough
NextStream = Callable[[], int]


class Pending(msgspec.Struct, kw_only=True):
    """A get without a complete answer."""

    number: int
    sent_ns: int
    reader: HeaderReader = msgspec.field(default_factory=HeaderReader)
    reply: Reply | None = None
    body_bytes: int = 0


class Transfer(msgspec.Struct, kw_only=True):
    """A download or an upload, with how far it is."""

    ask: Ask
    reader: HeaderReader = msgspec.field(default_factory=HeaderReader)
    reply: Reply | None = None
    chain: Chain = msgspec.field(default_factory=Chain)  # of what came
    sent: int = 0  # of an upload's body
    verified: bool | None = None  # None while it is open


class Load:
    """Sends gets and transfers through ``send`` and keeps account of every one."""

    def __init__(
        self,
        config: ClientConfig,
        events: EventLog,
        send: Callable[[int, bytes, bool], None],
        backlog_bytes: Callable[[int], int],
    ) -> None:
        self._config = config
        self._events = events
        self._send = send
        self._backlog_bytes = backlog_bytes
        self._number = 0
        self._pending: dict[int, Pending] = {}
        self._transfers: dict[int, Transfer] = {}
        self._records: list[RequestRecord] = []
        self._counts: list[int] = []
        self._duplicated = 0
        self._again: set[int] = set()  # streams whose exchange the client has sent more than once
        self._repeats = 0
        self._recognised = 0
        self._wrong: list[str] = []
        self._verified_bytes = 0
        self._data_origin = ""  # the address that download bytes came from last, and when
        self._data_ns = 0
        self.shape = RequestShape()  # of the next get
        self._stalls_ms: list[float] = []
        self._late: list[LateRecord] = []
        self._late_noted_ns = 0
        self._datagrams_sent = 0
        self._datagrams_received = 0
        self.answered = asyncio.Event()  # set with each answer, for workloads that wait for one
        self.complete = asyncio.Event()  # set after ``finish`` when nothing is open any more
        self._finishing = False
        self.closed: str | None = None
        self.came_bytes = 0  # of answers, the pieces of which whoever carries them may count himself

    def finish(self) -> None:
        """No more requests will follow: set ``complete`` as soon as all answers have come."""
        self._finishing = True
        self._check_complete()

    def _check_complete(self) -> None:
        if (
            self._finishing
            and not self._pending
            and all(transfer.verified is not None for transfer in self._transfers.values())
        ):
            self.complete.set()

    def progress(self) -> tuple[int, int]:
        """Bytes that have come, and bytes that the transport holds: what stands still does not change."""
        return self.came_bytes, sum(map(self._backlog_bytes, [*self._pending, *self._transfers]))

    def request(self, next_stream: NextStream) -> None:
        """Send the next get."""
        self._number += 1
        stream = next_stream()
        shape = self.shape
        ask = Ask(
            op="get",
            session=self._config.session,
            number=self._number,
            answer_bytes=-1 if shape.answer_bytes is None else shape.answer_bytes,
            delay_ms=shape.delay_ms,
        )
        line = header(ask)
        size = self._config.request_bytes if shape.request_bytes is None else shape.request_bytes
        data = line + PAD * max(0, size - len(line))
        self._pending[stream] = Pending(number=self._number, sent_ns=now_ns())
        self._events.emit("client.request.sent", number=self._number, size_bytes=len(data), stream=stream)
        self._send(stream, data, True)

    def stalled(self, length_ms: float) -> None:
        """Note that a player had nothing to show for so long."""
        self._stalls_ms.append(length_ms)
        self._events.emit("client.stalled", length_ms=round(length_ms, 3))

    def behind(self, late_s: float) -> None:
        """Note by how much the client is behind the schedule of its workload, if that is worth a note."""
        now, late_ns = now_ns(), round(late_s * NS_PER_S)
        if late_ns < LATE_NOTED_NS or (self._late and now - self._late_noted_ns < LATE_NOTED_NS):
            return
        self._late_noted_ns = now
        self._late.append(LateRecord(due_ns=now - late_ns, late_ns=late_ns))

    def next_datagram(self) -> bytes:
        """The next datagram of a game: its number, and padding to ``request_bytes``."""
        self._datagrams_sent += 1
        return str(self._datagrams_sent).encode().ljust(self._config.request_bytes, PAD)

    def datagram_received(self, data: bytes, origin: str, t_ns: int) -> None:
        """Take in a datagram of the server; one may be lost, and is not missed."""
        self._datagrams_received += 1
        self._verified_bytes += len(data)
        self._note_data(origin, t_ns)

    def repeated(self, stream: int) -> None:
        """Note that an open exchange is sent again from its beginning; drop what came of its answer.

        Of a download, the answer goes on after what came: whoever sends it asks for the rest only.
        """
        self._again.add(stream)
        self._repeats += 1
        pending = self._pending.get(stream)
        if pending is not None:
            pending.reader, pending.reply, pending.body_bytes = HeaderReader(), None, 0
            self._events.emit("client.request.repeated", number=pending.number, stream=stream)
        elif stream in self._transfers:
            self._transfers[stream].reader = HeaderReader()

    @property
    def open_requests(self) -> int:
        """How many gets have no complete answer yet."""
        return len(self._pending)

    def received_bytes(self, stream: int) -> int:
        """How much of a download's body has come."""
        transfer = self._transfers.get(stream)
        return transfer.chain.size if transfer is not None and transfer.ask.op == "download" else 0

    def start_transfers(self, next_stream: NextStream) -> None:
        """Begin the download and the upload, if there are any."""
        for op, size in (("download", self._config.download_bytes), ("upload", self._config.upload_bytes)):
            if size:
                ask = msgspec.convert(
                    {"op": op, "session": self._config.session, "size": size, "seed": self._config.seed},
                    Ask,
                )
                stream = next_stream()
                self._transfers[stream] = Transfer(ask=ask)
                self._send(stream, header(ask), op == "download")

    def pump(self) -> None:
        """Give the transport more of the upload, as far as its backlog is short."""
        for stream, transfer in self._transfers.items():
            ask = transfer.ask
            if ask.op != "upload" or transfer.sent == ask.size:
                continue
            room = BACKLOG_BYTES - self._backlog_bytes(stream)
            while room > 0 and transfer.sent < ask.size:
                part = content(ask.seed, transfer.sent, min(CHUNK_BYTES, ask.size - transfer.sent))
                transfer.sent += len(part)
                room -= len(part)
                self._send(stream, part, transfer.sent == ask.size)

    def received(self, stream: int, data: bytes, end: bool, origin: str, t_ns: int | None = None) -> None:
        """Take in bytes of a stream.

        ``origin`` is the server's address that the datagram came from, ``t_ns`` when it reached this
        host (None: now).
        """
        now = now_ns() if t_ns is None else t_ns
        self.came_bytes += len(data)
        if stream in self._pending:
            self._get_received(stream, data, end, origin, now)
        elif stream in self._transfers:
            self._transfer_received(self._transfers[stream], data, end, origin, now)
        if end:
            self._check_complete()

    def _get_received(self, stream: int, data: bytes, end: bool, origin: str, now: int) -> None:
        pending = self._pending[stream]
        line, body = pending.reader.feed(data)
        if line is not None:
            pending.reply = msgspec.json.decode(line, type=Reply)
            self._verified_bytes += len(line) + 1
        if body.strip(PAD):
            self._wrong.append(f"the answer to {pending.number} holds bytes that were never sent")
        pending.body_bytes += len(body)
        if pending.body_bytes > LARGE_ANSWER_BYTES:
            self._note_data(origin, now)
        if not end:
            return
        del self._pending[stream]
        if pending.reply is None:
            self._wrong.append(f"the answer to {pending.number} has no header")
        elif pending.reply.repeated and stream in self._again:
            self._recognised += 1  # its first answer was lost, and the service did not count it again
            self._verified_bytes += pending.body_bytes
        elif pending.reply.repeated:
            self._duplicated += 1
        else:
            self._counts.append(pending.reply.session_count)
            self._verified_bytes += pending.body_bytes
        self._records.append(
            RequestRecord(
                number=pending.number,
                stream=stream,
                sent_ns=pending.sent_ns,
                received_ns=now,
                server=origin,
            )
        )
        self._events.emit(
            "client.response.received",
            t_ns=now,
            number=pending.number,
            stream=stream,
            server=origin,
            service_ms=ns_to_ms(now - pending.sent_ns),
        )
        self.answered.set()

    def _note_data(self, origin: str, now: int) -> None:
        """Tell when data ends to come from one address of the server and begins to come from another."""
        if origin != self._data_origin:
            if self._data_origin:
                self._events.emit("client.download.data", t_ns=self._data_ns, server=self._data_origin)
            self._events.emit("client.download.data", t_ns=now, server=origin)
            self._data_origin = origin
        self._data_ns = now

    def _transfer_received(self, transfer: Transfer, data: bytes, end: bool, origin: str, now: int) -> None:
        self._note_data(origin, now)
        line, body = transfer.reader.feed(data)
        if line is not None:
            transfer.reply = msgspec.json.decode(line, type=Reply)
        transfer.chain.update(body)
        if not end:
            return
        ask, reply = transfer.ask, transfer.reply
        expected = chain_of(ask.seed, ask.size)
        if ask.op == "download":
            transfer.verified = transfer.chain.size == ask.size and transfer.chain.hexdigest() == expected
        else:
            transfer.verified = reply is not None and reply.size == ask.size and reply.chain == expected
        if transfer.verified:
            self._verified_bytes += ask.size
        else:
            self._wrong.append(f"the {ask.op} of {ask.size} bytes arrived damaged")
        self._events.emit(
            "client.transfer.complete",
            kind=ask.op,
            size_bytes=ask.size,
            verified=transfer.verified,
            server=origin,
        )

    def summary(self) -> ClientSummary:
        """The account of the load so far.

        The service's counter must have told every number from 1 on exactly once: a state that was
        lost or forked on the way would repeat numbers, one that ran ahead would skip some.
        """
        lost = [
            RequestRecord(
                number=pending.number, stream=stream, sent_ns=pending.sent_ns, received_ns=None, server=None
            )
            for stream, pending in self._pending.items()
        ]
        counted = sorted(self._counts)
        # what was recognised as a repeat was counted when it came first, and that answer was lost
        expected = len(counted) + self._recognised
        unbroken = len(set(counted)) == len(counted) and (counted or [0])[-1] <= expected
        problems = list(self._wrong)
        if not unbroken and not lost:
            problems.append("the session's counter was repeated or skipped a number")
        if len(set(counted)) != len(counted):
            problems.append("the session's counter went back")
        return ClientSummary(
            requests_sent=self._number,
            responses=len(self._records),
            requests_lost=len(lost),
            requests_duplicated=self._duplicated,
            requests_repeated=self._repeats,
            repeats_recognised=self._recognised,
            bytes_verified=self._verified_bytes,
            state_ok=not problems,
            state_detail="; ".join(problems) or f"counted 1 to {expected} without a gap",
            requests=sorted(self._records + lost, key=lambda record: record.number),
            transfers=[
                TransferRecord(
                    kind=t.ask.op,
                    size_bytes=t.ask.size,
                    done_bytes=t.chain.size if t.ask.op == "download" else t.sent,
                    verified=bool(t.verified),
                )
                for t in self._transfers.values()
            ],
            closed=self.closed,
            stalls=len(self._stalls_ms),
            stalled_ms=round(sum(self._stalls_ms), 3),
            late=list(self._late),
            datagrams_sent=self._datagrams_sent,
            datagrams_received=self._datagrams_received,
        )
