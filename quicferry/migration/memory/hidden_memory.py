"""A dump in which CRIU finds no memory: the agent lists the pages, so that CRIU need not go through them.

``criu dump --lazy-pages`` leaves memory where it is, and yet goes through all of it: it lists the pages,
takes hold of each in pipes of 1 MiB, and lets go of them at its end. With 280 MiB more that was 30 to 50 ms
of a downtime (docs/criu.md); the agent makes the list in 2. So CRIU is shown the ``pagemap`` of another
process, the container's init, by a bind mount on ``/proc/PID/pagemap`` in the mount namespace that CRIU runs
in, from directly before the freeze until the process goes on or is no more. By that list next to nothing is
there, and all else is dumped as ever. What init happens to have at addresses of the server's is dumped as
well, and is the server's own memory all the same: only the list is another's.

The server takes no part in it. In an OCI container it has a ``/proc`` of its own; a bare process stands still
while the mount is there.

Interfaces: Documentation/admin-guide/mm/pagemap.rst (PAGEMAP_SCAN, Linux 6.7), proc_pid_status(5). What CRIU
restores lazily: ``vma_entry_can_be_lazy`` in its ``criu/mem.c``.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import numpy as np

from quicferry.errors import MigrationError
from quicferry.migration.container.processes import ContainerNamespaces
from quicferry.migration.memory.page_runs import (
    Bounds,
    both,
    bounds_of,
    bounds_of_areas,
    either,
    minus,
)
from quicferry.migration.memory.page_scan import REGION, ZERO, Regions, anonymous, bounds_of_regions, scan
from quicferry.migration.memory.pagemap import Flag, PageMap, PagemapEntry
from quicferry.migration.memory.process_memory import private_areas
from quicferry.slowness import longer

#: Of init, which has a few hundred pages, and is there as long as the container is.
STAND_IN = "/proc/1/pagemap"
MOUNT_S = 5.0
#: Memory that CRIU does not restore lazily, in ``/proc/PID/status``: locked, of huge pages, shadow stacks.
OTHER_MEMORY = re.compile(
    r"^(?:(?:VmLck|HugetlbPages):\s+0*[1-9]|x86_Thread_features:.*\bshstk)", re.MULTILINE
)


def _place(pid: int) -> str:
    return f"/proc/{pid}/pagemap"


def is_hidden(container: ContainerNamespaces, pid: int) -> bool:
    """Whether the memory of that process of the container is hidden."""
    try:
        mounts = Path(f"/proc/{container.init_pid}/mountinfo").read_text()
    except OSError:  # the container is gone
        return False
    return any(line.split()[4] == _place(pid) for line in mounts.splitlines())


async def show(container: ContainerNamespaces, pid: int) -> None:
    """Undo what ``HiddenMemory.of`` has done, or an agent before. Raises ``MigrationError``."""
    while is_hidden(container, pid):
        done = await container.run(["umount", _place(pid)], timeout_s=longer(MOUNT_S))
        if done.status != 0 and is_hidden(container, pid):
            raise MigrationError(
                f"{_place(pid)} on {container.edge} is still another's: {done.stderr.strip()}"
            )


class HiddenMemory:
    """One process whose memory CRIU does not find; ``await HiddenMemory.of(…)`` makes it so.

    Then the process is frozen, then ``hold``, then the dump. ``pages`` may be called from ``hold`` on,
    ``completed`` when CRIU has written its list.
    """

    def __init__(self, container: ContainerNamespaces, pid: int, proc: Path) -> None:
        """``proc``: the directory of the process. Raises ``OSError`` when it is gone."""
        self._container = container
        self._pid = pid
        self._proc = proc
        self._pagemap = os.open(proc / "pagemap", os.O_RDONLY)  # the true one, as long as it is to be seen
        self._listed: tuple[Bounds, Bounds] | None = None

    def close(self) -> None:
        """Close the true ``pagemap``; what is hidden stays so."""
        if self._pagemap >= 0:
            os.close(self._pagemap)
        self._pagemap = -1

    @classmethod
    async def of(cls, container: ContainerNamespaces, pid: int, proc: Path) -> HiddenMemory | None:
        """Hide the memory of a process of the container, PID ``pid`` there, from CRIU.

        None where CRIU has to make the list: the kernel does not list pages in one call, the process has
        memory of another kind, or nothing can be mounted there. Raises ``MigrationError`` when it was hidden
        before and cannot be shown.
        """
        await show(container, pid)
        try:
            hidden = cls(container, pid, proc)
        except OSError:
            return None
        try:
            list(scan(hidden._pagemap, 0, 1))
            plain = hidden._is_plain()
        except OSError:  # a kernel before 6.7; or the process is gone, of which others tell
            plain = False
        if plain:
            done = await container.run(["mount", "--bind", STAND_IN, _place(pid)], timeout_s=longer(MOUNT_S))
            if done.status == 0:
                return hidden
        hidden.close()
        return None

    async def hold(self) -> bool:
        """Look at the process, which stands still from now on; False when CRIU has to make the list.

        Then its memory is shown again. Raises ``MigrationError`` when that fails.
        """
        with contextlib.suppress(OSError):
            if self._is_plain():
                return True
        self.close()
        await show(self._container, self._pid)
        return False

    def _is_plain(self) -> bool:
        """Whether all its private memory that is of no file is of the kind that CRIU restores lazily."""
        return OTHER_MEMORY.search((self._proc / "status").read_text()) is None

    def pages(self, regions: Regions | None = None) -> tuple[Bounds, Bounds]:
        """The pages of the process that must be there before it runs, and those that may come later.

        ``regions``: all its anonymous pages with the category ``ZERO``, if they were listed since it stands.
        Raises ``MigrationError`` when it is gone.
        """
        if self._listed is None:
            try:
                maps = (self._proc / "maps").read_text()
                areas = private_areas(maps, readable=False)
                if regions is None:
                    end = max((first + count for first, count in areas), default=0)
                    found = scan(self._pagemap, 0, end, anonymous(told=ZERO))
                    regions = np.concatenate([np.empty(0, REGION), *found])
            except OSError as error:
                raise MigrationError(f"the memory of the server cannot be listed: {error}") from error
            # as CRIU does: what holds nothing but zeros need not be listed
            held = bounds_of_regions(regions[regions["categories"] & np.uint64(ZERO) == 0])
            pages = both(held, bounds_of_areas(areas))
            later = bounds_of_areas(private_areas(maps, of_files=False, readable=False))
            self._listed = minus(pages, later), both(pages, later)
        return self._listed

    def completed(self, dumped: PageMap) -> PageMap:
        """The list of pages that CRIU has written, with those that it has not found.

        Present are more pages than CRIU has dumped: who writes the image reads the others in the process.
        """
        eager, lazy = self.pages()
        present = either(bounds_of(dumped.present), eager)
        entries = [*_entries(present, Flag.PRESENT), *_entries(minus(lazy, present), Flag.LAZY)]
        return PageMap(dumped.pages_id, sorted(entries))


def _entries(bounds: Bounds, flags: Flag) -> list[PagemapEntry]:
    firsts, ends = bounds[::2].tolist(), bounds[1::2].tolist()
    return [PagemapEntry(first, end - first, flags) for first, end in zip(firsts, ends, strict=True)]
