"""Reads Multipath TCP in a capture (RFC 8684): which subflows form a connection, and in which order.

A connection is known by the keys of its first handshake (MP_CAPABLE), a further subflow by the token
in its MP_JOIN. Each payload byte has a place in the connection's data stream by a mapping (DSS). What
several subflows carry is put in order by that, so one byte that was sent on two of them counts once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

_END, _NO_OPERATION, _MPTCP = 0, 1, 30
_CAPABLE, _JOIN, _DSS, _ADD_ADDR, _REMOVE_ADDR, _FASTCLOSE = 0, 1, 2, 3, 4, 7
_DSS_MAP, _DSS_LONG_MAP, _DSS_ACK, _DSS_LONG_ACK = 0x04, 0x08, 0x01, 0x02
_ECHO = 0x01
_MAPPINGS_KEPT = 256  # of one subflow and direction: a sender maps at most its window ahead


class PathSignal(NamedTuple):
    """An option of the path managers in a segment, such as MP_CAPABLE, MP_JOIN, ADD_ADDR, REMOVE_ADDR.

    ``about`` is an address, or the number of one. The echo of an ADD_ADDR is ``ADD_ADDR-ECHO``.
    """

    name: str
    about: str = ""


class DataPiece(NamedTuple):
    """Payload bytes and the 32-bit data sequence number of the first."""

    sequence: int
    data: bytes


class SubflowSegment(NamedTuple):
    """The data and options that a segment of a subflow brings to its connection."""

    owner: int  # the first subflow of the connection
    pieces: list[DataPiece]
    signals: list[PathSignal]


def options(segment: bytes) -> Iterator[bytes]:
    """The MPTCP options of a TCP segment, each with kind and length in front."""
    end = min(len(segment), (segment[12] >> 4) * 4) if len(segment) > 12 else 0
    at = 20
    while at < end:
        kind = segment[at]
        if kind == _END:
            return
        if kind == _NO_OPERATION:
            at += 1
            continue
        length = segment[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            return
        if kind == _MPTCP and length >= 3:
            yield segment[at : at + length]
        at += length


def token_of(key: bytes) -> bytes:
    """The token of a connection in an MP_JOIN (RFC 8684 §3.2)."""
    return hashlib.sha256(key).digest()[:4]


def first_data_sequence(key: bytes) -> int:
    """The low 32 bits of the data sequence number of the first byte that the key's owner sends."""
    return (int.from_bytes(hashlib.sha256(key).digest()[-8:], "big") + 1) & 0xFFFFFFFF


class _Mapping(NamedTuple):
    subflow_sequence: int  # relative to the initial sequence number; the first byte has 1
    data_sequence: int
    length: int


class _Subflow:
    """One subflow: its initial sequence numbers and its mappings."""

    def __init__(self, owner: int) -> None:
        self.owner = owner
        self.initial: dict[bool, int] = {}  # direction -> initial sequence number
        self.mappings: dict[bool, list[_Mapping]] = {True: [], False: []}

    def pieces(self, to_server: bool, sequence: int, payload: bytes) -> list[DataPiece]:
        """The parts of a payload that a mapping covers, with their data sequence numbers."""
        if to_server not in self.initial:
            return []
        begin = (sequence - self.initial[to_server]) & 0xFFFFFFFF
        found = []
        for mapping in self.mappings[to_server]:
            first = max(begin, mapping.subflow_sequence)
            last = min(begin + len(payload), mapping.subflow_sequence + mapping.length)
            if first < last:
                data = payload[first - begin : last - begin]
                at = (mapping.data_sequence + first - mapping.subflow_sequence) & 0xFFFFFFFF
                found.append(DataPiece(at, data))
        return found


