"""Running programs: the only module that imports ``subprocess``.

Programs are argument vectors, never shell strings; exit status and stderr are kept.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from quicferry.errors import CommandFailed, Unsupported
from quicferry.slowness import longer

Popen = subprocess.Popen
TimeoutExpired = subprocess.TimeoutExpired
DEVNULL = subprocess.DEVNULL
PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT


#: Root's, and not in everybody's PATH.
SYSTEM_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin")


class Result(NamedTuple):
    """What a program that has ended left behind."""

    argv: list[str]
    status: int
    stdout: str
    stderr: str


def run(
    argv: Sequence[str | Path],
    *,
    check: bool = True,
    timeout_s: float | None = 60.0,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Result:
    """Run a program to its end.

    Raises ``CommandFailed`` when ``check`` and the status is not zero or the time is over, and
    ``Unsupported`` when there is no such program.
    """
    words = [str(word) for word in argv]
    timeout_s = longer(timeout_s) if timeout_s is not None else None
    try:
        done = subprocess.run(
            words,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise Unsupported(
            f"the program {words[0]} is not installed", hint="run `make setup`, then `quicferry doctor`"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(words, -1, f"still running after {timeout_s:g} s") from error
    result = Result(words, done.returncode, done.stdout, done.stderr)
    if check and done.returncode != 0:
        raise CommandFailed(words, done.returncode, done.stderr)
    return result


def spawn(
    argv: Sequence[str | Path],
    *,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    new_session: bool = True,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program and return at once. Raises ``Unsupported`` when there is no such program."""
    words = [str(word) for word in argv]
    try:
        return subprocess.Popen(
            words,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            start_new_session=new_session,
            pass_fds=tuple(pass_fds),
        )
    except FileNotFoundError as error:
        raise Unsupported(
            f"the program {words[0]} is not installed", hint="run `make setup`, then `quicferry doctor`"
        ) from error


def stat_fields(proc: Path) -> list[str]:
    """What a process's ``stat`` says from its state on, which is field 3 of proc_pid_stat(5).

    ``proc``: its directory, ``/proc/PID``. Raises ``OSError`` when it has ended.
    """
    text = (proc / "stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets


#: A process that was told to stand still (SIGSTOP) for so long will not go on by itself.
STILL_S = 1.0


class Stillness:
    """Tells of one process, whenever it is asked, whether it stands still for good."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def is_for_good(self, pid: int | None) -> bool:
        """Whether it was seen stopped by a signal for ``STILL_S``; a tracer's stops do not count."""
        state = state_of(pid) if pid is not None else None
        if state != "T":
            self._since_s = None
            return False
        now_s = time.monotonic()
        self._since_s = self._since_s if self._since_s is not None else now_s
        return now_s - self._since_s >= STILL_S


def state_of(pid: int) -> str | None:
    """The letter for a process's state in proc_pid_stat(5); None when there is none, or it is a zombie."""
    try:
        state = stat_fields(Path("/proc") / str(pid))[0]
    except OSError:
        return None
    return None if state in {"Z", "X"} else state


def how_ended(status: int) -> str:
    """How a process ended, in words, by its status as ``Popen`` has it."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class _Adopted(subprocess.Popen[bytes]):
    """A child that was forked by other means, with all that ``Popen`` can do; made by ``adopt``."""

    def __init__(
        self,
        pid: int,
        argv: Sequence[str],
        stdin: IO[bytes] | None,
        stdout: IO[bytes] | None,
        stderr: IO[bytes] | None,
    ) -> None:
        # what Popen's own __init__ leaves behind that poll, wait, signals and the end of the object read
        self.args = list(argv)
        self.pid = pid
        self.returncode: int | Any = None
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self._waitpid_lock = threading.Lock()
        self._sigint_wait_secs = 0.25
        self._child_created = True


def adopt(
    pid: int,
    argv: Sequence[str],
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """A child of this process that ``spawn`` has not started, as if it had; our ends of its pipes with it."""
    return _Adopted(pid, argv, stdin, stdout, stderr)


def ask_to_stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to one process that we started, if it still runs."""
    if process.poll() is None:
        process.terminate()
        process.send_signal(signal.SIGCONT)  # one that stands still hears of it only when it goes on


def stop(process: subprocess.Popen[bytes], *, grace_s: float = 2.0) -> int:
    """End one process that we started: SIGTERM, then SIGKILL after ``grace_s``. Returns its status."""
    if process.poll() is None:
        ask_to_stop(process)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def find_program(name: str) -> Path | None:
    """A program on the PATH or in one of root's directories; None when there is none."""
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *SYSTEM_DIRECTORIES)))
    return Path(found) if found is not None else None


def children_of(pid: int) -> list[int]:
    """The PIDs of the children of a process with one thread; none when the process is gone.

    Read from the kernel's list. psutil would look at every process of the machine for its parent.
    """
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
