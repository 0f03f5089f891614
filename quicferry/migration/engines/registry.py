"""The table of engines: one row for each, with all that the rest of the program asks about an engine.

A row is an ``EngineEntry``. Nothing may be decided by an engine's *name*: what a run needs of the machine,
whether memory moves outside of the downtime, where the server runs, which faults can happen, all follows
from the row. So an engine from outside works by its row alone. It comes as an entry point of the group
``quicferry.engines`` or in the tuple ``ENGINES`` of a plug-in file (see ``quicferry.plugins``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import cast

import msgspec

from quicferry import plugins
from quicferry.errors import InvalidInput
from quicferry.migration.engines.base import Engine, EngineContext
from quicferry.migration.order import AUTO_MEMORY_BY, MoveOrder

GROUP = "quicferry.engines"
#: Ends the name of an implementation in which CRIU itself moves the memory.
BY_CRIU = "/criu"


class CriuVariant(msgspec.Struct, frozen=True, kw_only=True):
    """A second implementation of an engine, in which CRIU's own machinery moves the memory."""

    implementation: str  # "module:class"
    needs: tuple[str, ...] = ()  # probes of `quicferry doctor`, besides those of the engine


class EngineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an engine without loading it."""

    name: str
    title: str  # one sentence: how the server moves
    implementation: str  # "module:class"; the class is called with an ``EngineContext``
    needs: tuple[str, ...] = ()  # probes of `quicferry doctor`, those that fewer machines pass first
    programs: tuple[str, ...] = ()  # that move the process; a run's manifest has their versions
    packs_images: bool = False  # images of memory cross, which ``compression`` packs
    copies_ahead: bool = False  # memory crosses before the freeze (``base.CopiesAhead``)
    keeps_source: bool = False  # memory crosses after the commit (``base.KeepsSource``)
    runs_in_oci: bool = False  # the server runs in an OCI container that runc makes
    by_podman: bool = False  # and Podman has runc make it
    starts_criu: bool = False  # CRIU is a process that the agent starts, and that a fault can kill
    moves_kernel_state: bool = False  # what the kernel has of the process, such as TCP connections, moves too
    as_published: bool = False  # the published procedure and nothing more: no late datagrams, no server first
    on_base_image: str | None = None  # "module:class" where both edges have a base image of the server
    by_criu: CriuVariant | None = None  # for ``memory_by`` "criu"

    @property
    def is_long(self) -> bool:
        """Whether a move takes longer than its downtime: memory crosses before or after it."""
        return self.copies_ahead or self.keeps_source

    def memory_by(self, chosen: str) -> str | None:
        """Who moves the memory with ``memory_by`` as chosen; None where it all goes at once."""
        if not self.is_long:
            return None
        return AUTO_MEMORY_BY if chosen == "auto" else chosen

    def needs_with(self, chosen: str) -> list[str]:
        """The probes of `quicferry doctor` that a move needs with ``memory_by`` as chosen."""
        variant = self.by_criu if self.memory_by(chosen) == "criu" else None
        return [*self.needs, *(variant.needs if variant is not None else ())]


_COPY = "quicferry.migration.engines.criu.agent_copy"
_NATIVE = "quicferry.migration.engines.criu.native_copy"
_RUNC = "quicferry.migration.engines.criu.runc"
_NATIVE_RUNC = "quicferry.migration.engines.criu.native_runc"
_PUBLISHED = "quicferry.migration.engines.criu.published"
_PODMAN = "quicferry.migration.engines.criu.podman"

OWN = (
    EngineEntry(
        name="handoff",
        title="A warm server at the destination takes over connections and service state; no process moves.",
        implementation="quicferry.migration.engines.handoff:HandoffEngine",
    ),
    EngineEntry(
        name="criu-cold",
        title="CRIU dumps the stopped process, all of its memory crosses, CRIU restores it.",
        implementation="quicferry.migration.engines.criu.cold:CriuColdEngine",
        on_base_image=f"{_COPY}:CriuColdOnBaseEngine",
        needs=("criu",),
        programs=("criu",),
        packs_images=True,
        starts_criu=True,
        moves_kernel_state=True,
    ),
    EngineEntry(
        name="criu-pre-copy",
        title="Memory is copied in rounds while the server serves; the rest crosses in the downtime.",
        implementation=f"{_COPY}:CriuPreCopyEngine",
        needs=("criu",),
        programs=("criu",),
        packs_images=True,
        copies_ahead=True,
        starts_criu=True,
        by_criu=CriuVariant(implementation=f"{_NATIVE}:NativePreCopyEngine", needs=("criu-tracking",)),
    ),
    EngineEntry(
        name="criu-post-copy",
        title="The process is restored without its memory, which follows while it runs.",
        implementation=f"{_COPY}:CriuPostCopyEngine",
        on_base_image=f"{_COPY}:CriuPostCopyOnBaseEngine",
        needs=("criu", "criu-lazy-pages"),
        programs=("criu",),
        packs_images=True,
        keeps_source=True,
        starts_criu=True,
        by_criu=CriuVariant(implementation=f"{_NATIVE}:NativePostCopyEngine", needs=("criu-page-server",)),
    ),
    EngineEntry(
        name="criu-hybrid",
        title="Memory is copied in rounds while the server serves; the rest follows once it runs.",
        implementation=f"{_COPY}:CriuHybridEngine",
        needs=("criu", "criu-lazy-pages"),
        programs=("criu",),
        packs_images=True,
        copies_ahead=True,
        keeps_source=True,
        starts_criu=True,
        by_criu=CriuVariant(
            implementation=f"{_NATIVE}:NativeHybridEngine", needs=("criu-tracking", "criu-page-server")
        ),
    ),
    EngineEntry(
        name="runc-cold",
        title="As criu-cold, for a server that runc runs as an OCI container.",
        implementation=f"{_RUNC}:RuncColdEngine",
        on_base_image=f"{_RUNC}:RuncColdOnBaseEngine",
        needs=("oci",),
        programs=("criu", "runc"),
        packs_images=True,
        runs_in_oci=True,
        moves_kernel_state=True,
    ),
    EngineEntry(
        name="runc-pre-copy",
        title="As criu-pre-copy, for a server that runc runs as an OCI container.",
        implementation=f"{_RUNC}:RuncPreCopyEngine",
        needs=("oci-lazy-pages", "oci"),
        programs=("criu", "runc"),
        packs_images=True,
        copies_ahead=True,
        runs_in_oci=True,
        by_criu=CriuVariant(
            implementation=f"{_NATIVE_RUNC}:RuncNativePreCopyEngine", needs=("oci-pre-dump",)
        ),
    ),
    EngineEntry(
        name="runc-post-copy",
        title="As criu-post-copy, for a server that runc runs as an OCI container.",
        implementation=f"{_RUNC}:RuncPostCopyEngine",
        on_base_image=f"{_RUNC}:RuncPostCopyOnBaseEngine",
        needs=("oci-lazy-pages", "oci", "criu-lazy-pages"),
        programs=("criu", "runc"),
        packs_images=True,
        keeps_source=True,
        runs_in_oci=True,
        by_criu=CriuVariant(
            implementation=f"{_NATIVE_RUNC}:RuncNativePostCopyEngine", needs=("criu-page-server",)
        ),
    ),
    EngineEntry(
        name="runc-hybrid",
        title="As criu-hybrid, for a server that runc runs as an OCI container.",
        implementation=f"{_RUNC}:RuncHybridEngine",
        needs=("oci-lazy-pages", "oci", "criu-lazy-pages"),
        programs=("criu", "runc"),
        packs_images=True,
        copies_ahead=True,
        keeps_source=True,
        runs_in_oci=True,
        by_criu=CriuVariant(
            implementation=f"{_NATIVE_RUNC}:RuncNativeHybridEngine",
            needs=("oci-pre-dump", "criu-page-server"),
        ),
    ),
    EngineEntry(
        name="podman-cold",
        title="Podman checkpoints the server's container into an archive and restores it from that.",
        implementation=f"{_PODMAN}:PodmanColdEngine",
        needs=("podman", "oci"),
        programs=("criu", "runc", "podman"),
        packs_images=True,
        runs_in_oci=True,
        by_podman=True,
        moves_kernel_state=True,
    ),
    EngineEntry(
        name="podman-pre-copy",
        title="As podman-cold, with most of the memory in an archive of a pre-checkpoint, sent before.",
        implementation=f"{_PODMAN}:PodmanPreCopyEngine",
        needs=("oci-pre-dump", "podman", "oci"),
        programs=("criu", "runc", "podman"),
        packs_images=True,
        copies_ahead=True,
        runs_in_oci=True,
        by_podman=True,
    ),
    EngineEntry(
        name="published-cold",
        title="The published procedure: runc checkpoint into files, rsync, runc restore.",
        implementation=f"{_PUBLISHED}:PublishedColdEngine",
        needs=("oci", "rsync"),
        programs=("criu", "runc", "rsync"),
        runs_in_oci=True,
        as_published=True,
    ),
    EngineEntry(
        name="published-pre-copy",
        title="The published procedure with a pre-dump by runc, copied by rsync while the server serves.",
        implementation=f"{_PUBLISHED}:PublishedPreCopyEngine",
        needs=("oci-pre-dump", "oci", "rsync"),
        programs=("criu", "runc", "rsync"),
        copies_ahead=True,
        runs_in_oci=True,
        as_published=True,
    ),
    EngineEntry(
        name="published-post-copy",
        title="The published procedure with runc's lazy pages: memory follows by CRIU's page server.",
        implementation=f"{_PUBLISHED}:PublishedPostCopyEngine",
        needs=("oci-lazy-pages", "oci", "rsync", "criu-lazy-pages", "criu-page-server"),
        programs=("criu", "runc", "rsync"),
        keeps_source=True,
        runs_in_oci=True,
        as_published=True,
    ),
    EngineEntry(
        name="published-hybrid",
        title="The published procedure with a pre-dump by runc, and the rest of the memory as in post-copy.",
        implementation=f"{_PUBLISHED}:PublishedHybridEngine",
        needs=("oci-pre-dump", "oci-lazy-pages", "oci", "rsync", "criu-lazy-pages", "criu-page-server"),
        programs=("criu", "runc", "rsync"),
        copies_ahead=True,
        keeps_source=True,
        runs_in_oci=True,
        as_published=True,
    ),
)


def engines() -> Mapping[str, EngineEntry]:
    """All engines by name, those from outside included. Raises ``InvalidInput`` for a broken plug-in."""
    return plugins.table(GROUP, EngineEntry, OWN, lambda entry: entry.name)


def get(name: str) -> EngineEntry:
    """The row of an engine. Raises ``InvalidInput`` for an unknown one."""
    known = engines()
    if name not in known:
        raise InvalidInput(f"unknown engine {name!r}", hint="there are: " + ", ".join(known))
    return known[name]


def engines_that(test: Callable[[EngineEntry], bool]) -> frozenset[str]:
    """The names of the engines for whose row ``test`` says yes."""
    return frozenset(name for name, entry in engines().items() if test(entry))


def ahead_engines() -> frozenset[str]:
    """Engines that send memory before the freeze."""
    return engines_that(lambda entry: entry.copies_ahead)


def behind_engines() -> frozenset[str]:
    """Engines that send memory after the commit."""
    return engines_that(lambda entry: entry.keeps_source)


def long_engines() -> frozenset[str]:
    """Engines whose moves take longer than their downtime."""
    return engines_that(lambda entry: entry.is_long)


def criu_engines() -> frozenset[str]:
    """Engines whose agent starts CRIU itself."""
    return engines_that(lambda entry: entry.starts_criu)


def kernel_state_engines() -> frozenset[str]:
    """Engines that can take established TCP connections along."""
    return engines_that(lambda entry: entry.moves_kernel_state)


def image_engines() -> list[str]:
    """Engines whose agents move a process by CRIU, in the table's order: bare, or as an OCI container.

    Without those that have another program move it (Podman, the published procedure).
    """
    return [name for name, entry in engines().items() if entry.packs_images and not entry.by_podman]


def in_oci(engine: str) -> str:
    """The engine that moves an OCI container as ``engine`` moves a bare process, or ``engine`` itself."""
    ours = image_engines()
    if engine not in ours:
        return engine
    moves = [(name, get(name)) for name in ours if get(name).runs_in_oci]
    technique = (get(engine).copies_ahead, get(engine).keeps_source)
    return next((n for n, entry in moves if (entry.copies_ahead, entry.keeps_source) == technique), engine)


def criu_variant_engines() -> frozenset[str]:
    """Engines that CRIU's own machinery can carry out as well (``memory_by`` "criu")."""
    return engines_that(lambda entry: entry.by_criu is not None)


