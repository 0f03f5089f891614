"""Merges the captures of a run and embeds their keys, for Wireshark.

``derived/merged.pcapng`` holds all captures of a run and opens decrypted with a double click. It holds
traffic secrets, as the run's ``secrets/`` does; they are worth nothing outside the run, whose
connections are over.

Wireshark 4.0 loses its way when it sees a QUIC key update from two vantage points at once: packets
of the old phase that reach one host after packets of the new one left another are not opened, nor
what follows. For runs with key updates take one host at a time (``host="client"``). Our own
decryption does not care.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from quicferry import process
from quicferry.errors import CaptureError
from quicferry.record import RunPaths
from quicferry.units import NS_PER_S


def merge_captures(run_dir: Path, host: str | None = None) -> Path:
    """Write ``derived/merged.pcapng``, or ``derived/<host>.pcapng`` with one host's capture only.

    Returns its path. Raises ``CaptureError`` when there is no such capture, ``Unsupported`` without
    Wireshark's tools and ``CommandFailed`` when one of them fails.
    """
    paths = RunPaths(run_dir)
    captures = sorted(paths.captures.glob("*.pcapng"))
    if not captures:
        raise CaptureError(f"{run_dir} has no captures")
    chosen = [capture for capture in captures if host in (None, capture.stem)]
    if not chosen:
        raise CaptureError(
            f"{run_dir} has no capture of {host}",
            hint="it has: " + ", ".join(capture.stem for capture in captures),
        )
    paths.derived.mkdir(exist_ok=True)
    merged = paths.derived / f"{host or 'merged'}.pcapng"
    plain = merged.with_suffix(".pcapng.partial")
    # -I none: interfaces of one name are kept apart, so that each host stays recognisable
    process.run(["mergecap", "-I", "none", "-w", plain, *chosen])
    if paths.keys.is_file() and paths.keys.stat().st_size:
        process.run(["editcap", "--inject-secrets", f"tls,{paths.keys}", plain, merged])
        plain.unlink()
    else:
        plain.replace(merged)
    merged.chmod(0o600)
    return merged


def tshark_streams(capture: Path, keylog: Path, port: int) -> pl.DataFrame:
    """STREAM frames as tshark decrypts them: t_ns (the file's stamps), stream_id, offset, length.

    The cross-check of our own decryption. Raises ``Unsupported`` and ``CommandFailed``.
    """
    argv: list[str | Path] = ["tshark", "-n", "-r", capture, "-o", f"tls.keylog_file:{keylog}"]
    argv += ["-d", f"udp.port=={port},quic", "-Y", "quic.stream.stream_id", "-T", "json", "-J", "frame quic"]
    rows: list[tuple[int, int, int, int]] = []
    for packet in json.loads(process.run(argv, timeout_s=300).stdout, object_pairs_hook=_pairs):
        layers = _first(_first(packet, "_source"), "layers")
        seconds, _, fraction = str(_first(_first(layers, "frame"), "frame.time_epoch")).partition(".")
        t_ns = int(seconds) * NS_PER_S + int(fraction.ljust(9, "0")[:9])
        for stream in _find(layers, "quic.stream.stream_id", "quic.stream.length", "quic.stream.offset"):
            length = stream.get("quic.stream.length")
            rows.append(
                (
                    t_ns,
                    int(stream["quic.stream.stream_id"]),
                    int(stream.get("quic.stream.offset", "0")),
                    -1 if length is None else int(length),
                )
            )
    return pl.DataFrame(
        rows,
        schema={"t_ns": pl.Int64, "stream_id": pl.Int64, "offset": pl.Int64, "length": pl.Int64},
        orient="row",
    )


Pairs = list[tuple[str, object]]  # an object of JSON whose keys may repeat, as tshark writes them


def _pairs(pairs: Pairs) -> Pairs:
    return pairs


def _first(value: object, key: str) -> object:
    if isinstance(value, list):
        for pair in value:
            if isinstance(pair, tuple) and pair[0] == key:
                return pair[1]
    return None


def _find(value: object, anchor: str, *fields: str) -> list[dict[str, str]]:
    """Every object that has ``anchor``, with the fields wanted, at any depth."""
    if not isinstance(value, list):
        return []
    found = []
    own = {pair[0]: pair[1] for pair in value if isinstance(pair, tuple) and isinstance(pair[1], str)}
    if anchor in own:
        found.append({key: own[key] for key in (anchor, *fields) if key in own})
    for each in value:
        inner = each[1] if isinstance(each, tuple) else each
        found += _find(inner, anchor, *fields)
    return found
