"""The OCI bundle of a server: what runc is told of its container, as plain values.

Structs are the part of the OCI runtime specification that is used here, under its own names
(https://github.com/opencontainers/runtime-spec, 1.0.2: config.md, config-linux.md). What is not in a
bundle is as deliberate as what is: see ``docs/adr/0010-oci-containers.md``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from quicferry import plugins
from quicferry.errors import InvalidInput
from quicferry.migration.container.layer import VOLUMES
from quicferry.migration.container.oci_image import MAPPED_IDS, ImageSettings, User
from quicferry.migration.container.volumes import Volume
from quicferry.paths import CHECKOUT
from quicferry.units import BYTES_PER_MIB

OCI_VERSION = "1.0.2"

#: All of runc's things, on the private tmpfs of the edge host's container.
HOME = PurePosixPath("/run/oci")
BUNDLE = HOME / "bundle"
ROOTFS = BUNDLE / "rootfs"
TMP = ROOTFS / "tmp"
EMPTY = HOME / "empty"  # below a layer without an image
DISK = PurePosixPath("/var/lib/quicferry-disk")  # the files of the axis disk_mib, in the container
STATE = HOME / "state"
DEVICES = HOME / "dev"
#: What the container has as its ``/run``: a directory of its own, so that it reaches nothing of the above.
RUN = PurePosixPath("/run/box")
CRIU_CONFIG = HOME / "criu.conf"
PID_FILE = HOME / "pid"
#: The container's control group, as the edge host's cgroup namespace has it: the same on every host.
GROUP = PurePosixPath("/server")

#: What a program needs of the system; links among them (``/bin`` to ``usr/bin``) stay links.
SYSTEM = ("/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr")
#: These are the container's own and cannot come from outside.
OWN = ("/dev", "/proc", "/run")
#: Character devices: name -> major and minor number (Linux, Documentation/admin-guide/devices.txt).
NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}

#: Opens stdio inside the container, where CRIU finds it; runc would pass on what it has itself.
WITH_STDIO_ON = 'log=$1; shift; exec "$@" </dev/null >>"$log" 2>&1'


class Capabilities(msgspec.Struct, frozen=True):
    """The capabilities of the process: none."""

    bounding: list[str] = []
    effective: list[str] = []
    permitted: list[str] = []


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """The program that is started. Root, as it reads its key files, but without a single capability."""

    args: list[str]
    env: list[str]
    cwd: str = "/"
    terminal: bool = False
    user: User = User()
    capabilities: Capabilities | dict[str, list[str]] = Capabilities()
    rlimits: list[dict[str, Any]] | UnsetType = UNSET
    noNewPrivileges: bool = True  # noqa: N815 - the specification's names


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """The root file system, by its path relative to the bundle."""

    path: str = ROOTFS.name
    readonly: bool = True


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One mount; mounts are made in the order of the list."""

    destination: str
    type: str
    source: str
    options: list[str] = []


class Namespace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A namespace: a new one, or the one at ``path``."""

    type: str
    path: str = ""


class DeviceRule(msgspec.Struct, frozen=True, kw_only=True):
    """What the control group lets the container do with devices; the last rule that fits counts."""

    allow: bool
    access: str  # r, w, m: read, write, mknod
    type: str = "a"
    major: int | None = None
    minor: int | None = None


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of the control group."""

    devices: list[DeviceRule]


class IdMapping(msgspec.Struct, frozen=True, kw_only=True):
    """IDs of a user namespace: the same inside as outside."""

    containerID: int = 0  # noqa: N815
    hostID: int = 0  # noqa: N815
    size: int = MAPPED_IDS


