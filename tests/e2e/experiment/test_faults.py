"""Every fault of the table, in real runs: the server at one place, nothing lost, the connection goes on.

Most of a run is waiting, so some are performed at the same time; each test looks at its own. They are
played in this process, which has loaded and asked the machine once for all what each run needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.fault_matrix import AT_ONCE, Case, complaints, perform
from quicferry import process
from quicferry.experiment.faults import ROWS, FaultRow, engines_of
from quicferry.paths import CHECKOUT
from quicferry.record import RunResult

#: the same point and kind with an engine for which something else happens
COPYING = (
    ("notice:source-agent-killed", "criu-pre-copy"),
    ("transfer:link-cut", "criu-pre-copy"),
    ("transfer:image-corrupted", "criu-hybrid"),
    ("restore:image-corrupted", "criu-pre-copy"),
    ("restore:image-corrupted", "criu-hybrid"),
    ("commit:link-cut", "criu-post-copy"),
    ("commit:destination-agent-killed", "criu-pre-copy"),
    ("commit:destination-agent-killed", "criu-post-copy"),
    ("dump:source-agent-killed", "criu-post-copy"),
    ("pages:destination-agent-killed", "criu-hybrid"),
)
#: two at once, at one point or at two
TWO = (
    ("restore:link-cut=8+restore:source-agent-killed", "handoff"),
    ("commit:destination-agent-killed+commit:orchestrator-killed", "handoff"),
    ("pages:source-agent-killed+pages:destination-agent-killed", "criu-post-copy"),
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
    "restore:image-corrupted",
    *("notice:source-agent-killed", "restore:source-agent-killed", "commit:source-agent-killed"),
    *("checkpoint:source-agent-killed", "transfer:source-agent-killed"),
    *("transfer:destination-agent-killed", "restore:destination-agent-killed"),
    "commit:destination-agent-killed",
    *("transfer:orchestrator-killed", "transfer:client-silent", "commit:link-cut"),
)
#: what an OCI container makes different: runc's state, and a container that a successor has to find
WITH_RUNC = (
    *("transfer:source-agent-killed", "restore:restore-fails", "restore:image-corrupted"),
    *("restore:destination-agent-killed", "commit:destination-agent-killed"),
)
#: every other engine of containers, and every point, with one of them or another
OF_CONTAINERS = (
    ("notice:source-agent-killed", "runc-pre-copy"),
    ("copy:image-corrupted", "runc-pre-copy"),
    ("transfer:image-corrupted", "runc-hybrid"),
    ("pages:destination-agent-killed", "runc-hybrid"),
    ("restore:restore-fails", "runc-post-copy"),
    ("commit:link-cut", "runc-post-copy"),
    ("prepare:destination-full", "published-cold"),
    ("transfer:destination-full", "published-cold"),
    ("checkpoint:source-agent-killed", "published-post-copy"),
)
#: with which engine a row is performed that needs one of several: those that do least besides
LEAST = ("criu-cold", "criu-pre-copy", "criu-post-copy")

EMULATED = pytest.mark.needs("mininet", "tcpdump", "tshark")
CRIU = pytest.mark.needs("mininet", "tcpdump", "tshark", "criu")
OCI = pytest.mark.needs("mininet", "tcpdump", "tshark", "oci")
LAZY = pytest.mark.needs("mininet", "tcpdump", "tshark", "criu", "criu-lazy-pages")
LAZY_OCI = pytest.mark.needs("mininet", "tcpdump", "tshark", "oci", "criu-lazy-pages")
NEEDS = {
    "handoff": EMULATED,
    "criu-cold": CRIU,
    "criu-pre-copy": CRIU,
    "runc-cold": OCI,
    "runc-pre-copy": OCI,
    **dict.fromkeys(("runc-post-copy", "runc-hybrid"), LAZY_OCI),
    "published-cold": pytest.mark.needs("mininet", "tcpdump", "tshark", "oci", "rsync"),
    "published-post-copy": pytest.mark.needs(
        "mininet", "tcpdump", "tshark", "oci", "rsync", "criu-lazy-pages", "criu-page-server"
    ),
}


def param(fault: str, engine: str = "handoff", strategy: str = "proactive-explicit") -> object:
    return pytest.param(Case(fault, engine, strategy), marks=NEEDS.get(engine, LAZY))


def first_engine(row: FaultRow) -> str:
    engines = engines_of(row)
    return (
        "handoff"
        if engines is None or "handoff" in engines
        else next(each for each in LEAST if each in engines)
    )


CASES = [
    *(param(row.name, first_engine(row)) for row in ROWS),
    # long enough for a deadline to come before the link does
    *(param(f"{point}:link-cut=8") for point in ("transfer", "restore")),
    # long enough for the lease to run out: the clock decides, and all clients are served at the source
    param("restore:destination-agent-killed=6"),
    *(param(fault, "criu-cold") for fault in WITH_CRIU),
    *(param(fault, "runc-cold") for fault in WITH_RUNC),
    *(param(fault, engine) for fault, engine in (*COPYING, *OF_CONTAINERS)),
    *(param(faults, engine) for faults, engine in TWO),
    *(param(fault, "handoff", strategy) for fault, strategy in LOCAL_MOVES),
]
Performed = dict[str, "Future[RunResult]"]


@pytest.fixture(scope="module")
def performed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Performed]:
    """The runs of all tests of this module that were asked for, some at a time."""
    folder = tmp_path_factory.mktemp("faults")
    spec = [
        item.callspec.params.get("case")
        for item in request.session.items
        if item.path == request.path and isinstance(item, pytest.Function) and hasattr(item, "callspec")
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            str(case): pool.submit(perform, case, folder / str(case))
            for case in spec
            if isinstance(case, Case)
        }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_server_is_at_one_place_and_nothing_is_lost(case: Case, performed: Performed) -> None:
    result = performed[str(case)].result()
    assert complaints(case, result) == []
    assert result.fault == ", ".join(case.faults)


@pytest.mark.needs("mininet", "tcpdump", "tshark")
def test_the_command_tells_of_the_fault(tmp_path: Path) -> None:
    done = process.run(
        [
            *(CHECKOUT / "bin" / "quicferry", "run", "--json", "--runs", tmp_path),
            *("--fault", "transfer:image-corrupted", "--before-s", "0.3", "--after-s", "0.3"),
        ],
        check=False,
        timeout_s=60.0,
        cwd=Path("/"),
    )
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert (done.status, result["outcome"]) == (0, "succeeded"), done.stderr
    assert (result["fault"], result["served_by"]) == ("transfer:image-corrupted", "source")


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
