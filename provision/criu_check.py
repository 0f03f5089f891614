"""Judge a CRIU by doing: dump and restore a child with an UDP socket, then ask the child.

Run by provision/criu.sh before there is a Python environment, so it uses the standard library only:
``unshare --net --mount --pid --fork --kill-child --mount-proc python3 -S -E criu_check.py CRIU``.
Exit status 0 when the child answers after its restore; the last line printed says what went wrong.
"""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

CHILD = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 4000))
count = 0
while True:
    _, who = s.recvfrom(100)
    count += 1
    s.sendto(str(count).encode(), who)
"""


def fail(why: str, log: Path | None = None) -> None:
    """Print the log's errors and the reason, and end."""
    if log is not None and log.exists():
        lines = log.read_text(errors="replace").splitlines()
        print("\n".join(line for line in lines if "Error" in line))
    print(why)
    raise SystemExit(1)


def ask(client: socket.socket, seconds: float) -> int:
    """The child's answer, or 0 when it is silent for that long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            client.send(b"?")
            return int(client.recv(100))
        except OSError:
            time.sleep(0.01)
    return 0


def main(criu: str) -> None:
    """Start, ask, dump, restore, ask."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a zombie would hold the PID that restore needs
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=False)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
    images = Path("/run/images")
    images.mkdir()
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen([sys.executable, "-S", "-E", "-c", CHILD], start_new_session=True, **quiet)
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(0.2)
    client.connect(("127.0.0.1", 4000))
    before = ask(client, 10)
    if not before:
        fail("the child did not start")
    for step in (["dump", "-t", str(child.pid)], ["restore", "-d"]):
        log = f"{step[0]}.log"
        # SIGCHLD is ignored here, so the status of a child is lost: the images and the answer tell.
        subprocess.run([criu, *step, "-D", str(images), "-o", log, "-v1"], check=False, **quiet)
        if step[0] == "dump" and Path(f"/proc/{child.pid}").exists():
            fail("dump failed", images / "dump.log")
    after = ask(client, 2)
    if after <= before:
        fail("the child does not answer after its restore", images / "restore.log")
    print("works")


main(sys.argv[1])
