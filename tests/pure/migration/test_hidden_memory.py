"""Which memory is hidden from CRIU at all, and how its list of pages is completed."""

import os

import numpy as np
import pytest

from quicferry.migration.container.processes import ContainerNamespaces
from quicferry.migration.memory.hidden_memory import OTHER_MEMORY, HiddenMemory, is_hidden
from quicferry.migration.memory.page_runs import bounds_of
from quicferry.migration.memory.pagemap import Flag, PageMap, PagemapEntry
from quicferry.migration.memory.process_memory import private_areas

STATUS = "Name:\tpython\nVmLck:\t{} kB\nHugetlbPages:\t{} kB\n{}voluntary_ctxt_switches:\t1\n"
MAPS = """\
00400000-00402000 rw-p 00000000 fe:00 12 /usr/bin/server
00500000-00503000 rw-p 00000000 00:00 0 [heap]
00600000-00601000 ---p 00000000 00:00 0
00700000-00701000 ---p 00000000 fe:00 13 /usr/lib/lib.so
00800000-00804000 rw-s 00000000 00:01 14 /dev/zero (deleted)
7ffff7fc1000-7ffff7fc3000 r-xp 00000000 00:00 0 [vdso]
"""


@pytest.mark.parametrize(
    ("locked", "huge", "more", "plain"),
    [
        (0, 0, "", True),
        (0, 0, "x86_Thread_features:\t\n", True),
        (4, 0, "", False),
        (0, 2048, "", False),
        (0, 0, "x86_Thread_features:\tshstk wrss\n", False),
        (0, 0, "x86_Thread_features_locked:\tshstk\n", True),
    ],
)
def test_memory_that_criu_does_not_restore_lazily_is_not_hidden(locked, huge, more, plain):
    status = STATUS.format(f"{locked:8d}", f"{huge:8d}", more)
    assert (OTHER_MEMORY.search(status) is None) == plain


def test_what_a_process_cannot_read_itself_is_listed_only_when_asked():
    assert private_areas(MAPS) == [(0x400, 2), (0x500, 3)]
    assert private_areas(MAPS, readable=False) == [(0x400, 2), (0x500, 3), (0x600, 1), (0x700, 1)]
    assert private_areas(MAPS, of_files=False, readable=False) == [(0x500, 3), (0x600, 1)]


def test_a_list_is_completed_by_what_criu_has_not_found(monkeypatch):
    container = ContainerNamespaces("edge-1", os.getpid())
    listed = bounds_of(np.array([1, 2, 7])), bounds_of(np.array([3, 4, 8, 9]))
    monkeypatch.setattr(HiddenMemory, "__init__", lambda *_: None)
    hidden = HiddenMemory(container, 1, None)
    hidden._listed = listed
    # 4: init has a page there, too; 5: the vDSO; 20: as 4, and the server has none there
    found = [PagemapEntry(4, 2, Flag.PRESENT), PagemapEntry(20, 1, Flag.LAZY)]
    got = hidden.completed(PageMap(3, found))
    assert got.pages_id == 3
    assert got.present.tolist() == [1, 2, 4, 5, 7]
    assert got.absent.tolist() == [3, 8, 9], "a page that the server does not have is nowhere"


def test_a_process_is_not_hidden_as_such():
    assert not is_hidden(ContainerNamespaces("edge-1", os.getpid()), os.getpid())
