"""A container with a record outlives its agent, and the next agent finds it as it was."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.support import in_private_root

PRELUDE = """
import asyncio, os, signal, sys, time
from pathlib import Path
from quicferry.migration.container.container import Container
RECORD = Path(ARGUMENTS)
FIRST_AGENT = '''
import asyncio, sys
from pathlib import Path
from quicferry.migration.container.container import Container
async def play():
    box = await Container.create("edge-1", record=Path(sys.argv[1]))
    await box.start(["sleep", "60"])
    print(box.init_pid, box.service_pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(play())
'''
async def killed_agent():
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FIRST_AGENT, str(RECORD), stdout=asyncio.subprocess.PIPE
    )
    init_pid, service_pid = map(int, (await agent.stdout.readline()).split())
    agent.kill()
    await agent.wait()
    return init_pid, service_pid
"""


def test_the_next_agent_finds_container_and_service(tmp_path: Path) -> None:
    got = in_private_root(
        PRELUDE
        + """
async def play():
    init_pid, service_pid = await killed_agent()
    await asyncio.sleep(0.2)
    box = await Container.create("edge-1", record=RECORD)
    same = (box.init_pid, box.service_pid) == (init_pid, service_pid)
    alive = box.is_alive(service_pid)
    second = await box.start(["sleep", "60"])
    running = len(box.processes())
    await box.end_processes()
    left = (len(box.processes()), box.service_pid)
    await box.close()
    for _ in range(100):
        if not os.path.exists(f"/proc/{init_pid}"):
            break
        await asyncio.sleep(0.02)
    return dict(same=same, alive=alive, next=second - service_pid, running=running, left=left,
        init=os.path.exists(f"/proc/{init_pid}"), record=RECORD.exists())
report(asyncio.run(play()))
""",
        tmp_path,
        arguments=str(tmp_path / "record"),
    )
    assert got["same"] and got["alive"]
    assert (got["next"], got["running"]) == (50, 2)
    assert got["left"] == [0, None]
    assert (got["init"], got["record"]) == (False, False)


def test_what_an_agent_held_is_kept_for_the_next(tmp_path: Path) -> None:
    got = in_private_root(
        PRELUDE.replace(
            "    print(box.init_pid",
            """    reader, writer = os.pipe()
    os.write(writer, b"kept")
    await box.keep(box.service_pid, reader)
    print(box.init_pid""",
        ).replace("import asyncio, sys\n", "import asyncio, os, sys\n")
        + """
from quicferry.migration.container.descriptors import descriptors_in

async def play():
    _, service_pid = await killed_agent()
    box = await Container.create("edge-1", record=RECORD)
    ((pid, descriptor),) = box.take_left()
    content = os.read(descriptor, 4).decode()
    # it is a copy: the next one would find it, too, and what is started does not have it
    await box.start(["sleep", "60"])
    # those that it closes while it starts are left out
    held = [leads for _, leads in descriptors_in(box.path(f"/proc/{box.service_pid}"))]
    box._requests.close()
    again = await Container.create("edge-1", record=RECORD)
    found = len(again.take_left())
    await again.drop_kept()
    again._requests.close()
    last = await Container.create("edge-1", record=RECORD)
    left = last.take_left()
    await last.close()
    return dict(mine=pid == service_pid, content=content, found=found, left=left,
        pipes=sum("pipe" in each for each in held))
report(asyncio.run(play()))
""",
        tmp_path,
        arguments=str(tmp_path / "record"),
    )
    assert got == {"mine": True, "content": "kept", "found": 1, "left": [], "pipes": 0}


def test_a_container_that_has_gone_is_made_anew(tmp_path: Path) -> None:
    got = in_private_root(
        PRELUDE
        + """
async def play():
    init_pid, _ = await killed_agent()
    os.kill(init_pid, signal.SIGKILL)
    await asyncio.sleep(0.2)
    async with await Container.create("edge-1", record=RECORD) as box:
        return dict(other=box.init_pid != init_pid, service=box.service_pid)
report(asyncio.run(play()))
""",
        tmp_path,
        arguments=str(tmp_path / "record"),
    )
    assert got == {"other": True, "service": None}


def test_a_container_without_a_record_ends_with_its_agent(tmp_path: Path) -> None:
    got = in_private_root(
        PRELUDE.replace("record=Path(sys.argv[1])", "")
        + """
async def play():
    init_pid, _ = await killed_agent()
    for _ in range(100):
        if not os.path.exists(f"/proc/{init_pid}"):
            return False
        await asyncio.sleep(0.02)
    return True
report(asyncio.run(play()))
""",
        tmp_path,
        arguments=str(tmp_path / "record"),
    )
    assert got is False


WITHIN = r"""
import json, socket
names = [line.split()[7] for line in open("/proc/net/unix") if len(line.split()) > 7]
reached = []
for name in names:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(1)
        try:
            s.connect("\0" + name[1:] if name.startswith("@") else name)
            reached.append(name)
        except OSError:
            continue
print(json.dumps([names, reached]))
"""


def test_nothing_in_a_container_finds_its_inits_socket(tmp_path: Path) -> None:
    """It is no abstract socket, which the network namespace would show, and its file is of another place."""
    (tmp_path / "within.py").write_text(WITHIN)
    status, stdout, stderr, files, left = in_private_root(
        PRELUDE
        + """
async def play():
    box = await Container.create("edge-1", record=RECORD)
    done = await box.run([sys.executable, str(RECORD.parent / "within.py")])
    files = [path.name for path in RECORD.parent.glob("*.socket")]
    await box.close()
    return [done.status, done.stdout, done.stderr, files, len(list(RECORD.parent.glob("*.socket")))]
report(asyncio.run(play()))
""",
        tmp_path,
        arguments=str(tmp_path / "record"),
    )
    assert status == 0, stderr
    names, reached = json.loads(stdout)
    assert len(files) == 1 and left == 0
    assert [name for name in names if files[0] in name], "init listens somewhere else"
    assert reached == []
