"""Reads QUIC from a capture by a decryption of our own, independent of the stack under test.

``keys`` derives packet protection from the NSS key log, ``headers``, ``frames`` and ``varint`` take packets
apart, ``packets`` are what was captured and what was in it, ``connections`` hold the keys of each
connection, ``decrypt`` follows them through connection IDs, addresses and key updates, and ``table`` makes
a data frame of it. Nothing here uses the QUIC stack that sent the packets: a mistake of that stack
must not be able to hide itself.
"""

from typing import TYPE_CHECKING, Any

from quicferry.capture.quic.decrypt import Decryptor
from quicferry.capture.quic.frames import Frame, parse_frames
from quicferry.capture.quic.keys import KeyLog, read_keylog
from quicferry.capture.quic.packets import Direction, Packet

if TYPE_CHECKING:
    from quicferry.capture.quic.table import SCHEMA, TrafficTable, read_traffic

__all__ = [
    "SCHEMA",
    "Decryptor",
    "Direction",
    "Frame",
    "KeyLog",
    "Packet",
    "TrafficTable",
    "parse_frames",
    "read_keylog",
    "read_traffic",
]


def __getattr__(name: str) -> Any:
    """The names of ``table``, which needs polars: who only decrypts need not wait for it."""
    if name in ("SCHEMA", "TrafficTable", "read_traffic"):
        from quicferry.capture.quic import table

        return getattr(table, name)
    raise AttributeError(name)
