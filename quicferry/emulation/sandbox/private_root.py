"""A private root: one command in network, mount and process namespaces of its own.

Nothing that is made inside can be seen or left behind outside. Three things tie the private root's
life to that of the tool, so that SIGKILL of the tool ends it too:

* the tool holds the writing end of a pipe (the lifeline); its end tells PID 1 inside to end;
* ``setpriv --pdeathsig KILL`` ends ``unshare`` when the tool ends (set only when the main thread
  starts the private root, as the kernel sends that signal at the end of the *thread*, prctl(2));
* ``unshare --kill-child`` ends PID 1 when ``unshare`` ends.

When PID 1 of a process namespace ends, the kernel kills every process in it; namespaces, and with
them interfaces and mounts, go with their last process (pid_namespaces(7)).

As a program, ``python -m quicferry.emulation.sandbox.private_root PROGRAM [ARGUMENT …]`` runs one in a
private root and returns its exit code.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from quicferry.emulation.sandbox import cgroups
from quicferry.emulation.sandbox.ownership import tags
from quicferry.errors import Unsupported
from quicferry.process import Popen, Stillness, TimeoutExpired, children_of, spawn

INIT = Path(__file__).with_name("private_init.py")

UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


class PrivateRoot:
    """A running private root. Made by ``start``; a context manager that ends it.

    ``process`` is its outermost process, ``unshare``, which ignores SIGTERM and SIGINT: to end the
    command, use ``stop`` or ``kill`` of this class.
    """

    def __init__(self, process: Popen[bytes], lifeline: int, run_id: str) -> None:
        self.process = process
        self.run_id = run_id
        self._lifeline: int | None = lifeline
        self._cleared = False
        self._still: dict[int, Stillness] = {}

    @property
    def pid(self) -> int:
        """The process id, outside, of the private root's outermost process."""
        return self.process.pid

    def poll(self) -> int | None:
        """The command's exit code if it has ended (128 + N: signal N), else None."""
        code = self.process.poll()
        return code if code is None else self._ended(code)

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end; the command's exit code. Raises ``TimeoutExpired``."""
        return self._ended(self.process.wait(timeout_s))

    def stands_still(self) -> bool:
        """Whether one of its three outermost processes, the command the last, was stopped (SIGSTOP) for good.

        Then nobody inside ends any more, and whoever waits for the end waits for ever.
        """
        outermost = self.process.pid
        first = children_of(outermost)
        chain = (outermost, *first, *(pid for each in first for pid in children_of(each)[:1]))
        seen = [self._still.setdefault(pid, Stillness()).is_for_good(pid) for pid in chain]  # each, always
        return any(seen)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command inside; nothing happens when it has ended."""
        if self._lifeline is not None:
            try:
                os.write(self._lifeline, bytes([number]))
            except BrokenPipeError:
                self._let_go()

    def stop(self, *, grace_s: float = 5.0) -> int:
        """SIGTERM to the command; after ``grace_s`` the end of everything inside. Returns the exit code."""
        if self.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                return self.wait(grace_s)
            except TimeoutExpired:
                return self.kill()
        return self.wait()

    def kill(self) -> int:
        """End everything inside at once. Returns the exit code."""
        self._let_go()
        try:
            return self._ended(self.process.wait(1.0))
        except TimeoutExpired:
            self.process.kill()
            return self._ended(self.process.wait())

    def _let_go(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def _ended(self, code: int) -> int:
        """Remove, once, what its processes could not take with them: their groups. Returns ``code``."""
        self._let_go()
        if not self._cleared:
            self._cleared = True
            cgroups.remove_of_run(self.run_id)
        return code

    def __enter__(self) -> PrivateRoot:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def require_root() -> None:
    """Raise ``Unsupported`` unless this process may make namespaces."""
    if os.geteuid() != 0:
        raise Unsupported(
            "the emulation needs root", hint="run it as root (sudo), on a machine or VM of your own"
        )


def start(
    argv: Sequence[str | Path],
    *,
    run_id: str | None = None,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> PrivateRoot:
    """Start a command in a private root of its own and return at once.

    The standard streams are passed on as they are (None: those of this process). Inside, ``/proc``
    and ``/sys`` show the private root, ``/run`` is an empty tmpfs and ``lo`` is up. The command gets
    the run's tags (``ownership.py``) in its environment, ``env`` or this process's own.

    Raises ``Unsupported`` without root or without util-linux.
    """
    require_root()
    cgroups.remove_orphans()  # of tools that were killed: nobody else may ever come by
    name = run_id if run_id is not None else f"{os.getpid()}-{time.monotonic_ns()}"
    environment = {**(os.environ if env is None else env), **tags(name)}
    on_main_thread = threading.current_thread() is threading.main_thread()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    words: list[str | Path] = [
        *(DIE_WITH_PARENT if on_main_thread else ()),
        *UNSHARE,
        *(sys.executable, "-I", "-S", INIT, str(reading)),
        *argv,
    ]
    try:
        process = spawn(
            words, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, cwd=cwd, pass_fds=(reading,)
        )
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return PrivateRoot(process, writing, name)


def enter(
    argv: Sequence[str | Path],
    *,
    run_id: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = None,
) -> int:
    """Run a command in a private root to its end, on the standard streams of this process.

    Returns its exit code (128 + N: it was ended by signal N). SIGINT ends the command by SIGTERM and
    is raised again as ``KeyboardInterrupt``. Raises ``TimeoutExpired`` when the time is over; nothing
    of the command is left then.
    """
    with start(argv, run_id=run_id, env=env, cwd=cwd) as root:
        try:
            return root.wait(timeout_s)
        except KeyboardInterrupt:
            root.stop()
            raise


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m quicferry.emulation.sandbox.private_root PROGRAM [ARGUMENT …]")
    try:
        sys.exit(enter(sys.argv[1:]))
    except Unsupported as refusal:
        sys.stderr.write(f"{refusal} ({refusal.hint})\n")
        sys.exit(refusal.exit_code)
