"""What we tell CRIU, what we make of its words, and which PIDs services get."""

import itertools
from pathlib import Path

import pytest

from quicferry.errors import Unsupported
from quicferry.migration.container import init
from quicferry.migration.container.container import PIDS_PER_EDGE, first_pid_of
from quicferry.migration.container.processes import Completed
from quicferry.migration.criu.command import Criu, explain, find_criu, started_dump, started_restore


def failed(log: str, stderr: str = "") -> tuple[str, str]:
    error = explain("restore", Completed(["criu", "restore"], 1, "", stderr), log)
    assert error.hint is not None
    return str(error), error.hint


def test_the_cause_is_told_not_the_last_word():
    message, hint = failed(
        "(00.01) Error (rlimit.c:16): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
        "(00.01) Error (sk-inet.c:1035): inet: Can't bind inet socket (id 35): Address already in use\n"
        "(00.010200) Error (criu/files.c:1213): Unable to open fd=6 id=0x23\n"
        "(00.010300) Error (criu/cr-restore.c:2550): Restoring FAILED.\n"
    )
    assert message == (
        "criu restore failed with status 1: inet: Can't bind inet socket (id 35): Address already in use; "
        "Unable to open fd=6 id=0x23"
    )
    assert "another process holds the port" in hint


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("inet: Unsupported proto 262 for socket 23", "MPTCP"),
        ("mnt: Can't lookup mount=37 for fd=1 path=/dev/null", "outside its container"),
        ("File run/service.log has bad size 10 (expect 12)", "differs at this host"),
        ("File run/service.log has bad mode 0100644 (expect 0100600)", "differs at this host"),
        ("Can't fork for 11000: File exists", "the PID is in use"),
        (
            "inet: Can't bind inet socket (id 35): Cannot assign requested address",
            "address this host does not",
        ),
        ("Unable to connect a socket: Network is unreachable", "loopback interface"),
        ("tty: Found dangling tty with sid 1 pgid 2 (pts) on peer fd 0.", "terminal"),
    ],
)
def test_known_errors_are_explained(words, meaning):
    message, hint = failed(f"(00.01) Error (criu/x.c:1): {words}\n")
    assert words in message
    assert meaning in hint


def test_a_criu_that_is_started_ahead_lacks_what_it_cannot_do_without():
    criu = Criu(None, Path("/usr/sbin/criu"))
    dump, word = started_dump(criu.dump_argv(10_001, Path("/run/state/criu")))
    assert word == "tree 10001"
    assert not {"-t", "--tree", "10001"} & set(dump)
    assert dump[-2:] == ["--config", "/proc/self/fd/0"]
    assert dump[:4] == ["/usr/sbin/criu", "dump", "-D", "/run/state/criu"]
    restore, word = started_restore(criu.restore_argv(Path("/run/state/criu")))
    assert word == "images-dir /run/state/criu"
    assert not {"-D", "--images-dir"} & set(restore)
    assert restore[restore.index("-W") + 1] == "/run/state/criu"
    assert restore[-2:] == ["--config", "/proc/self/fd/0"]


def test_an_unknown_error_says_where_to_read_on():
    message, hint = failed("(00.01) Error (criu/x.c:1): the moon is in the wrong house\n")
    assert "the moon is in the wrong house" in message
    assert "docs/criu.md" in hint


def test_without_a_log_stderr_speaks():
    message, _ = failed("", stderr="criu: error while loading shared libraries\n")
    assert message.endswith("error while loading shared libraries")


def test_without_any_word_it_says_so():
    assert "left no message" in failed("")[0]


def test_the_launcher_of_the_prefix_comes_before_the_path(tmp_path, monkeypatch):
    launcher = tmp_path / "bin" / "criu"
    launcher.parent.mkdir()
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("QUICFERRY_CRIU_PREFIX", str(tmp_path))
    assert find_criu() == launcher


def test_a_missing_criu_is_unsupported_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("QUICFERRY_CRIU_PREFIX", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("quicferry.process.SYSTEM_DIRECTORIES", ())
    with pytest.raises(Unsupported, match="there is no criu") as caught:
        find_criu()
    assert "provision/criu.sh" in caught.value.hint


def test_edges_get_pids_apart_from_each_other():
    firsts = [first_pid_of(f"edge-{number}") for number in range(1, 9)]
    assert all(later - earlier == PIDS_PER_EDGE for earlier, later in itertools.pairwise(firsts))
    assert firsts[0] == 11_000
    for name in ("edge-19", "edge-20", "left", "e1x"):
        assert 10_000 <= first_pid_of(name) <= 32_768 - PIDS_PER_EDGE


def test_the_init_of_a_container_imports_the_standard_library_only():
    source = Path(init.__file__).read_text()
    imports = {line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"__future__", "json", "os", "signal", "sys"}
