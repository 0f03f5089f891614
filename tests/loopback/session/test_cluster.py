"""A sweep on a Dask cluster whose workers are processes of their own; one is killed in the middle."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import msgspec
import pytest
import zstandard

from quicferry.errors import InvalidInput, StoreError, Unsupported
from quicferry.paths import CHECKOUT
from quicferry.process import DEVNULL, Popen, spawn, stop
from quicferry.record import result_of
from quicferry.spec import RunSpec
from session import cluster
from session.cluster import common_conditions, connected, go_on_in_cluster, machines
from session.remote import Entry, Parcel, pack, unpack
from session.scenario import Scenario
from session.sweep import SweepStore, conditions_now, pending, plan
from tests.loopback.session.cluster_task import MARK, REFUSED_SEED, make_directory
from tests.pure.session.sweep_support import run_directory

SCENARIO = Scenario(repetitions=4, warm_up=1, sweep={"strategy": ["symmetric", "pool"]})
# distributed leaves sockets to the collector of garbage
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


class Cluster:
    """A scheduler here, and workers in processes of their own, each as if on a machine of its own."""

    def __init__(self, folder: Path) -> None:
        self._scheduler: Any = distributed.LocalCluster(
            n_workers=0, dashboard_address="127.0.0.1:0", host="127.0.0.1"
        )
        self.client: Any = distributed.Client(self._scheduler)
        self._folder = folder
        self.mark = folder / "mark"
        self.workers: list[Popen[bytes]] = []

    @property
    def executor(self) -> str:
        """What ``--executor`` would be given."""
        return "dask://" + str(self._scheduler.scheduler_address).partition("://")[2]

    def add(self, host: str) -> None:
        """Start a worker at an address of its own: that is what tells one machine from another."""
        env = os.environ | {"PYTHONPATH": str(CHECKOUT), MARK: str(self.mark)}
        words = [*("-m", "distributed.cli.dask_worker", self._scheduler.scheduler_address, "--no-nanny")]
        words += ["--nthreads", "1", "--no-dashboard", "--host", host, "--local-directory", str(self._folder)]
        self.workers.append(
            spawn([sys.executable, *words], env=env, cwd=CHECKOUT, stdout=DEVNULL, stderr=DEVNULL)
        )

    def close(self) -> None:
        """End all of it."""
        for worker in self.workers:
            stop(worker)
        self.client.close()
        self._scheduler.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    return SweepStore.create(tmp_path / "sweep", SCENARIO, conditions_now())


def test_a_sweep_survives_a_worker_that_is_killed_in_the_middle(running: Cluster, store: SweepStore) -> None:
    running.add("127.0.0.1")
    running.add("127.0.0.2")
    running.client.wait_for_workers(2, timeout=60)
    assert set(machines(running.client)) == {"127.0.0.1", "127.0.0.2"}
    assert common_conditions(running.client)["kernel"] == conditions_now()["kernel"]

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not running.mark.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(int(running.mark.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    told: list[int] = []
    end = go_on_in_cluster(
        store, pending(store, SCENARIO), running.client, lambda planned, _: told.append(planned.place),
        task=make_directory,
    )  # fmt: skip
    killer.join()
    assert end == (0, None)
    rows = store.rows()
    assert [row.place for row in rows] == [run.place for run in plan(SCENARIO)]
    assert sorted(told) == [row.place for row in rows]  # each once
    assert all(row.result.outcome == "succeeded" for row in rows)
    makers = {(store.root / str(row.result.run_id) / "events.jsonl").read_text().strip() for row in rows}
    assert len(makers) == 2
    assert makers <= {str(worker.pid) for worker in running.workers}
    killed = [worker for worker in running.workers if worker.poll() is not None]
    assert len(killed) == 1
    assert list(store.root.glob("*.partial")) == []
    assert pending(store, SCENARIO) == []


def test_a_machine_has_one_run_at_a_time_however_many_workers_it_has(
    running: Cluster, store: SweepStore
) -> None:
    running.add("127.0.0.1")
    running.add("127.0.0.1")
    running.client.wait_for_workers(2, timeout=60)
    assert len(machines(running.client)) == 1
    running.mark.write_text("nobody waits")
    most = 0
    hand_out = cluster._Hall.hand_out

    def watched(hall: Any) -> None:
        nonlocal most
        hand_out(hall)
        most = max(most, len(hall.under_way))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster._Hall, "hand_out", watched)
        go_on_in_cluster(
            store, pending(store, SCENARIO), running.client, lambda *_: None, task=make_directory
        )
    assert most == 1
    assert len(store.rows()) == 9


def test_what_a_worker_refuses_ends_the_sweep(running: Cluster, tmp_path: Path) -> None:
    scenario = Scenario(warm_up=0, run={"seed": REFUSED_SEED})
    store = SweepStore.create(tmp_path / "other", scenario, conditions_now())
    running.add("127.0.0.1")
    running.client.wait_for_workers(1, timeout=60)
    with pytest.raises(InvalidInput, match="another machine") as caught:
        go_on_in_cluster(
            store, pending(store, scenario), running.client, lambda *_: None, task=make_directory
        )
    assert caught.value.hint == "leave it out"
    assert store.rows() == []


def test_a_cluster_without_workers_or_scheduler_is_told(
    running: Cluster, store: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WORKERS_S", 0.3)
    with pytest.raises(Unsupported, match="no worker"):
        common_conditions(running.client)
    with pytest.raises(Unsupported, match="no worker any more"):
        go_on_in_cluster(
            store, pending(store, SCENARIO), running.client, lambda *_: None, task=make_directory
        )
    with connected(running.executor) as client:
        assert machines(client) == {}
    with pytest.raises(InvalidInput, match="no executor 'slurm'"), connected("slurm"):
        pass


def test_a_run_comes_home_whole(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    made = run_directory(there, RunSpec(), number=1, time_ms=12.5)
    found = unpack(pack(made), here)
    assert found.run_dir == str(here / str(made.run_id))
    assert found.service_migration_time_ms == 12.5
    assert (here / str(made.run_id) / "manifest.json").read_bytes() == (
        there / str(made.run_id) / "manifest.json"
    ).read_bytes()
    nothing = unpack(pack(result_of(RunSpec(), "unsupported", error="no root")), here)
    assert (nothing.outcome, nothing.run_dir) == ("unsupported", None)
    outside = msgspec.structs.replace(made, run_dir=None)
    parcel = Parcel(outside, "run", [Entry("../out", 0o600, b"")])
    with pytest.raises(StoreError, match="a worker sent"):
        unpack(zstandard.compress(msgspec.msgpack.encode(parcel)), here)
    assert not (here / "out").exists()
    with pytest.raises(StoreError, match="cannot write"):
        unpack(pack(made), tmp_path / "here" / str(made.run_id) / "manifest.json")