class Linux(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Namespaces and control group of the container."""

    namespaces: list[Namespace]
    cgroupsPath: str = ""  # noqa: N815
    uidMappings: list[IdMapping] = []  # noqa: N815
    gidMappings: list[IdMapping] = []  # noqa: N815
    resources: Resources | None = None
    seccomp: dict[str, Any] | None = None
    maskedPaths: list[str] = []  # noqa: N815
    readonlyPaths: list[str] = []  # noqa: N815


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """``config.json`` of a bundle."""

    ociVersion: str = OCI_VERSION  # noqa: N815
    root: Root = Root()
    hostname: str
    process: Process
    mounts: list[Mount]
    linux: Linux
    annotations: dict[str, str]


class RootFiles(NamedTuple):
    """The part of the machine's file system that the container sees, all of it read-only."""

    links: dict[str, str]  # path -> where it leads
    binds: list[str]


def root_files(readable: Iterable[str | Path], system: Sequence[str] = SYSTEM) -> RootFiles:
    """The files for the system, this Python, the checkout's packages, plug-ins, and ``readable``.

    Not the whole checkout: below it may be run directories, with the keys of others, and a directory of
    ``readable`` on a file system of its own, which a bind of what is above it would hide. Directories below
    others of the list are left out, as those bring them. Raises ``InvalidInput``
    for one that the container has to have for itself, or that is no absolute path.
    """
    links: dict[str, str] = {}
    wanted: list[PurePosixPath] = []
    for name in map(Path, system):
        if name.is_symlink():
            links[str(name)] = str(name.readlink())
        elif name.is_dir():
            wanted.append(PurePosixPath(name))
    packages = sorted(path.parent for path in CHECKOUT.glob("*/__init__.py"))
    for given in (sys.base_prefix, sys.prefix, *packages, *plugins.folders(), *readable):
        path = PurePosixPath(os.path.normpath(given))
        if not path.is_absolute() or any(path.is_relative_to(own) for own in OWN):
            raise InvalidInput(
                f"the container cannot be given {given}",
                hint=f"name an absolute path that is not below {', '.join(OWN)}",
            )
        if Path(path).is_symlink():
            # as a mount it would share its source with what it leads to: CRIU restores one of them writable
            links[str(path)] = str(Path(path).resolve())
            path = PurePosixPath(links[str(path)])
        wanted.append(path)
    binds: list[PurePosixPath] = []
    for path in sorted(set(wanted)):  # a directory comes before what is in it
        if not any(path.is_relative_to(above) for above in binds):
            binds.append(path)
    return RootFiles(links, [str(path) for path in binds])


def _volume(volume: Volume) -> Mount:
    """The mount of a volume: one that moves can be written to."""
    source, mode = (str(VOLUMES / volume.source), "rw") if volume.moves else (volume.source, "ro")
    return Mount(
        destination=volume.target, type="bind", source=source, options=["bind", mode, "nosuid", "nodev"]
    )


def lacking(root: Path, files: RootFiles) -> RootFiles:
    """Of the system's files, those that the image with that root lacks: what it has is its own."""

    def lacks(path: str) -> bool:
        there = root / path.lstrip("/")
        if there.is_symlink():
            return False
        return not there.exists() or (there.is_dir() and not any(there.iterdir()))

    links = {path: target for path, target in files.links.items() if lacks(path)}
    return RootFiles(links, [path for path in files.binds if lacks(path)])


def fill_disk(root: Path, disk_mib: int) -> None:
    """Make files of a MiB below the root of a container, of contents that do not shrink when compressed."""
    directory = root / DISK.relative_to("/")
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(disk_mib):
        (directory / f"{number:05d}").write_bytes(os.urandom(BYTES_PER_MIB))


def device_rules() -> list[DeviceRule]:
    """No device but those of ``NODES``."""
    allowed = [
        DeviceRule(allow=True, access="rw", type="c", major=major, minor=minor)
        for major, minor in NODES.values()
    ]
    return [DeviceRule(allow=False, access="rwm"), *allowed]


def spec(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    hostname: str,
    log: str,
    binds: Iterable[str],
    group: PurePosixPath | None = None,
    image: ImageSettings | None = None,
    volumes: Sequence[Volume] = (),
) -> Spec:
    """The bundle's description of a server that runs ``argv`` and writes its stdout and stderr to ``log``.

    No tmpfs is mounted, as CRIU would pack its files into the image, and nothing of cgroup, mqueue,
    sysfs or devpts. ``/run`` and ``/dev`` are directories on that of the edge host's container. ``group`` is
    its control group; None: it has none of its own. ``image``: how that wants to be run.
    """
    limits: dict[str, Any] = {}
    # CRIU reads and sets the limits of its processes, which for another user's takes CAP_SYS_RESOURCE; in a
    # user namespace of theirs root has that
    of_a_user = image is not None and image.uid != 0
    mapped: dict[str, Any] = {}
    if image is not None and of_a_user:
        limits["user"] = User(image.uid, image.gid)
        mapped = {"uidMappings": [IdMapping()], "gidMappings": [IdMapping()]}
    if image is not None and image.capabilities is not None:
        limits["capabilities"] = image.capabilities
    if image is not None and image.rlimits:
        limits["rlimits"] = image.rlimits
    confined: dict[str, Any] = {}
    if image is not None:
        confined = {
            "seccomp": image.seccomp,
            "maskedPaths": image.masked_paths,
            "readonlyPaths": image.readonly_paths,
        }
    return Spec(
        hostname=hostname,
        root=Root(readonly=image is None or image.readonly),
        annotations={"org.criu.config": str(CRIU_CONFIG)},
        process=Process(
            args=["/bin/sh", "-c", WITH_STDIO_ON, "sh", log, *argv],
            env=[f"{name}={value}" for name, value in {**env, **(image.env if image else {})}.items()],
            cwd=image.cwd if image is not None else "/",
            **limits,
        ),
        mounts=[
            Mount(destination="/proc", type="proc", source="proc", options=["nosuid", "noexec", "nodev"]),
            Mount(destination="/dev", type="bind", source=str(DEVICES), options=["bind", "ro", "nosuid"]),
            Mount(
                destination="/run", type="bind", source=str(RUN), options=["bind", "rw", "nosuid", "nodev"]
            ),
            *(
                Mount(destination=path, type="bind", source=path, options=["bind", "ro", "nodev"])
                for path in binds
            ),
            *map(_volume, volumes),
        ],
        linux=Linux(
            namespaces=[
                Namespace(type="pid"),
                Namespace(type="mount"),
                Namespace(type="ipc"),
                Namespace(type="uts"),
                # the edge host's: runc runs in it, and so does the init that is PID 1 for runc
                Namespace(type="network", path="/proc/1/ns/net"),
                *([Namespace(type="user")] if of_a_user else []),
            ],
            cgroupsPath="" if group is None else str(group),
            resources=None if group is None else Resources(devices=device_rules()),
            **mapped,
            **confined,
        ),
    )
