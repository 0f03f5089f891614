"""A bundle as container tools write it: a user other than root, default seccomp profile, resource limits."""

import json
import platform
from pathlib import Path

import pytest

from tests.e2e.migration.criu_scripts import played

pytestmark = pytest.mark.needs("oci", "oci-lazy-pages", "podman")  # Podman's package has the profile

PROFILE = Path("/usr/share/containers/seccomp.json")
LIMITS = [
    {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024},  # runc spec
    {"type": "RLIMIT_NPROC", "soft": 4096, "hard": 8192},
    {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
]
#: As the profile has them, and as the OCI specification has them.
ARCHITECTURES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}

HOPS = """
def seen(box):
    pid = box.service_pid
    status = dict(line.split(":", 1) for line in box.path(f"/proc/{pid}/status").read_text().splitlines())
    limits = box.path(f"/proc/{pid}/limits").read_text().splitlines()
    return dict(
        uids=status["Uid"].split(), gids=status["Gid"].split(), seccomp=status["Seccomp"].strip(),
        filters=status["Seccomp_filters"].strip(), bounding=status["CapBnd"].strip(),
        limits=sorted(line.split("  ")[0] + ":" + ":".join(line[26:].split()[:2]) for line in limits[1:]),
    )

async def play():
    async with edges("edge-1", "edge-2", engine="ENGINE", given=ContainerFiles(image=ARGUMENTS)) as (a, b):
        await a.start_server("5")
        before, first = await a.ask(), seen(a.container)
        await whole_move(1, a, b)
        second = seen(b.container)
        await whole_move(2, b, a)
        return dict(before=before, first=first, second=second, third=seen(a.container), after=await a.ask())
"""


def default_profile() -> dict:
    """The profile of the container tools (containers-common) as the OCI specification has one."""
    told = json.loads(PROFILE.read_text())
    here, architecture = ARCHITECTURES[platform.machine()]

    def is_for_this(rule: dict) -> bool:
        wanted = rule.get("includes", {})
        return not wanted.get("caps") and here in wanted.get("arches", [here])

    rules = [
        {name: rule[name] for name in ("names", "action", "args", "errnoRet") if rule.get(name) is not None}
        for rule in told["syscalls"]
        if is_for_this(rule)
    ]
    return {"defaultAction": told["defaultAction"], "architectures": [architecture], "syscalls": rules}


def bundle(directory: Path) -> Path:
    (directory / "rootfs" / "srv").mkdir(parents=True)
    process = {"user": {"uid": 1000, "gid": 1001}, "rlimits": LIMITS, "args": ["true"]}
    linux = {"seccomp": default_profile(), "maskedPaths": ["/proc/kcore", "/proc/keys"]}
    config = {"root": {"path": "rootfs"}, "process": process, "linux": linux}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_a_user_with_the_default_profile_and_limits_moves_there_and_back(tmp_path):
    got = played(HOPS, tmp_path, arguments=str(bundle(tmp_path / "image")), ENGINE="runc-pre-copy")
    first = got["first"]
    assert (first["uids"], first["gids"]) == (["1000"] * 4, ["1001"] * 4)
    assert (first["seccomp"], first["filters"]) == ("2", "1")
    assert "Max open files:1024:1024" in first["limits"]
    assert "Max processes:4096:8192" in first["limits"]
    assert got["second"] == got["third"] == first
    assert got["after"]["orders"] == ["Freeze", "Resume"] * 2
    assert got["after"]["sha256"] == got["before"]["sha256"]