class Multipath:
    """All subflows of a capture. ``subflow`` numbers are given by whoever tells TCP connections apart."""

    def __init__(self) -> None:
        self._subflows: dict[int, _Subflow] = {}
        self._owners: dict[bytes, int] = {}  # token -> first subflow
        #: (first subflow, direction) -> the data sequence number of the first byte
        self.begins: dict[tuple[int, bool], int] = {}

    def feed(self, number: int, to_server: bool, segment: bytes, payload: bytes) -> SubflowSegment | None:
        """Take in a segment of a TCP connection; None when that is no subflow, as far as is known."""
        signals: list[PathSignal] = []
        sequence, is_syn = int.from_bytes(segment[4:8], "big"), bool(segment[13] & 0x02)
        for option in options(segment):
            self._read(number, to_server, option, is_syn=is_syn, size=len(payload), signals=signals)
        subflow = self._subflows.get(number)
        if subflow is None:
            return None
        if is_syn:
            subflow.initial[to_server] = sequence
        return SubflowSegment(subflow.owner, subflow.pieces(to_server, sequence, payload), signals)

    def _read(
        self,
        number: int,
        to_server: bool,
        option: bytes,
        *,
        is_syn: bool,
        size: int,
        signals: list[PathSignal],
    ) -> None:
        kind = option[2] >> 4
        if kind == _CAPABLE:
            self._capable(number, to_server, option, size)
            if is_syn:
                signals.append(PathSignal("MP_CAPABLE"))
        elif kind == _JOIN and is_syn:
            if to_server and len(option) >= 12 and option[4:8] in self._owners:
                self._subflows.setdefault(number, _Subflow(self._owners[option[4:8]]))
            signals.append(PathSignal("MP_JOIN"))
        elif kind == _DSS and number in self._subflows:
            mapping = read_mapping(option)
            if mapping is not None:
                self._map(number, to_server, mapping)
        elif kind == _ADD_ADDR:
            signals.append(read_add_addr(option))
        elif kind == _REMOVE_ADDR:
            signals += [PathSignal("REMOVE_ADDR", str(each)) for each in option[3:]]
        elif kind == _FASTCLOSE:
            signals.append(PathSignal("MP_FASTCLOSE"))

    def _map(self, number: int, to_server: bool, mapping: _Mapping) -> None:
        mappings = self._subflows[number].mappings[to_server]
        if mapping not in mappings[-_MAPPINGS_KEPT:]:
            mappings.append(mapping)
            del mappings[:-_MAPPINGS_KEPT]

    def _capable(self, number: int, to_server: bool, option: bytes, size: int) -> None:
        subflow = self._subflows.setdefault(number, _Subflow(number))
        if len(option) < 12:
            return  # the client's SYN: it keeps its key for itself
        self._learn_key(subflow, to_server, option[4:12])
        if len(option) >= 20:
            self._learn_key(subflow, not to_server, option[12:20])
        if len(option) >= 22 and size:  # the first data, mapped by this option itself (§3.1)
            self._map(number, to_server, _Mapping(1, self.begins[subflow.owner, to_server], size))

    def _learn_key(self, subflow: _Subflow, to_server: bool, key: bytes) -> None:
        self._owners[token_of(key)] = subflow.owner
        self.begins[subflow.owner, to_server] = first_data_sequence(key)


def read_mapping(option: bytes) -> _Mapping | None:
    """The mapping of a DSS option (§3.3); None when it has none, or only tells the end of the data."""
    flags, at = option[3], 4
    if flags & _DSS_ACK:
        at += 8 if flags & _DSS_LONG_ACK else 4
    if not flags & _DSS_MAP:
        return None
    size = 8 if flags & _DSS_LONG_MAP else 4
    if len(option) < at + size + 6:
        return None
    data_sequence = int.from_bytes(option[at : at + size], "big") & 0xFFFFFFFF
    subflow_sequence = int.from_bytes(option[at + size : at + size + 4], "big")
    length = int.from_bytes(option[at + size + 4 : at + size + 6], "big")
    if subflow_sequence == 0:  # a DATA_FIN alone
        return None
    return _Mapping(subflow_sequence, data_sequence, length)


def read_add_addr(option: bytes) -> PathSignal:
    """ADD_ADDR or its echo (§3.4.1) with the address in it."""
    echo = bool(option[2] & _ECHO)
    rest = len(option) - 4 - (0 if echo else 8)  # without the HMAC
    size = 16 if rest >= 16 else 4
    address = str(ip_address(option[4 : 4 + size])) if len(option) >= 4 + size else ""
    return PathSignal("ADD_ADDR-ECHO" if echo else "ADD_ADDR", address)
