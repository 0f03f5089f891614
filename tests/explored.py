"""A result of a run in which all is well, for tests that make one thing of it wrong."""

from __future__ import annotations

from quicferry.record import RunResult

GOOD = RunResult(
    outcome="succeeded",
    strategy="proactive-explicit",
    engine="handoff",
    seed=1,
    service_migration_time_ms=13.0,
    log_service_migration_time_ms=13.0,
    container_downtime_ms=4.0,
    connection_overhead_ms=12.0,
    requests_sent=10,
    requests_lost=0,
    requests_duplicated=0,
    bytes_verified=100,
    state_ok=True,
    served_by="destination",
)
