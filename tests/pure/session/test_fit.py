"""A move that its link cannot carry in time is refused before anything is built, with the estimate."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from apps.config import ClientConfig, ServerConfig
from quicferry.errors import InvalidInput, Unsupported
from quicferry.migration.order import Deadlines
from session import fit
from session.request import parts_of, to_spec

SLOW = {"memory_mib": 100, "inter_edge_mbps": 1.0}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        # the case of the issue: 100 MiB by cold over 1 Mbit/s
        ({"engine": "criu-cold", **SLOW}, ("109 MB", "871 s", "30 s")),
        ({"engine": "runc-cold", "memory_mib": 100, "inter_edge_mbps": 20.0}, ("in the downtime",)),
        # memory that follows the server: without all of it the service is lost
        (
            {"engine": "criu-post-copy", "memory_mib": 100, "inter_edge_mbps": 1.0},
            ("after the downtime", "120 s"),
        ),
        (
            {"engine": "criu-pre-copy", "memory_mib": 100, "inter_edge_mbps": 1.0},
            ("before the downtime", "120 s"),
        ),
        # rewritten faster than it crosses: all of it is left for the end
        (
            {"engine": "criu-pre-copy", "memory_mib": 100, "inter_edge_mbps": 20.0, "dirty_mib_s": 50.0},
            ("in the downtime",),
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_the_estimate(values: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput) as caught:
        to_spec(values)
    for word in ("cannot fit", *words):
        assert word in str(caught.value)
    assert "--inter-edge-mbps" in (caught.value.hint or "")
    assert "handoff" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "values",
    [
        {"engine": "criu-cold", "memory_mib": 100},
        {"engine": "criu-cold", "memory_mib": 100, "inter_edge_mbps": 50.0},
        {"engine": "criu-pre-copy", "memory_mib": 100, "inter_edge_mbps": 20.0},
        {"engine": "criu-hybrid", "memory_mib": 100, "inter_edge_mbps": 20.0},
        {"engine": "handoff", "memory_mib": 4096, "inter_edge_mbps": 0.1},
        {"engine": "criu-cold", "inter_edge_mbps": 5.0},
    ],
)
def test_what_fits_is_not_refused(values: dict[str, Any]) -> None:
    assert to_spec(values).engine == values["engine"]


FAR = {"moves": 2, "pool": 3, "route": "round", "rtt_ms": 8.0}  # the second by way of the core network


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"engine": "criu-post-copy", "memory_by": "criu"}, "leave out --memory-by"),
        ({"engine": "runc-post-copy", "memory_by": "criu"}, "leave out --memory-by"),
        ({"engine": "published-post-copy"}, "choose --engine runc-post-copy"),
    ],
)
def test_pages_that_each_cost_a_round_trip_are_refused_where_that_is_long(
    values: dict[str, Any], hint: str
) -> None:
    with pytest.raises(InvalidInput, match=r"16 ms from edge-2 to edge-3; 270 pages take 4\.3 s") as caught:
        to_spec(values | FAR)
    assert hint in str(caught.value.hint)
    to_spec(values | FAR | {"rtt_ms": 4.0})
    neighbours = {name: value for name, value in FAR.items() if name not in ("moves", "route")}
    to_spec(values | neighbours)
    to_spec(values | FAR | {"engine": "criu-post-copy", "memory_by": "agents"})


def test_files_that_do_not_come_before_the_downtime_are_refused() -> None:
    files = {"engine": "runc-pre-copy", "disk_mib": 500}
    to_spec(files)
    with pytest.raises(InvalidInput, match=r"500 MiB of files cross .* at 20 Mbit/s in about 210 s"):
        to_spec({**files, "inter_edge_mbps": 20.0})
    # over a long way one window of TCP for each round trip is all that there is
    with pytest.raises(InvalidInput, match=r"from edge-2 to edge-3 at 28 Mbit/s in about 150 s"):
        to_spec({**files, **FAR, "rtt_ms": 600.0})


def test_memory_that_a_long_way_holds_up_is_refused_with_advice_that_helps() -> None:
    with pytest.raises(InvalidInput, match=r"MB cross .* at 28 Mbit/s") as caught:
        to_spec({"engine": "criu-cold", "memory_mib": 200, **FAR, "rtt_ms": 600.0})
    assert "--route between neighbours" in str(caught.value.hint)
    assert "--inter-edge-mbps" not in str(caught.value.hint)


def test_a_rate_is_told_without_an_exponent() -> None:
    with pytest.raises(InvalidInput, match=r"at 1000 Mbit/s"):
        to_spec({"engine": "criu-cold", "memory_mib": 4096, "inter_edge_mbps": 1000.0})


def test_the_way_of_every_move_counts() -> None:
    spec = to_spec({"engine": "runc-cold", **FAR, "inter_edge_mbps": 20.0})
    ways = fit.legs(parts_of(spec).topology, spec)
    assert ways == [("edge-1", "edge-2", 0.5, 20.0), ("edge-2", "edge-3", 16.0, None)]


def test_a_freeze_is_bounded_well_below_the_clients_idle_timeout() -> None:
    kinds = (ClientConfig, ServerConfig)
    fields = [field for kind in kinds for field in msgspec.structs.fields(kind)]
    idle_s = min(field.default for field in fields if field.name == "idle_timeout_s")
    limits = Deadlines()
    # the source serves again at the latest when lease, commit and its margin are over
    assert limits.freeze_s + limits.commit_s + 1.0 < 0.7 * idle_s


def test_a_run_that_memory_cannot_hold_is_refused_with_the_estimate() -> None:
    """The kernel killed others for the files of three containers, each of 4 GiB."""
    large = to_spec({"engine": "runc-cold", "disk_mib": 4096})
    with pytest.raises(Unsupported, match=r"keeps about 12800 MiB .* and 8192 MiB are available"):
        fit.check_memory(large, 8 << 30)
    fit.check_memory(large, 16 << 30)
    fit.check_memory(to_spec({}), 1 << 20)  # nothing is added: that it starts at all is not asked here
