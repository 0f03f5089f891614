"""Every fault of the table, in real runs: the server at one place, nothing lost, the connection goes on.

Most of a run is waiting, so some are performed at the same time; each test looks at its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from quicferry import process
from quicferry.events import read_events
from quicferry.experiment.faults import ROWS
from quicferry.record import RunPaths

CHECKOUT = Path(__file__).resolve().parents[2]
AT_ONCE = 4
RUN_S = 120.0
#: engines that copy memory ahead or behind
COPYING = (
    ("notice:source-agent-killed", "criu-pre-copy"),
    ("transfer:link-cut", "criu-pre-copy"),
    ("transfer:image-corrupted", "criu-hybrid"),
    ("commit:link-cut", "criu-post-copy"),
)
#: two at once, at one point or at two
TWO = (
    "restore:link-cut=8+restore:source-agent-killed",
    "commit:destination-agent-killed+commit:orchestrator-killed",
)
#: strategies that need no orchestrator
LOCAL_MOVES = (
    ("prepare:orchestrator-killed", "symmetric"),
    ("prepare:orchestrator-killed", "pool"),
    ("transfer:source-agent-killed", "symmetric"),
)
#: what CRIU makes different: images on disk, a process that is stopped and not only muted
WITH_CRIU = (
    *("transfer:destination-full", "transfer:image-corrupted", "restore:restore-fails"),
    *("notice:source-agent-killed", "restore:source-agent-killed", "commit:source-agent-killed"),
    *("checkpoint:source-agent-killed", "transfer:source-agent-killed"),
    *("transfer:destination-agent-killed", "restore:destination-agent-killed"),
    "commit:destination-agent-killed",
    *("transfer:orchestrator-killed", "transfer:client-silent", "commit:link-cut"),
)
#: what an OCI container makes different: runc's state, and a container that a successor has to find
WITH_RUNC = (
    *("transfer:source-agent-killed", "restore:restore-fails"),
    *("restore:destination-agent-killed", "commit:destination-agent-killed"),
)


class Case(NamedTuple):
    fault: str
    engine: str = "handoff"
    strategy: str = "proactive-explicit"

    def __str__(self) -> str:
        return "-".join(self)


EMULATED = pytest.mark.needs("mininet", "tcpdump", "tshark")
CRIU = pytest.mark.needs("mininet", "tcpdump", "tshark", "criu")
OCI = pytest.mark.needs("mininet", "tcpdump", "tshark", "oci")
LAZY = pytest.mark.needs("mininet", "tcpdump", "tshark", "criu", "criu-lazy-pages")
CASES = [
    *(pytest.param(Case(row.name), marks=EMULATED) for row in ROWS),
    # long enough for a deadline to come before the link does
    *(pytest.param(Case(f"{point}:link-cut=8"), marks=EMULATED) for point in ("transfer", "restore")),
    *(pytest.param(Case(fault, "criu-cold"), marks=CRIU) for fault in WITH_CRIU),
    *(pytest.param(Case(fault, "runc-cold"), marks=OCI) for fault in WITH_RUNC),
    *(pytest.param(Case(fault, engine), marks=LAZY) for fault, engine in COPYING),
    *(pytest.param(Case(faults), marks=EMULATED) for faults in TWO),
    *(pytest.param(Case(fault, "handoff", strategy), marks=EMULATED) for fault, strategy in LOCAL_MOVES),
]
PLACES = {row.name: row.places for row in ROWS}
Performed = dict[str, "Future[process.Result]"]


@pytest.fixture(scope="module")
def performed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Performed]:
    """The runs of all tests of this module that were asked for, some at a time."""
    folder = tmp_path_factory.mktemp("faults")

    def perform(case: Case) -> process.Result:
        return process.run(
            [
                *(CHECKOUT / "bin" / "quicferry", "run", "--json", "--runs", folder / str(case)),
                *(word for fault in case.fault.split("+") for word in ("--fault", fault)),
                *("--engine", case.engine, "--strategy", case.strategy),
                *("--before-s", "0.4", "--after-s", "0.4", "--interval-ms", "20"),
            ],
            check=False,
            timeout_s=RUN_S,
            cwd=Path("/"),
        )

    asked = [
        item.callspec.params.get("case")
        for item in request.session.items
        if item.path == request.path and isinstance(item, pytest.Function) and hasattr(item, "callspec")
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {str(case): pool.submit(perform, case) for case in asked if isinstance(case, Case)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_server_is_at_one_place_and_nothing_is_lost(case: Case, performed: Performed) -> None:
    done = performed[str(case)].result()
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stderr
    result: dict[str, Any] = json.loads(lines[0])
    assert result["outcome"] == "succeeded", done.stderr
    assert done.status == 0
    asked = case.fault.split("+")
    names = [fault.partition("=")[0] for fault in asked]
    assert result["fault"] == ", ".join(asked)
    assert all(result["served_by"] in PLACES[name] for name in names)
    assert (result["requests_lost"], result["requests_duplicated"], result["state_ok"]) == (0, 0, True)
    assert result["requests_sent"] > 10
    assert not [w for w in result["warnings"] if "nonce" in w or "could not be injected" in w]
    events = read_events(RunPaths(Path(result["run_dir"])).events)
    injected = [event.detail["fault"] for event in events if event.name == "fault.injected"]
    assert injected == names


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("transfer:earthquake", "transfer:link-cut"),
        ("teatime:link-cut", "commit:link-cut"),
        ("transfer", "transfer:link-cut"),
        ("transfer:image-corrupted=3", "for good"),
        ("transfer:link-cut=-1", "at most 60"),
        ("transfer:link-cut=soon", "at most 60"),
    ],
)
def test_unknown_faults_are_refused_with_those_there_are(tmp_path: Path, fault: str, words: str) -> None:
    done = process.run(
        [CHECKOUT / "bin" / "quicferry", "run", "--json", "--runs", tmp_path, "--fault", fault],
        check=False,
        cwd=Path("/"),
    )
    assert done.status == 2
    assert json.loads(done.stdout)["outcome"] == "invalid"
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []
