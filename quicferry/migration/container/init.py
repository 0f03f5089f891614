"""Init of a container: starts and signals processes on request, reaps them, ends with its agent.

Run as PID 1 of a PID namespace, by path and with the standard library only (``python -I -S``), so
that it is small and starts in some milliseconds. Requests are JSON lines on stdin, answers JSON
lines on stdout; at the end of stdin it ends, and the kernel ends all that lives in the namespace.

Its first argument is the PID from which on helpers in the container are numbered, until a service is
started, which has far larger ones. With the number of an inherited descriptor as its second, a listening Unix
socket, it hears requests there instead, of one agent after another: it outlives the agent that made it, and
waits for the next. It also keeps file descriptors for them: what an agent held of a process here is not lost
with the agent.

SIGCHLD is ignored (not caught): the kernel then reaps every child at once, those that CRIU restored
among them. A zombie would keep its PID, and a process that comes back to this container needs it.
"""

from __future__ import annotations

import json
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would double what this process imports
    import socket
    from typing import Any, TextIO

LAST_PID = "/proc/sys/kernel/ns_last_pid"


def set_last_pid(pid: int) -> None:
    """Make the next PID of this namespace ``pid + 1``, or the next that is free."""
    descriptor = os.open(LAST_PID, os.O_WRONLY)
    try:
        os.write(descriptor, str(pid).encode())
    finally:
        os.close(descriptor)


def become(argv: list[str], env: dict[str, str] | None, log: str) -> None:
    """In the child: open stdio inside this mount namespace, then become the program."""
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # this init ignores them, and that would be inherited
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, os.devnull, os.O_WRONLY),
        (2, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(2, 1)
    os.chdir("/")
    os.execvpe(argv[0], argv, dict(os.environ) if env is None else env)  # noqa: S606 - that is its task


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Fork a process with the PID that was asked for."""
    wanted = int(request["pid"])
    set_last_pid(wanted - 1)
    # Closed by a successful exec, so that reading it waits for that, or brings the reason why not.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.getpid() != wanted:
                raise OSError(0, f"PID {wanted} is taken")
            become(request["argv"], request["env"], request["log"])
        except OSError as error:
            os.write(writer, f"cannot start {request['argv'][0]}: {error.strerror}".encode())
        finally:
            os._exit(127)
    os.close(writer)
    # The next IDs are left to the service's threads and children: they move along with it, and must be free
    # at the destination, where helpers have others (else "Unable to create a thread")
    with os.fdopen(reader, encoding="utf-8") as pipe:
        failure = pipe.read()
    return {"error": failure} if failure else {"pid": pid}


def kill(request: dict[str, Any]) -> dict[str, Any]:
    """Send a signal; a process that is gone is no error."""
    try:
        os.kill(int(request["pid"]), int(request["signal"]))
    except ProcessLookupError:
        return {"gone": True}
    return {"gone": False}


def main() -> None:
    """Obey requests until stdin ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C in a terminal must not end the server
    set_last_pid(int(sys.argv[1]) - 1)
    if len(sys.argv) > 2:
        serve_agents(int(sys.argv[2]))
        return
    say_ready()
    obey_all(sys.stdin, sys.stdout)


def say_ready() -> None:
    """Tell the agent that made this container."""
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()


def obey(line: str | bytes) -> dict[str, Any]:
    """Obey one request."""
    request = json.loads(line)
    try:
        return {"start": start, "kill": kill}[request["do"]](request)
    except OSError as error:
        return {"error": f"{error.strerror}: {error.filename}" if error.filename else str(error)}


def obey_all(requests: TextIO, answers: TextIO) -> None:
    """Obey one request after another until there are no more."""
    for line in requests:
        answers.write(json.dumps(obey(line)) + "\n")
        answers.flush()


class Kept:
    """Descriptors that belong to processes here, kept for whoever is the agent."""

    def __init__(self) -> None:
        self.of: list[tuple[int, int]] = []  # PID, descriptor
        self.arrived: list[int] = []  # with the requests that are being read

    def obey(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]] | None:
        """The answer and the descriptors that go with it; None for a request of another kind."""
        if request["do"] == "keep":
            if not self.arrived:
                return {"error": "no descriptor came"}, []
            self.of.append((int(request["pid"]), self.arrived.pop(0)))
            return {}, []
        if request["do"] == "kept":
            return {"pids": [pid for pid, _ in self.of]}, [descriptor for _, descriptor in self.of]
        if request["do"] == "drop":
            for _, descriptor in self.of:
                os.close(descriptor)
            self.of.clear()
            return {}, []
        return None


def obey_agent(connection: socket.socket, kept: Kept) -> None:
    """Obey one agent until it closes its connection or is killed."""
    import socket

    buffer = b""
    while True:
        data, arrived, _, _ = socket.recv_fds(connection, 65536, 16)
        if not data:
            return
        for descriptor in arrived:
            os.set_inheritable(descriptor, False)  # recv_fds of Python 3.11 forgets its flags
        kept.arrived += arrived
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            about_kept = kept.obey(json.loads(line))
            answer, passed = about_kept if about_kept is not None else (obey(line), [])
            words = json.dumps(answer).encode() + b"\n"
            if passed:
                socket.send_fds(connection, [words], passed)
            else:
                connection.sendall(words)


def is_from_outside(connection: socket.socket) -> bool:
    """Whether the other end belongs to no process of this PID namespace or of one within it.

    The socket's name is a file that is not to be seen in here. Should it be all the same: the kernel gives
    the PID of whoever connected as it is seen from here, 0 for a process that cannot be seen.
    """
    import socket

    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], sys.byteorder) == 0


def serve_agents(descriptor: int) -> None:
    """Obey whoever is connected to the listening socket that was passed to this process."""
    import socket  # only here: without it, init starts faster

    os.set_inheritable(descriptor, False)  # what is started here must not have it
    listener = socket.socket(fileno=descriptor)
    say_ready()
    kept = Kept()
    while True:
        connection, _ = listener.accept()
        with connection:
            if not is_from_outside(connection):
                continue
            try:
                obey_agent(connection, kept)
            except (OSError, ValueError):
                continue  # the agent was killed in the middle of a request
            finally:
                for descriptor in kept.arrived:
                    os.close(descriptor)
                kept.arrived.clear()


if __name__ == "__main__":
    main()
