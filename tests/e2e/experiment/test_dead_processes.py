"""Whoever a run stands on is killed or stopped: the run ends soon, says who it was, and leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from _pytest.mark.structures import ParameterSet

from bench.process_faults import ENDS_S, Case, Seen, perform

#: what is done, and the words by which the run tells of it; ``make process-faults`` does all
CASES = {
    Case("destination's agent", "KILL", "before"): "agent-edge-2 was killed by SIGKILL",
    Case("orchestrator", "KILL", "before"): "orchestrator was killed by SIGKILL",
    Case("client", "KILL", "before"): "client was killed by SIGKILL",
    Case("cable", "KILL", "before"): "the cable was killed by SIGKILL",
    Case("orchestrator", "STOP", "during"): "orchestrator stands still (SIGSTOP)",
    Case("conductor", "STOP", "before"): "the process that conducts the run stands still (SIGSTOP)",
}
AT_ONCE = 4


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Case, Future[Seen]]]:
    folder = tmp_path_factory.mktemp("dead")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {case: pool.submit(perform, case, folder / str(number)) for number, case in enumerate(CASES)}


def rows() -> list[ParameterSet]:
    return [
        pytest.param(case, id=str(case), marks=pytest.mark.needs("criu") if case.moment == "during" else ())
        for case in CASES
    ]


@pytest.mark.needs("mininet", "tshark", "shaped-link")
@pytest.mark.parametrize("case", rows())
def test_the_run_ends_soon_and_names_who_it_was(case: Case, ended: dict[Case, Future[Seen]]) -> None:
    seen = ended[case].result()
    assert CASES[case] in seen.error
    # what is left, a status that is not 1, or a victim that is not named
    assert [what for what in seen.wrong if not what.startswith("noticed after")] == []
    assert seen.took_s < ENDS_S
