"""``quicferry faults`` as its reader and as its script see it."""

from __future__ import annotations

import json

import pytest

from cli import main
from quicferry.experiment.faults import ROWS


def test_every_fault_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.call(["faults", "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["fault"] for each in listed] == [row.name for row in ROWS]
    for each in listed:
        assert each["fault"] == f"{each['point']}:{each['kind']}"
        assert set(each["served_by"]) <= {"source", "destination"} and each["served_by"]
        assert each["when"] and each["how"] and each["why"]


def test_the_table_has_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.call(["faults"]) == 0
    out = capsys.readouterr().out
    assert all(row.name in out for row in ROWS)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--fault", "transfer:earthquake"], "transfer:link-cut"),
        (["--fault", "notice:link-cut", "--strategy", "symmetric"], "proactive-explicit"),
        (["--fault", "transfer:link-cut", "--moves", "2"], "--moves"),
        (["--plain-clients", "3", "--clients", "2"], "--clients"),
        (["--clients", "2001"], "2000"),
        (["--clients", "501", "--access", "own"], "500"),
        (["--clients", "501", "--baseline", "tcp-dns"], "500"),
        (["--moves", "0"], "1000"),
        (["--clients", "2", "--download-mib", "1"], "--download-mib"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    assert main.call(["run", "--json", *arguments]) == 2
    written = capsys.readouterr()
    assert json.loads(written.out)["outcome"] == "invalid"
    assert word in written.err
