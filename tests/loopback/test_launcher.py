"""bin/quicferry starts the command from anywhere, quickly, and says so when it cannot."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from quicferry import __version__
from quicferry.paths import CHECKOUT
from quicferry.process import PIPE, run, spawn

LAUNCHER = CHECKOUT / "bin" / "quicferry"


def test_through_a_chain_of_links_with_no_path_from_another_folder(tmp_path):
    (tmp_path / "relative").mkdir()
    absolute = tmp_path / "absolute"
    absolute.symlink_to(LAUNCHER)
    relative = tmp_path / "relative" / "link"
    relative.symlink_to("../absolute")
    done = run([relative, "--version"], env={"PATH": "/nowhere"}, cwd=tmp_path)
    assert done.stdout == f"quicferry {__version__}\n"


def test_from_the_folder_of_another_checkout_its_own_code_runs(tmp_path):
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "__init__.py").write_text("raise SystemExit('another checkout')\n")
    assert run([LAUNCHER, "--version"], cwd=tmp_path).stdout == f"quicferry {__version__}\n"


def test_a_checkout_that_is_not_set_up(tmp_path):
    (tmp_path / "bin").mkdir()
    copy = shutil.copy(LAUNCHER, tmp_path / "bin")
    done = run([copy, "--version"], check=False)
    assert done.status == 2
    assert "make setup" in done.stderr
    assert str(tmp_path) in done.stderr


def test_help_waits_for_no_heavy_module():
    program = (
        "import sys\n"
        "from cli import main\n"
        "assert main.call(['--help']) == 0\n"
        "heavy = {'numpy', 'scipy', 'polars', 'matplotlib', 'scapy', 'aioquic', 'grpc', 'mininet', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    run([sys.executable, "-c", program])


def test_a_closed_pipe_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    program = "import sys; from cli import main; sys.exit(main.call(['--help']))"
    try:
        process = spawn([sys.executable, "-c", program], stdout=writer, stderr=PIPE)
    finally:
        os.close(writer)
    _, stderr = process.communicate(timeout=30)
    assert stderr == b""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_defect(closed):
    argv = ["sh", "-c", f'"$1" topo list {closed}', "sh", LAUNCHER]
    done = run(argv, check=False, cwd=CHECKOUT)
    assert (done.status, "Traceback" in done.stderr) == (0, False)


def test_a_home_that_cannot_be_written_to_is_not_told_of():
    program = "from quicferry.analysis.figures import papers"
    home = {**os.environ, "HOME": "/proc/nowhere", "XDG_CONFIG_HOME": "", "MPLCONFIGDIR": ""}
    assert run([sys.executable, "-c", program], cwd=CHECKOUT, env=home).stderr == ""