def runs_in_oci(engine: str) -> bool:
    """Whether the server of that engine runs as an OCI container that runc makes."""
    entry = engines().get(engine)
    return entry is not None and entry.runs_in_oci


def is_by_podman(engine: str) -> bool:
    """Whether Podman makes that container."""
    entry = engines().get(engine)
    return entry is not None and entry.by_podman


def takes_base_image(engine: str) -> bool:
    """Whether that engine sends less where both edges have a base image of the server."""
    entry = engines().get(engine)
    return entry is not None and entry.on_base_image is not None


def is_as_published(engine: str) -> bool:
    """Whether that engine does as the published procedure does and no more."""
    entry = engines().get(engine)
    return entry is not None and entry.as_published


def implementation_of(order: MoveOrder) -> str:
    """The name by which ``create`` finds the engine of this order; that says so when there is none."""
    entry = engines().get(order.engine)
    by_criu = entry is not None and entry.memory_by(order.memory_by) == "criu"
    return order.engine + BY_CRIU if by_criu else order.engine


def create(name: str, context: EngineContext) -> Engine:
    """The engine of that name (see ``implementation_of``). Raises ``InvalidInput`` for unknown names.

    Its module is imported now and not before, so that an engine that is missing something harms no other.
    """
    entry = get(name.removesuffix(BY_CRIU))
    place = entry.implementation
    if name.endswith(BY_CRIU):
        if entry.by_criu is None:
            raise InvalidInput(
                f"with the engine {entry.name} CRIU itself moves no memory", hint="leave out --memory-by criu"
            )
        place = entry.by_criu.implementation
    elif entry.on_base_image is not None and context.base_image is not None:
        place = entry.on_base_image
    module_name, _, class_name = place.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(
            f"the engine {name} cannot be loaded from {place}: {error}",
            hint="its entry must name a module and a class in it",
        ) from error
    return cast(Engine, made(context))
