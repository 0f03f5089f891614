"""tshark agrees with our reading, packet by packet, over captures of every stack that could be had.

tests/captures is made by tools/make_captures.py; tshark is another program by other people, so that neither
reading can be wrong without the other noticing. Compared are types, versions and numbers of the packets,
types of the frames, and of streams their IDs, offsets and lengths.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from quicferry.capture.quic.frames import Frame
from quicferry.capture.quic.packets import Packet
from quicferry.capture.quic.versions import Space
from quicferry.inspection.inspector import tell_all
from quicferry.inspection.sources import Source
from quicferry.process import run

pytestmark = pytest.mark.needs("tshark")

CAPTURES = Path(__file__).parents[2] / "captures"
NAMES = sorted(path.name for path in CAPTURES.iterdir() if path.is_dir() and path.name != "mptcp")
#: (capture, number): what tshark 4.0 does not open. aioquic 1.7 keeps the Initial keys of version 1 for its
#: first packet of version 2; tshark looks for those of version 2.
NOT_OPENED_BY_TSHARK = {("aioquic-v2", 3)}
#: What tshark 4.0 cannot read: it knows neither AES-CCM nor the packet types of version 2's draft.
NOT_READ_BY_TSHARK = {"ngtcp2-ccm", "ngtcp2-v2-draft"}
#: Frames that are kept from tshark. Where the ClientHello after a Retry has another random it opens nothing
#: more, as it keeps to the first random; without the first flight and the Retry it reads the rest.
KEPT_FROM_TSHARK = {"aioquic-retry": 2, "quiche": 2}
FRAME_TYPES = {
    0x01: "PING", 0x02: "ACK", 0x03: "ACK", 0x04: "RESET_STREAM", 0x05: "STOP_SENDING", 0x06: "CRYPTO",
    0x07: "NEW_TOKEN", 0x10: "MAX_DATA", 0x11: "MAX_STREAM_DATA", 0x12: "MAX_STREAMS", 0x13: "MAX_STREAMS",
    0x14: "DATA_BLOCKED", 0x15: "STREAM_DATA_BLOCKED", 0x16: "STREAMS_BLOCKED", 0x17: "STREAMS_BLOCKED",
    0x18: "NEW_CONNECTION_ID", 0x19: "RETIRE_CONNECTION_ID", 0x1A: "PATH_CHALLENGE", 0x1B: "PATH_RESPONSE",
    0x1C: "CONNECTION_CLOSE", 0x1D: "CONNECTION_CLOSE", 0x1E: "HANDSHAKE_DONE", 0x30: "DATAGRAM",
    0x31: "DATAGRAM",
}  # fmt: skip
FRAME_TYPES |= dict.fromkeys(range(0x08, 0x10), "STREAM")
LONG_TYPES = ("initial", "0-rtt", "handshake", "retry")
LONG_TYPES_2 = ("retry", "initial", "0-rtt", "handshake")
FIELDS = (
    "frame.number", "quic.header_form", "quic.long.packet_type", "quic.long.packet_type_v2", "quic.version",
    "quic.packet_number", "quic.frame_type", "quic.stream.stream_id", "quic.stream.offset",
    "quic.stream.length",
    "quic.dcid", "quic.supported_version",
)  # fmt: skip


class Seen(NamedTuple):
    """What one reader says of one captured frame."""

    types: tuple[str, ...]
    versions: tuple[int, ...]
    numbers: tuple[int, ...]
    frames: tuple[str, ...]
    streams: tuple[int, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    supported: tuple[int, ...]


def by_tshark(name: str, scratch: Path) -> dict[int, Seen]:
    folder = CAPTURES / name
    capture, left_out = folder / "capture.pcapng", KEPT_FROM_TSHARK.get(name, 0)
    if left_out:
        capture = scratch / "rest.pcapng"
        run(["editcap", folder / "capture.pcapng", capture, f"1-{left_out}"])
    argv: list[str | Path] = ["tshark", "-n", "-r", capture, "-o", f"tls.keylog_file:{folder / 'keys.log'}"]
    argv += ["-Y", "quic", "-T", "fields", "-E", "separator=|"]
    argv += [word for field in FIELDS for word in ("-e", field)]
    done = run(argv, timeout_s=120)
    lines = (_tshark_line(line.split("|")) for line in done.stdout.splitlines())
    return {number + left_out: seen for number, seen in lines}


def _tshark_line(cells: list[str]) -> tuple[int, Seen]:
    def numbers(cell: str) -> list[int]:
        return [int(word, 0) for word in cell.split(",") if word]

    (
        number,
        form,
        types,
        types_2,
        versions,
        packet_numbers,
        frames,
        streams,
        offsets,
        lengths,
        _,
        supported,
    ) = cells
    long_types = [LONG_TYPES[each] for each in numbers(types)] + [
        LONG_TYPES_2[each] for each in numbers(types_2)
    ]
    found = []
    for header in numbers(form):
        is_negotiation = header and not long_types
        found.append(
            "1-rtt" if not header else "version-negotiation" if is_negotiation else long_types.pop(0)
        )
    return int(number), Seen(
        tuple(found),
        tuple(numbers(versions)),
        tuple(numbers(packet_numbers)),
        tuple(FRAME_TYPES[each] for each in numbers(frames) if each),
        tuple(numbers(streams)),
        tuple(numbers(offsets)),
        tuple(numbers(lengths)),
        tuple(numbers(supported)),
    )


def by_us(name: str) -> dict[int, Seen]:
    folder = CAPTURES / name
    source = Source(folder / "capture.pcapng", (folder / "keys.log",))
    return {
        told.datagram.number: _our_line(told.packets)
        for _, told in tell_all(source)
        if told.protocol == "quic"
    }


def _our_line(packets: list[Packet]) -> Seen:
    frames: list[Frame] = [frame for packet in packets for frame in packet.frames or ()]
    streams = [frame for frame in frames if frame.name == "STREAM"]
    return Seen(
        tuple(packet.space.value for packet in packets),
        tuple(packet.version for packet in packets if packet.space is not Space.ONE_RTT),
        tuple(packet.packet_number for packet in packets if packet.packet_number is not None),
        tuple(frame.name for frame in frames),
        tuple(frame.stream_id or 0 for frame in streams),
        tuple(frame.offset or 0 for frame in streams),
        tuple(frame.length or 0 for frame in streams),
        tuple(version for packet in packets for version in packet.supported_versions),
    )


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOT_READ_BY_TSHARK))
def test_tshark_says_the_same_of_every_packet(name: str, tmp_path: Path) -> None:
    theirs, ours = by_tshark(name, tmp_path), by_us(name)
    assert len(theirs) > 10
    assert set(ours) - set(range(KEPT_FROM_TSHARK.get(name, 0) + 1)) == set(theirs)
    for number, seen in theirs.items():
        mine = ours[number]
        if (name, number) in NOT_OPENED_BY_TSHARK:
            continue
        # where a STREAM frame says neither offset nor length, tshark has no such field
        assert mine._replace(offsets=(), lengths=()) == seen._replace(offsets=(), lengths=()), number
        assert [each for each in mine.offsets if each] == [each for each in seen.offsets if each], number
        assert set(seen.lengths) <= set(mine.lengths), number


@pytest.mark.parametrize("name", NAMES)
def test_every_packet_of_every_stack_is_opened(name: str) -> None:
    for number, seen in by_us(name).items():
        protected = [each for each in seen.types if each not in ("retry", "version-negotiation")]
        assert len(seen.numbers) == len(protected), number


def test_the_corpus_has_what_stacks_differ_in() -> None:
    """Else an empty corpus would agree, too."""
    types, frames = set(), set()
    for name in NAMES:
        for seen in by_us(name).values():
            types.update(seen.types)
            frames.update(seen.frames)
    assert types >= {"initial", "handshake", "1-rtt", "retry", "0-rtt", "version-negotiation"}
    assert frames >= {
        "PATH_CHALLENGE",
        "NEW_TOKEN",
        "STREAM",
        "RETIRE_CONNECTION_ID",
        "MAX_STREAMS",
        "CONNECTION_CLOSE",
    }


TCP_FIELDS = (
    "frame.number", "tcp.stream", "tcp.flags", "tcp.seq", "tcp.ack", "tcp.len", "tcp.window_size_value",
    "tcp.options.mptcp.subtype", "tcp.options.mptcp.rawdataack", "tcp.options.mptcp.rawdataseqno",
    "tcp.options.mptcp.subflowseqno", "tcp.options.mptcp.datalvllen",
)  # fmt: skip
MPTCP_SUBTYPES = (
    "MP_CAPABLE", "MP_JOIN", "DSS", "ADD_ADDR", "REMOVE_ADDR", "MP_PRIO", "MP_FAIL", "MP_FASTCLOSE",
    "MP_TCPRST",
)  # fmt: skip
FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}


def test_tshark_says_the_same_of_every_segment_of_mptcp() -> None:
    capture = CAPTURES / "mptcp" / "capture.pcapng"
    argv: list[str | Path] = ["tshark", "-n", "-r", capture, "-Y", "tcp", "-T", "fields", "-E", "separator=|"]
    argv += [word for field in TCP_FIELDS for word in ("-e", field)]
    theirs = {}
    for line in run(argv, timeout_s=120).stdout.splitlines():
        cells = [[int(word, 0) for word in cell.split(",") if word] for cell in line.split("|")]
        number, stream, flags, seq, ack, length, window, subtypes, *dss = cells
        names = [MPTCP_SUBTYPES[each] for each in subtypes]
        numbers = (stream[0], flags[0], seq[0], ack[0] if flags[0] & 16 else None, length[0], window[0])
        theirs[number[0]] = (*numbers, names, *dss)
    ours = {}
    for _, told in tell_all(Source(capture)):
        segment = told.segment
        assert segment is not None
        options = segment.options.mptcp
        ours[told.datagram.number] = (
            segment.connection,
            sum(FLAGS[flag] for flag in segment.flags),
            segment.sequence,
            segment.acknowledged,
            segment.length,
            segment.window,
            [option.name for option in options],
            *(
                [value for option in options if (value := getattr(option, field)) is not None]
                for field in ("data_ack", "data_sequence", "subflow_sequence")
            ),
            [option.data_length for option in options if option.data_length is not None],
        )
    assert len(ours) > 30
    assert ours == theirs
    assert {"MP_CAPABLE", "MP_JOIN", "DSS", "ADD_ADDR"} <= {name for row in ours.values() for name in row[6]}
