"""Manifests of every version are read; what none wrote is refused with the file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import topologies
from quicferry.errors import StoreError
from quicferry.record import FORMAT_VERSION, Manifest, RunPaths, read_manifest, write_json
from quicferry.spec import Fault, FaultKind, FaultPoint, RunSpec

TOPOLOGY = topologies.get("one_lan").build()


def written(root: Path, **changes: Any) -> Path:
    """A run directory with a manifest, changed as told; None takes a key out."""
    path = RunPaths(root).manifest
    write_json(path, Manifest(id="x", created="2026-01-01", spec=RunSpec(), topology=TOPOLOGY))
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return root


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read_manifest(written(tmp_path)).spec == RunSpec()


def test_a_manifest_of_version_1_is_read(tmp_path: Path) -> None:
    asked = {"strategy": "pool", "pool": 3, "faults": ["transfer:link-cut=2.5", "notice:client-refusing"]}
    manifest = read_manifest(written(tmp_path, format_version=1, spec=None, asked=asked))
    assert (manifest.format_version, str(manifest.spec.strategy), manifest.spec.pool) == (
        FORMAT_VERSION,
        "pool",
        3,
    )
    assert manifest.spec.faults == (
        Fault(point=FaultPoint.TRANSFER, kind=FaultKind.LINK_CUT, seconds=2.5, words="transfer:link-cut=2.5"),
        Fault(
            point=FaultPoint.NOTICE,
            kind=FaultKind.CLIENT_REFUSING,
            seconds=None,
            words="notice:client-refusing",
        ),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": FORMAT_VERSION + 1},
        {"format_version": 0},
        {"format_version": None},
        {"spec": {"pool": "many"}},
        {"spec": {"pool": 9}},
        {"spec": {"fairies": 1}},
        {"spec": None},
        {"format_version": 1, "spec": None, "asked": {"faults": ["nonsense"]}},
        {"format_version": 1, "spec": None, "asked": {"faults": [1]}},
        {"format_version": 1, "spec": None, "asked": {"faults": ["transfer:link-cut=soon"]}},
        {"format_version": 1, "spec": None, "asked": ["pool"]},
        {"topology": []},
    ],
    ids=str,
)
def test_what_cannot_be_a_manifest_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=r"manifest\.json") as refused:
        read_manifest(written(tmp_path, **changes))
    assert refused.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"text"'])
def test_no_json_object_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    RunPaths(written(tmp_path)).manifest.write_bytes(content)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        read_manifest(tmp_path)
