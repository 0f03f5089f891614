"""CRIU's own statistics of a dump and of a restore, read from its files ``stats-dump`` and ``stats-restore``.

Format: CRIU's ``images/stats.proto`` and ``criu/include/magic.h``.
"""

from __future__ import annotations

import struct

import msgspec

from quicferry.errors import MigrationError
from quicferry.migration.criu import protobuf


class DumpStats(msgspec.Struct, frozen=True, kw_only=True):
    """What CRIU measured of a dump, in its own names (``stats.proto``)."""

    freezing_time_us: int  # until all threads stood
    frozen_time_us: int  # for how long they stood
    memdump_time_us: int
    memwrite_time_us: int
    pages_scanned: int
    pages_written: int


class RestoreStats(msgspec.Struct, frozen=True, kw_only=True):
    """What CRIU measured of a restore, in its own names."""

    forking_time_us: int
    restore_time_us: int
    pages_restored: int


STATS_MAGIC = struct.pack("<II", 0x55105940, 0x57093306)  # criu/include/magic.h: IMG_SERVICE, STATS


def _stats(image: bytes, wanted_field: int) -> dict[int, int]:
    """The numbered values of one half of a stats image: field 1 is the dump's, field 2 the restore's.

    An image is a magic of 8 bytes, a 4-byte little-endian size and a ``StatsEntry`` of that size.
    """
    if not image.startswith(STATS_MAGIC) or len(image) < 12:
        raise MigrationError("not a stats image of CRIU")
    size = struct.unpack_from("<I", image, 8)[0]
    try:
        for number, entry in protobuf.fields(image[12 : 12 + size]):
            if number == wanted_field and isinstance(entry, bytes):
                return {key: value for key, value in protobuf.fields(entry) if isinstance(value, int)}
    except (IndexError, ValueError) as error:
        raise MigrationError(f"a stats image of CRIU is damaged: {error}") from error
    raise MigrationError("a stats image of CRIU has other contents than expected")


def read_dump_stats(image: bytes) -> DumpStats:
    """Decode ``stats-dump``. Raises ``MigrationError`` when it is something else."""
    values = _stats(image, 1)
    return DumpStats(
        freezing_time_us=values.get(1, 0),
        frozen_time_us=values.get(2, 0),
        memdump_time_us=values.get(3, 0),
        memwrite_time_us=values.get(4, 0),
        pages_scanned=values.get(5, 0),
        pages_written=values.get(7, 0),
    )


def read_restore_stats(image: bytes) -> RestoreStats:
    """Decode ``stats-restore``. Raises ``MigrationError`` when it is something else."""
    values = _stats(image, 2)
    return RestoreStats(
        forking_time_us=values.get(3, 0), restore_time_us=values.get(4, 0), pages_restored=values.get(5, 0)
    )
