"""The destination of ``agent_copy`` with rounds: what comes before the freeze is checked before the freeze.

The memory of rounds is kept in sealed memory of this agent (``criu.sealed``) and in no file. Once the rounds
before the freeze are over, it is sealed and compared with its digests, while the server still serves; in the
downtime that is done for what comes then, and for nothing else. Pages are put in place from there. What CRIU
reads itself, private pages of mapped files, is written to files before the freeze (``LAID_OUT``), and checked
directly before CRIU reads it, as all files are. Where the kernel lacks userfaultfd, that is all memory.

What changes after the last round crosses as differences from it: a few words of each page (``page_delta``).
What the server is likely to need first is copied into memory of this agent before the freeze (``_working``),
brought up to date when the last changes have come, and put in place in a few calls: it would lie scattered
over the rounds.

A successor of an agent that is killed after the resume gets the sealed memory from the container's init,
which keeps it beside the userfaultfd.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from quicferry.migration.criu.image_stream import CheckpointManifest, Unpacker
from quicferry.migration.criu.received import PARALLEL_BYTES
from quicferry.migration.criu.sealed import SealedMemory, mapped
from quicferry.migration.engines.criu.agent_copy_destination import CopyDestination
from quicferry.migration.engines.criu.rounds import PAGES_ID
from quicferry.migration.engines.criu.unfinished import SealedRound, Unfinished
from quicferry.migration.memory.batches import small_first
from quicferry.migration.memory.page_sink import WORKING_PAGES, PageSink
from quicferry.migration.memory.pagemap import (
    NO_PAGES,
    PageMap,
    Pages,
    decode,
    encode,
    entries_of,
    joined,
    numbers,
)
from quicferry.migration.memory.process_memory import Snapshot, rows_of
from quicferry.migration.memory.round_pages import (
    NOTHING,
    LocalPages,
    NewestPages,
    newest_of,
    read_image,
    snapshot_of,
)
from quicferry.migration.order import MoveOrder

#: The round that CRIU reads: the pages of all others that it restores itself.
LAID_OUT = "laid-out"
#: The same of what has changed since, where CRIU reads all of it; its parent is the other.
LAID_OUT_LAST = "laid-out-last"
#: Under such a PID, which no process has, init keeps the first sealed memory; the second has one less.
FIRST_KEPT = -1


class CopyDestinationInRounds(CopyDestination):
    """As ``CopyDestination``, with rounds that are kept in sealed memory and checked before the freeze."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._sealed: list[SealedMemory] = []  # of what came before the freeze, and in the downtime
        self._round_pages: list[Snapshot] = []  # in the sealed memory, the oldest round first
        self._laid_out = NO_PAGES  # pages that are in files, too
        self._newest: NewestPages | None = None  # of the rounds before the freeze
        self._working = NOTHING  # copies of pages that are put in place before the process runs

    def _unpacker(self) -> Unpacker:
        """What takes in what comes, the memory of rounds apart."""
        sealed = SealedMemory(f"rounds-{len(self._sealed)}")
        self._sealed.append(sealed)
        root, newest = self._container.path("/"), self._newest
        patch = newest.patched if newest is not None else None
        return Unpacker(self._outside, root, self._received, newest, patch, sealed)

    async def _rounds_have_come(self, manifest: CheckpointManifest) -> None:
        """Seal, check and lay out the rounds before the freeze."""
        await asyncio.to_thread(self._take_first, manifest)

    def _take_first(self, manifest: CheckpointManifest) -> None:
        """Take in the rounds before the freeze, and do all else that can be done by then."""
        pagemaps = self._take_rounds(manifest)
        known, eager = pagemaps[-1].pages, joined(*(each.eager for each in pagemaps))
        self._newest = NewestPages(self._round_pages, known)
        self._lay_out_pages(manifest.pid, eager if self._can_restore_lazily else known)
        # what was written before the last round is likely to be written again
        written = joined(*(each.pages for each in self._round_pages[1:]))
        near = np.concatenate((written, numbers(small_first(np.setdiff1d(known, written)))))
        near = np.setdiff1d(near[:WORKING_PAGES], self._laid_out)
        self._working = newest_of(self._round_pages, near)

    def _take_rounds(self, manifest: CheckpointManifest) -> list[PageMap]:
        """Seal and check what came last, and find its pages. Raises ``MigrationError``."""
        sealed = self._sealed[-1]
        sealed.seal()
        sealed.check()
        # their lists of pages are files as all others: small, checked now, and once more before the restore
        new = range(len(self._round_pages), manifest.rounds)
        paths = [self._pagemap_of(number, manifest.pid) for number in new]
        self._received.check(paths)
        pagemaps = [decode(read_image(path)) for path in paths]
        for path, pagemap in zip(paths, pagemaps, strict=True):
            name = f"{path.parent.name}/pages-{pagemap.pages_id}.img"
            self._round_pages.append(snapshot_of(pagemap.present, sealed.content(name)))
        return pagemaps

    def _pagemap_of(self, number: int, pid: int) -> Path:
        return self._outside / f"round-{number}" / f"pagemap-{pid}.img"

    def _lay_out_pages(self, pid: int, pages: Pages) -> None:
        """Write pages of the rounds to where CRIU finds them, as their newest round has them."""
        self._write_round(LAID_OUT, pid, newest_of(self._round_pages, pages), NO_PAGES)
        self._laid_out = pages

    def _write_round(self, name: str, pid: int, found: Snapshot, parent: Pages) -> None:
        """Write a round for CRIU: pages, and those that it is to look for in the parent."""
        directory = self._outside / name
        entries = entries_of(present=found.pages, parent=parent)
        self._received.write(directory / f"pages-{PAGES_ID}.img", found.data.reshape(-1).data)
        self._received.write(directory / f"pagemap-{pid}.img", encode(PageMap(PAGES_ID, entries)))

    async def _bring_up(self, order: MoveOrder, manifest: CheckpointManifest) -> dict[str, Any]:
        """Seal and check what came in the downtime, then restore the process on all rounds."""
        if self._sealed[-1].size_bytes < PARALLEL_BYTES:
            self._take_last(manifest)  # to wake a thread would take longer
        else:
            await asyncio.to_thread(self._take_last, manifest)
        try:
            return await super()._bring_up(order, manifest)
        finally:
            if self._sink is None:
                self._let_go()

    def _take_last(self, manifest: CheckpointManifest) -> None:
        """Take in the rounds of the downtime, and have CRIU find what it reads of all rounds."""
        before = len(self._round_pages)
        self._take_rounds(manifest)
        for pages, data in self._round_pages[before:]:
            rows = rows_of(pages, self._working.pages)
            here = rows >= 0
            self._working.data[rows[here]] = data[here]
        pagemap = decode(read_image(self._outside / f"pagemap-{manifest.pid}.img"))
        wanted = pagemap.inherited
        read_by_criu = LAID_OUT
        changed = NO_PAGES
        if not self._can_restore_lazily:
            wanted = joined(wanted, pagemap.optional)
            changed = np.intersect1d(wanted, joined(*(each.pages for each in self._round_pages[before:])))
        rest = np.setdiff1d(wanted, changed, assume_unique=True)
        if not np.isin(rest, self._laid_out, assume_unique=True).all():
            # a library was loaded where there was other memory
            self._lay_out_pages(manifest.pid, rest)
        if len(changed):
            read_by_criu = LAID_OUT_LAST
            self._write_round(LAID_OUT_LAST, manifest.pid, newest_of(self._round_pages, changed), rest)
            self._link(self._outside / LAID_OUT_LAST / "parent", f"../{LAID_OUT}")
        self._link(self._outside / "parent", read_by_criu)

    def _link(self, path: Path, target: str) -> None:
        """Have CRIU look for what an image lacks in another one."""
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def _local(self, manifest: CheckpointManifest, pages: Pages) -> LocalPages:
        """The pages that are here, the copies of what is needed first before all."""
        return LocalPages(self._rounds_here(manifest.rounds), manifest.pid, pages, self._working)

    def _rounds_here(self, rounds: int) -> Sequence[Path | Snapshot]:
        """The rounds, the oldest first: in sealed memory, if they were kept there."""
        return self._round_pages or super()._rounds_here(rounds)

    def _lacking(
        self, order: MoveOrder, manifest: CheckpointManifest, local: dict[int, LocalPages]
    ) -> Unfinished:
        """The record of what the process will lack, with the places of the rounds in the sealed memory."""
        places = [
            SealedRound(memory, *sealed.place(name))
            for memory, sealed in enumerate(self._sealed)
            for name in sealed.names
        ]
        return msgspec.structs.replace(super()._lacking(order, manifest, local), sealed=places)

    def _settle(
        self, order: MoveOrder, lacking: Unfinished, sink: PageSink, error: str | None = None
    ) -> asyncio.Task[None]:
        """Also have init keep the sealed memory for a successor, until all is in its place."""
        for number, sealed in enumerate(self._sealed):
            self._keep(FIRST_KEPT - number, sealed.descriptor)
        settling = super()._settle(order, lacking, sink, error)
        settling.add_done_callback(lambda _: self._let_go())
        return settling

    def _take_left(self, lacking: Unfinished | None) -> list[tuple[int, int]]:
        """Take the sealed memory that init has kept, too, and find the rounds in it."""
        left = super()._take_left(lacking)
        kept = {FIRST_KEPT - pid: descriptor for pid, descriptor in left if pid <= FIRST_KEPT}
        try:
            if lacking is not None and all(each.memory in kept for each in lacking.sealed):
                memories = {memory: memoryview(mapped(descriptor)) for memory, descriptor in kept.items()}
                for number, (memory, offset, size) in enumerate(lacking.sealed):
                    pages = decode(read_image(self._pagemap_of(number, lacking.pid))).present
                    self._round_pages.append(snapshot_of(pages, memories[memory][offset : offset + size]))
        finally:
            for descriptor in kept.values():
                os.close(descriptor)
        return [(pid, descriptor) for pid, descriptor in left if pid > FIRST_KEPT]

    async def _forget_destination(self) -> None:
        """Also let go of the rounds."""
        await super()._forget_destination()
        self._let_go()

    async def abandon_destination(self, order: MoveOrder, reason: str) -> None:
        """Also let go of rounds to which no restore came."""
        await super().abandon_destination(order, reason)
        self._let_go()

    def _let_go(self) -> None:
        """Drop the rounds; what is still being put in place has its own hold of them."""
        for sealed in self._sealed:
            sealed.close()
        self._sealed.clear()
        self._round_pages = []
        self._laid_out = NO_PAGES
        self._newest, self._working = None, NOTHING
