"""Starts programs of this project by forking a process that has loaded them already.

A new interpreter needs 0.3 to 0.5 s of a processor until an agent or a client has loaded what it is made of,
and a run has four of them. The fork server loads once; a program forked from it is there after some
milliseconds.

It is forked itself from the process that plays a run, before that has threads, and knows one request: a
module whose ``main`` is to run, with its arguments, environment, working directory, standard streams and the
process whose network and mounts it is to have, as ``mnexec -a`` would give it. A program is the child of who
asked for it, not of the fork server: the server forks twice and its own child ends, so that the kernel gives
the grandchild to the nearest subreaper (PR_SET_CHILD_SUBREAPER, prctl(2)), which ``start`` makes its caller.

A server that CRIU moves is not started in this way: it would have the memory of all that was loaded here.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from quicferry.errors import CommandFailed
from quicferry.process import DEVNULL, PIPE, Popen, adopt, stat_fields

_PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000  # include/uapi/linux/sched.h
_MOST_BYTES = 1 << 20  # of a request: an environment is some kilobytes
_libc = ctypes.CDLL(None, use_errno=True)


class _Job(msgspec.Struct):
    """What is to run. Its three standard streams come with it as file descriptors."""

    module: str
    arguments: list[str]
    namespaces_of: int
    env: dict[str, str]
    cwd: str


class ForkServer:
    """The asking side; made by ``start``. May be used from several threads."""

    def __init__(self, channel: socket.socket, modules: Sequence[str]) -> None:
        self.modules = frozenset(modules)
        self._channel = channel
        self._lock = threading.Lock()

    @classmethod
    def start(cls, modules: Sequence[str]) -> ForkServer:
        """Load modules, each with a ``main``, and fork the server. The caller has one thread as yet.

        What a module's ``load_ahead`` loads, where it has one, is there in all programs too.

        In a forked program this call does not return: the process ends with the program. Raises ``OSError``.
        """
        for module in modules:
            load_ahead = getattr(importlib.import_module(module), "load_ahead", None)
            if load_ahead is not None:
                load_ahead()
        if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) was refused")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork() == 0:
            ours.close()
            _serve(theirs)
        theirs.close()
        return cls(ours, modules)

    def spawn(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        namespaces_of: int,
        env: Mapping[str, str],
        stdin: int | IO[bytes] = DEVNULL,
        stdout: int | IO[bytes] = DEVNULL,
        stderr: int | IO[bytes] = DEVNULL,
        cwd: Path | None = None,
    ) -> Popen[bytes]:
        """Start one of the modules in the network and mounts of another process.

        Raises ``CommandFailed`` when the fork server has ended.
        """
        job = _Job(module, list(arguments), namespaces_of, dict(env), str(cwd or Path.cwd()))
        argv = [sys.executable, "-m", module, *arguments]
        with ExitStack() as stack:
            ends = [
                _stream(stack, given, to_write=index > 0)
                for index, given in enumerate((stdin, stdout, stderr))
            ]
            try:
                with self._lock:
                    socket.send_fds(self._channel, [msgspec.json.encode(job)], [theirs for theirs, _ in ends])
                    pid = int(self._channel.recv(32))
            except (OSError, ValueError) as error:
                for _, ours in ends:
                    if ours is not None:
                        ours.close()
                raise CommandFailed(argv, -1, f"the fork server has ended: {error}") from error
        return adopt(pid, argv, *(ours for _, ours in ends))


def _stream(stack: ExitStack, given: int | IO[bytes], *, to_write: bool) -> tuple[int, IO[bytes] | None]:
    """The program's end of a standard stream, which ``stack`` closes, and ours of a pipe."""
    if given == PIPE:
        reading, writing = os.pipe()
        theirs, mine = (writing, reading) if to_write else (reading, writing)
        stack.callback(os.close, theirs)
        return theirs, os.fdopen(mine, "rb" if to_write else "wb")
    if given == DEVNULL:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        return null, None
    return (given if isinstance(given, int) else given.fileno()), None


def _serve(channel: socket.socket) -> None:
    """Fork programs until the asking side has gone; returns in none of them."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in (0, 1):  # who reads the events of the run waits for all that could write them
        os.dup2(null, stream)
    gc.collect()
    gc.freeze()  # what was loaded is not written to by a collection: it stays shared
    while True:
        request, streams, _, _ = socket.recv_fds(channel, _MOST_BYTES, 3)
        if not request:
            os._exit(0)
        job = msgspec.json.decode(request, type=_Job)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            between = os.getpid()
            program = os.fork()
            if program == 0:
                while os.getppid() == between:  # a program may ask who its parent is
                    time.sleep(0.0002)
                channel.close()
                for descriptor in (reading, writing, null):
                    os.close(descriptor)
                _become(job, streams)
            os.write(writing, str(program).encode())
            os._exit(0)
        os.waitpid(child, 0)  # from now on the program is a child of who asked for it
        channel.send(os.read(reading, 32))
        for descriptor in (reading, writing, *streams):
            os.close(descriptor)


def _become(job: _Job, streams: Sequence[int]) -> None:
    """Be that program; ends the process."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = _text(0, "r"), _text(1, "w"), _text(2, "w")
    for kind, flag in (("net", _CLONE_NEWNET), ("mnt", _CLONE_NEWNS)):
        descriptor = os.open(f"/proc/{job.namespaces_of}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        if _libc.setns(descriptor, flag) != 0:
            raise OSError(ctypes.get_errno(), f"setns {kind}")
        os.close(descriptor)
    os.chdir(job.cwd)
    os.environ.clear()
    os.environ.update(job.env)
    sys.argv = [job.module, *job.arguments]
    _show_as([sys.executable, "-m", *sys.argv])
    status = 0
    try:
        sys.exit(importlib.import_module(job.module).main())
    except SystemExit as end:
        status = _status_of(end)
    except BaseException:
        traceback.print_exc()
        status = 1
    _end(status)


def _status_of(end: SystemExit) -> int:
    """The exit status that the interpreter makes of it (``sys.exit``)."""
    if end.code is None or isinstance(end.code, int):
        return (end.code or 0) & 0xFF
    sys.stderr.write(f"{end.code}\n")
    return 1


def _end(status: int) -> None:
    """End the process as an interpreter does, but leave its objects to the kernel.

    To take apart all that was loaded needs 30 ms and more, each page of it copied from the fork server first.
    """
    # what the interpreter itself does at its end, in this order: threads are waited for, then handlers called
    threading._shutdown()  # type: ignore[attr-defined] # noqa: SLF001 - there is no public name
    atexit._run_exitfuncs()  # noqa: SLF001 - there is no public name
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(status)


def _show_as(argv: Sequence[str]) -> None:
    """Let ``ps`` show these words, as far as there is room, and not those of the process that was forked.

    The kernel reads the command line out of the process's own memory, at the addresses in proc_pid_stat(5).
    """
    fields = stat_fields(Path("/proc/self"))
    begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, fields 48 and 49 counted from 1
    room = end - begin
    if begin and room > 1:
        ctypes.memmove(begin, "\0".join(argv).encode()[: room - 1].ljust(room, b"\0"), room)


def _text(descriptor: int, mode: str) -> Any:
    return open(descriptor, mode, encoding="utf-8", errors="replace", closefd=False)
