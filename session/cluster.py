"""A sweep on a Dask cluster: one run at a time on each machine, and one store, here.

Runs are handed out one by one, each to the worker of a machine that has none. When a worker is lost, its run
goes back to the front of those that wait and another machine makes it. Results come home packed
(``session.remote``) and are noted as those of runs made here.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from quicferry.errors import FerryError, InvalidInput, Unsupported
from quicferry.record import RunResult, differing, result_of
from session.remote import perform_here, unpack
from session.sweep import (
    OnResult,
    PlannedRun,
    SweepEnd,
    SweepStore,
    conditions_now,
    finish,
    require_space,
)

SCHEME = "dask"
WORKERS_S = 60.0  # how long a cluster may be without any worker
MOST_LOSSES = 3  # workers that one run may cost
_POLL_S = 0.5

Task = Callable[[bytes, dict[str, str]], bytes]


@contextmanager
def connected(executor: str) -> Iterator[Any]:
    """A client of the cluster that ``dask`` or ``dask://host:port`` names; ``dask`` starts one here.

    Raises ``InvalidInput`` for other words and ``Unsupported`` when the scheduler cannot be reached.
    """
    scheme, _, address = executor.partition("://")
    if scheme != SCHEME:
        raise InvalidInput(f"there is no executor {executor!r}", hint="give local, dask or dask://HOST:PORT")
    import distributed

    library: Any = distributed  # it has no types
    if address:
        try:
            with library.Client(f"tcp://{address}", timeout=10) as client:
                yield client
        except OSError as error:
            raise Unsupported(
                f"the scheduler {address} cannot be reached: {error}", hint="start one with `dask scheduler`"
            ) from error
        return
    # a process of its own, as elsewhere; its nanny starts it again when it is lost
    local = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with library.LocalCluster(**local) as cluster, library.Client(cluster) as client:
        yield client


def common_conditions(client: Any) -> dict[str, str]:
    """The conditions of all workers. Raises ``InvalidInput`` when they differ, ``Unsupported`` without."""
    _await_workers(client)
    known: dict[str, str] = {}
    for address, conditions in client.run(conditions_now).items():
        differences = differing(known, conditions)
        if differences:
            raise InvalidInput(
                f"the worker {address} differs from the others: " + "; ".join(differences),
                hint="runs of different machines or versions cannot be compared: leave it out",
            )
        known |= conditions
    return known


def _await_workers(client: Any) -> None:
    try:
        client.wait_for_workers(1, timeout=WORKERS_S)
    except TimeoutError as error:
        hint = "start some with `dask worker`, as root"
        raise Unsupported("the cluster has no worker", hint=hint) from error


def machines(client: Any) -> dict[str, str]:
    """One living worker of each machine: host -> address."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return {worker["host"]: address for address, worker in sorted(workers.items())}


def go_on_in_cluster(
    store: SweepStore,
    runs: Sequence[PlannedRun],
    client: Any,
    on_result: OnResult,
    budget_min: float | None = None,
    task: Task = perform_here,
) -> SweepEnd:
    """As ``session.sweep.go_on``, on the machines of a cluster.

    A run that costs ``MOST_LOSSES`` workers has failed. Raises what a run raises on its worker, and
    ``Unsupported`` when there is no worker for ``WORKERS_S``.
    """
    hall = _Hall(store, runs, client, task)
    until = None if budget_min is None else time.monotonic() + budget_min * 60
    try:
        while hall.waiting or hall.under_way:
            over = until is not None and time.monotonic() >= until
            if over and not hall.under_way:
                return SweepEnd(len(hall.waiting), f"the time budget of {budget_min:g} min is used up")
            hall.take_back_lost(on_result)
            if not over:
                hall.hand_out()
            hall.collect(on_result)
    finally:
        client.cancel(list(hall.under_way))
    return SweepEnd(0, None)


class _Hall:
    """The runs that wait, and those under way with the worker that has each."""

    def __init__(self, store: SweepStore, runs: Sequence[PlannedRun], client: Any, task: Task) -> None:
        self._store = store
        self._client = client
        self._task = task
        self.waiting = deque(runs)
        self.under_way: dict[Any, tuple[PlannedRun, str, str]] = {}  # future -> run, host, worker
        self._losses: Counter[int] = Counter()
        self._without_since: float | None = None

    def hand_out(self) -> None:
        """Give a run to each machine that has none."""
        busy = {host for _, host, _ in self.under_way.values()}
        for host, address in self._machines().items():
            if host in busy or not self.waiting:
                continue
            require_space(self._store.root)
            planned = self.waiting.popleft()
            asked = msgspec.json.encode(planned.spec)
            future = self._client.submit(
                self._task, asked, self._store.record.conditions,
                workers=[address], allow_other_workers=False, pure=False, retries=0,
            )  # fmt: skip
            self.under_way[future] = (planned, host, address)

    def _machines(self) -> dict[str, str]:
        """The machines there are. Raises ``Unsupported`` when there has been none for long."""
        found = machines(self._client)
        if found:
            self._without_since = None
        else:
            self._without_since = self._without_since or time.monotonic()
            if time.monotonic() - self._without_since > WORKERS_S:
                raise Unsupported(
                    "the cluster has no worker any more", hint="start some, then go on with --resume"
                )
        return found

    def take_back_lost(self, on_result: OnResult) -> None:
        """Let the runs of workers that are gone wait again, in front."""
        alive = set(self._client.scheduler_info(n_workers=-1)["workers"])
        for future, (planned, _, address) in list(self.under_way.items()):
            if address not in alive and future.status != "finished":
                future.cancel()
                del self.under_way[future]
                self._lost(planned, address, on_result)

    def _lost(self, planned: PlannedRun, address: str, on_result: OnResult) -> None:
        self._losses[planned.place] += 1
        if self._losses[planned.place] < MOST_LOSSES:
            self.waiting.appendleft(planned)
            return
        error = f"{MOST_LOSSES} workers were lost with this run, the last one {address}"
        finish(self._store, planned, result_of(planned.spec, "failed", error=error), on_result)

    def collect(self, on_result: OnResult) -> None:
        """Wait a moment for results, and note those that have come."""
        import distributed

        library: Any = distributed
        if not self.under_way:
            time.sleep(_POLL_S)
            return
        try:
            library.wait(list(self.under_way), timeout=_POLL_S, return_when="FIRST_COMPLETED")
        except TimeoutError:
            return
        for future in [future for future in self.under_way if future.done()]:
            planned, _, address = self.under_way.pop(future)
            result = self._result(future, planned, address, on_result)
            if result is not None:
                finish(self._store, planned, result, on_result)

    def _result(
        self, future: Any, planned: PlannedRun, address: str, on_result: OnResult
    ) -> RunResult | None:
        """What came of a run; None when its worker was lost. Raises what the run raised."""
        if future.status == "finished":
            return unpack(future.result(), self._store.root)
        error = future.exception() if future.status == "error" else None
        if isinstance(error, FerryError):
            raise error
        if error is not None and type(error).__name__ != "KilledWorker":
            raise FerryError(f"the worker {address} failed: {type(error).__name__}: {error}") from error
        self._lost(planned, address, on_result)
        return None
