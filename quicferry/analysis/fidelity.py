"""Judges what emulator and machine did in a run, so that nobody need ask whose a retransmission was."""

from __future__ import annotations

from quicferry.record import Manifest, RunResult

#: above these a run is marked: what it measured may be the machine's
MOST_LATE_P99_US = 1_000.0
MOST_OTHERS_PERCENT = 25.0
MOST_STEAL_PERCENT = 5.0


def add_fidelity(result: RunResult, manifest: Manifest) -> None:
    """Put the emulator's lateness and drops and the machine's load into the result; mark a disturbed run."""
    late = [_number(reading.read_back.get("late_p99_us")) for reading in manifest.links]
    dropped = [reading.read_back.get("queue_full_packets") for reading in manifest.links]
    missed = [reading.read_back.get("overrun_frames") for reading in manifest.links]
    known = [value for value in late if value is not None]
    counted = [value for value in dropped if isinstance(value, int)]
    if known:
        result.emulator_late_p99_us = round(max(known), 1)
    if counted:
        result.queue_full_packets = sum(counted)
    reasons = []
    if known and max(known) > MOST_LATE_P99_US:
        reasons.append(f"1 % of the packets of a link were more than {max(known) / 1e3:.1f} ms late")
    if any(isinstance(value, int) and value > 0 for value in missed):
        reasons.append("the cable was too slow to carry every frame")
    load = manifest.machine_load
    if load is not None:
        result.cpu_others_percent = load.others_percent
        result.cpu_steal_percent = load.steal_percent
        result.cpu_pressure_percent = load.pressure_percent
        if load.others_percent > MOST_OTHERS_PERCENT:
            reasons.append(f"others took {load.others_percent:.0f} % of the machine")
        if load.steal_percent > MOST_STEAL_PERCENT:
            reasons.append(f"a hypervisor took {load.steal_percent:.0f} % of the machine")
    if load is None and not known:
        return  # a run of an older version: nothing is known
    result.disturbed = bool(reasons)
    if reasons:
        result.warnings.append("disturbed: " + "; ".join(reasons))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
