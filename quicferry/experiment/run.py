"""One run, inside its private root: deploy, capture, start, load, move, load on, collect.

Whatever happens, what there is gets collected and the manifest says how it ended.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata

from quicferry import __version__
from quicferry.capture.capture import CaptureSession
from quicferry.capture.clock import realtime_minus_monotonic_ns
from quicferry.emulation.emulator import Emulator
from quicferry.emulation.links.layer import warnings_about
from quicferry.errors import EmulationError, FerryError, MigrationError, disk_error
from quicferry.events import Event, write_events
from quicferry.experiment.context import Deployment, RunContext, Service
from quicferry.experiment.itinerary import stops
from quicferry.experiment.machine import machine, source_digest
from quicferry.experiment.machine_load import LoadWatch
from quicferry.experiment.request_watch import RequestWatch, load_after_s
from quicferry.experiment.store import free_reserve
from quicferry.experiment.usage import note_usage
from quicferry.experiment.watch import Watch
from quicferry.migration.criu.versions import versions_of
from quicferry.migration.engines import registry
from quicferry.model import LinkReading
from quicferry.record import Clock, Manifest, RunPaths, write_json
from quicferry.slowness import announce, longer, measure

READY_S = 60.0
FULL_BYTES = 64 << 10  # a disk with less is full: a capture's buffer is larger
BETWEEN_MOVES_S = 1.1  # a client takes no two announcements within a second
PACKAGES = ("aioquic", "mininet", "cryptography", "grpcio", "pyroute2", "scapy", "polars", "msgspec")

MakeDeployment = Callable[[RunContext], Deployment]


def package_versions() -> dict[str, str]:
    """The versions of the packages whose behaviour shapes a result."""
    return {name: metadata.version(name) for name in PACKAGES} | {
        "python": platform.python_version(),
        "source": source_digest(),
    }


def perform(
    manifest: Manifest,
    paths: RunPaths,
    emulator: Emulator,
    make_deployment: MakeDeployment,
    on_event: Callable[[Event], None] | None = None,
    *,
    asks_every_ms: float | None = None,
    slower: float | None = None,
) -> Manifest:
    """Play one run and write all raw data; returns the manifest with the outcome.

    ``on_event`` hears of every event as it comes. ``asks_every_ms`` is from one request of the workload to
    the next, where that is not ``interval_ms``. ``slower`` is what ``slowness.measure`` said, for who has
    asked it already. Never raises ``FerryError``: a failed run is data too.
    Raises ``OSError`` when not even its end can be written down.
    """
    context = RunContext(manifest.spec, manifest.topology, paths, emulator, on_event)
    manifest.tool_version = __version__
    manifest.kernel = f"{platform.system()} {platform.release()}"
    manifest.versions |= package_versions()
    manifest.machine = machine()
    slower = measure() if slower is None else slower
    announce(slower)
    if slower > 1:
        context.warnings.append(
            f"this processor is {slower:g} times slower than usual (emulated?): the run waits so many times "
            "longer for what it has to do, not for leases and clients; measured times are of such a machine"
        )
    start_offset_ns = realtime_minus_monotonic_ns()
    try:
        manifest.versions |= versions_of(registry.get(manifest.spec.engine).programs)
        with emulator:
            every_ms = manifest.spec.interval_ms if asks_every_ms is None else asks_every_ms
            _play(manifest, context, make_deployment, every_ms)
        manifest.outcome = "succeeded"
    except FerryError as error:
        manifest.outcome = error.outcome if error.outcome != "invalid" else "failed"
        manifest.error, manifest.hint = str(error), error.hint
    except OSError as error:
        wrong = disk_error("the run could not go on", error)
        manifest.outcome, manifest.error, manifest.hint = "failed", str(wrong), wrong.hint
    finally:
        shutil.rmtree(context.credentials, ignore_errors=True)
        manifest.warnings += context.warnings
        manifest.clock = Clock(
            realtime_minus_monotonic_start_ns=start_offset_ns,
            realtime_minus_monotonic_end_ns=realtime_minus_monotonic_ns(),
        )
        _tell_of_directory(manifest, paths)
        _write_down(manifest, paths, context.collected())
    return manifest


def _tell_of_directory(manifest: Manifest, paths: RunPaths) -> None:
    """A run whose directory is gone, or whose disk is full, has failed for that."""
    also = f" ({manifest.error})" if manifest.error else ""
    if not paths.captures.is_dir():  # made before the run began
        paths.root.mkdir(parents=True, exist_ok=True)
        manifest.outcome, manifest.error = "failed", f"the run directory was removed during the run{also}"
        manifest.hint = (
            "leave directories that end in .partial alone: `quicferry clean` knows which are left over"
        )
        return
    if shutil.disk_usage(paths.root).free >= FULL_BYTES:
        return
    manifest.outcome, manifest.error = "failed", f"the disk with the run directory is full{also}"
    manifest.hint = "make room there, or give another place with --runs"


def _write_down(manifest: Manifest, paths: RunPaths, events: list[Event]) -> None:
    """Write events and manifest. On a full disk the manifest says so. Raises ``OSError`` when it cannot."""
    manifest.memory_by = memory_moved_by(events)
    try:
        write_events(paths.events, events)
    except OSError as error:
        wrong = disk_error("the events of the run could not be written", error)
        if manifest.error is None:
            manifest.outcome, manifest.error, manifest.hint = "failed", str(wrong), wrong.hint
        else:
            manifest.warnings.append(str(wrong))
        free_reserve(paths)
    write_json(paths.manifest, manifest)


def _play(
    manifest: Manifest, context: RunContext, make_deployment: MakeDeployment, asks_every_ms: float
) -> None:
    events, emulator, spec = context.events, context.emulator, context.spec
    with events.phase("run.deploy"):
        emulator.deploy(manifest.topology)
    client, source, destination = (context.part(part) for part in ("client", "source", "destination"))
    manifest.stops = list(stops(manifest.topology, spec))
    manifest.client_address = emulator.address(client)
    if spec.calibrate:
        with events.phase("run.calibrate"):
            emulator.calibrate()
    requests = RequestWatch()
    context.listeners.append(requests.heard)
    started: list[Service] = []
    captures = CaptureSession(emulator, context.paths.captures)
    context.members.append(captures)
    try:
        with Watch(context):
            with events.phase("run.start"):
                deployment = make_deployment(context)
                manifest.source_endpoint = str(context.service_endpoint(source))
                manifest.destination_endpoint = str(context.service_endpoint(destination))
                manifest.stop_endpoints = [str(context.service_endpoint(edge)) for edge in manifest.stops]
                manifest.place_by = context.place_by
                manifest.client_stops = context.client_stops
                hosts = [*manifest.topology.clients, source, destination, *manifest.stops]
                for service in deployment.services:
                    if (
                        service is deployment.services[-1]
                    ):  # the client: it is captured from its first packet on
                        manifest.interfaces = captures.start(hosts)
                    started.append(service)
                    service.start()
                    if service is deployment.services[0]:  # while it loads
                        captures.begin(hosts)
                    service.wait_ready(longer(READY_S))
            with events.phase("run.load"):
                emulator.begin()
                watch = LoadWatch()
                time.sleep(spec.before_s)
            for number in range(1, spec.moves + 1):
                if number > 1:
                    time.sleep(BETWEEN_MOVES_S)
                requests.wait_for(spec.move_when, asks_every_ms)
                with events.phase("run.migrate", number=number) as outcome, context.moving():
                    outcome |= deployment.move()
                if spec.moves > 1:
                    note_usage(events, ((name, pid) for name, of in context.watched.items() if (pid := of())))
            time.sleep(load_after_s(spec, asks_every_ms, context.longest_rtt_ms))
            manifest.machine_load = watch.load()
    finally:
        with events.phase("run.collect"):
            # the client first, and last what was started first: without the others it sends nothing measured
            last = min(1, len(started) - 1)
            problems = _stop_all(started[: last - 1 if last else None : -1])
            captures.ask_to_end()
            problems += _stop_all(started[:last])
            captures.stop()
            try:
                manifest.links = emulator.link_readings()
            except EmulationError as error:  # that of what has broken is told
                if not context.is_broken:
                    raise
                context.warnings.append(str(error))
            manifest.link_backend = link_backend(manifest.links)
            context.warnings += captures.warnings + warnings_about(manifest.links)
    if problems:
        raise problems[0]


def link_backend(readings: Sequence[LinkReading]) -> str:
    """What shaped the links of a run: ``netem``, ``cable``, or ``plain`` when none was shaped."""
    used = sorted({reading.backend for reading in readings} - {"plain"})
    return "+".join(used) or "plain"


def memory_moved_by(events: Iterable[Event]) -> str | None:
    """Who moved memory outside the downtime, as the engine says: ``agents``, ``criu``, None for nobody."""
    said = [
        event.detail.get("memory_by") for event in events if event.name == "migration.checkpoint.complete"
    ]
    return next((by for by in said if by), None)


def _stop_all(services: Sequence[Service]) -> list[FerryError]:
    """Stop everything, the client first, even when one of them will not."""
    problems: list[FerryError] = []
    for service in services:
        try:
            service.stop()
        except FerryError as error:
            problems.append(error)
        except OSError as error:
            problems.append(MigrationError(f"{service.name} could not be stopped: {error}"))
    return problems
