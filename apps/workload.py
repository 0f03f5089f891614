"""The application protocol of the load, without any transport: what crosses a stream.

A stream carries one exchange. Each side sends a header, one line of JSON, and then a body up to
the end of the stream. The client's header says what it wants; bodies of downloads and uploads are
made of a seed, so that both ends know every byte and can check it by hash.

    get       client: header + padding            server: header with counters + padding, after a delay if
                                                  one was asked for
    download  client: header                      server: header + ``size`` bytes made of ``seed``
    upload    client: header + ``size`` bytes     server: header with the hash of what it received

The hash is a chain over blocks, ``h[i] = SHA-256(h[i-1] || block[i])``, because a running SHA-256
cannot be written down and moved to another process in the middle, but a chain can.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

BLOCK_BYTES = 32_768
HEADER_LIMIT_BYTES = 1_024
#: How much of a body may wait in a stream's send buffer: more is memory, and at the server state to move.
BACKLOG_BYTES = 96 * 1024
CHUNK_BYTES = 32 * 1024  # given to the transport at once
PAD = b"."
_encode = msgspec.json.Encoder().encode


class Ask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The client's header. ``size`` is the size of the body that is asked for or that follows.

    Of a get, ``answer_bytes`` is the size of the answer (-1: as the server is configured), and it comes after
    ``delay_ms`` at the server: a poll for something that has not happened yet.
    """

    op: Literal["get", "download", "upload"]
    session: str
    number: int = 0  # of a get, counted from 1 within the session
    size: int = 0
    seed: int = 0
    offset: int = 0  # of a download: where its body begins, for a client that has the beginning already
    answer_bytes: int = -1
    delay_ms: float = 0.0


class RequestShape(msgspec.Struct, frozen=True, kw_only=True):
    """How a workload wants a request. None: as the run is configured."""

    request_bytes: int | None = None
    answer_bytes: int | None = None
    delay_ms: float = 0.0  # the server answers so long after it has come


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The server's header.

    ``session_count`` is how many different gets of this session have been obeyed, this one
    included; ``total`` the same over all sessions; ``repeated`` whether this number came before.
    """

    session_count: int = 0
    total: int = 0
    repeated: bool = False
    edge: str = ""
    size: int = 0
    chain: str = ""


def header(value: Ask | Reply) -> bytes:
    """A header as it crosses the stream, with its line end."""
    return _encode(value) + b"\n"


def content(seed: int, offset: int, length: int) -> bytes:
    """``length`` bytes of the body made of ``seed``, from ``offset`` on."""
    parts: list[bytes] = []
    index, skip = divmod(offset, BLOCK_BYTES)
    left = length
    while left > 0:
        block = hashlib.shake_128(f"quicferry:{seed}:{index}".encode()).digest(BLOCK_BYTES)
        part = block[skip : skip + left]
        parts.append(part)
        left -= len(part)
        index, skip = index + 1, 0
    return b"".join(parts)


class Chain(msgspec.Struct, kw_only=True):
    """A hash over a growing body whose state is plain data.

    ``digest`` covers all whole blocks so far, ``rest`` is what came after them.
    """

    digest: bytes = b""
    rest: bytes = b""
    size: int = 0

    def update(self, data: bytes) -> None:
        """Take in the next bytes of the body."""
        self.size += len(data)
        pending = self.rest + data
        whole = len(pending) - len(pending) % BLOCK_BYTES
        for start in range(0, whole, BLOCK_BYTES):
            self.digest = hashlib.sha256(self.digest + pending[start : start + BLOCK_BYTES]).digest()
        self.rest = pending[whole:]

    def hexdigest(self) -> str:
        """The hash of everything so far; the chain can go on afterwards."""
        return hashlib.sha256(self.digest + self.rest).hexdigest()


def chain_of(seed: int, size: int) -> str:
    """The hash of a whole body made of ``seed``."""
    chain = Chain()
    for offset in range(0, size, BLOCK_BYTES):
        chain.update(content(seed, offset, min(BLOCK_BYTES, size - offset)))
    return chain.hexdigest()


class HeaderReader(msgspec.Struct, kw_only=True):
    """Cuts the header line off the front of a stream. Plain data, so that it can be moved half-read."""

    buffer: bytes = b""
    done: bool = False

    def feed(self, data: bytes) -> tuple[bytes | None, bytes]:
        """Returns the header line once it is whole, else None, and the bytes that belong to the body.

        Raises ``ValueError`` when the line is longer than any header of this protocol.
        """
        if self.done:
            return None, data
        self.buffer += data
        line, end, body = self.buffer.partition(b"\n")
        if not end:
            if len(self.buffer) > HEADER_LIMIT_BYTES:
                raise ValueError("the stream does not begin with a header")
            return None, b""
        self.done, self.buffer = True, b""
        return line, body
