"""A container in which runc runs the server as an OCI container of its own.

Theory of operation. The edge host's container (``container.container``) stays as it is: a PID and a mount
namespace with a private ``/run``, and an init that may outlive its agent. In it, runc makes a second
one from a bundle on that ``/run``. So what holds for the first holds for the second: it ends with it,
whatever becomes of agent and tool; runc's own state is private to the run and goes with the tmpfs;
and the agent reaches the server's ``/run``, a directory on it, by ``path`` and ``place_of``. The server
reaches nothing else of it: neither the bundle, which runc reads as root, nor images of itself.

PIDs are those that the edge host's container gives. The server is PID 1 in its own namespace; out
here it has another PID on every host it comes to.

The control group. The edge host's container has a group of cgroup v2, and a cgroup namespace whose root it
is. In it the server's container has the group ``/server``: by this name runc and CRIU find it on every host,
and it is always that of the host where the server runs. What joins the namespaces must join the group
before, or it would see the group of others in ``/proc/self/cgroup``. Freezing the group stops all that is in
it at once, and nothing of that is to be seen in the images.

Where cgroup v2 cannot be mounted, runc 1.1 can do without: it finds what it insists on, the devices
hierarchy of cgroup v1, mounted for it alone and read-only, and with ``--rootless true`` makes no group in it.
The server is then stopped by SIGSTOP. See docs/adr/0010.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Self

import msgspec

from quicferry.emulation.sandbox import cgroups
from quicferry.errors import MigrationError, Unsupported
from quicferry.migration.container import oci_bundle
from quicferry.migration.container.container import JOIN, MOUNT_RUN, Container, Surroundings
from quicferry.migration.container.layer import Layer
from quicferry.migration.container.oci_image import ImageSettings, read_image
from quicferry.migration.container.processes import Completed
from quicferry.migration.container.volumes import ContainerFiles
from quicferry.process import find_program, run, stat_fields
from quicferry.slowness import longer

START_S = 20.0
DELETE_S = 10.0
VFORK_S = 2.0  # for all processes of the group to have their children
VFORK_POLL_S = 0.002  # for a process in vfork to get its child, between two attempts to freeze it
INSTALL_HINT = "run `make setup` as root, or `apt-get install runc`; `quicferry doctor` tries it out"

#: A fresh /sys, as cgroup mounts that are only hidden are found in the mount table.
FRESH_SYS = ("while mountpoint -q /sys; do umount -R -l /sys || exit; done", "mount -t sysfs sysfs /sys")
WITH_GROUP = " && ".join((MOUNT_RUN, *FRESH_SYS, "mount -t cgroup2 cgroup2 /sys/fs/cgroup"))
WITHOUT_GROUP = " && ".join(
    (
        MOUNT_RUN,
        *FRESH_SYS,
        "mount -t tmpfs -o mode=0755 tmpfs /sys/fs/cgroup",
        "mkdir /sys/fs/cgroup/devices",
        "mount -t cgroup -o devices cgroup /sys/fs/cgroup/devices",
        "mount -o remount,bind,ro /sys/fs/cgroup/devices",
    )
)
GROUPS = "/sys/fs/cgroup"


#: Names another runc than the one on the PATH.
RUNC_VARIABLE = "QUICFERRY_RUNC"
#: For crun: it hands CRIU the container's group as the root of every hierarchy, those of cgroup v1 included,
#: so that CRIU makes groups in each, on the whole machine, and leaves them there. crun makes its own itself.
CRUN_GROUPS = ("--manage-cgroups-mode", "ignore")


def find_runc() -> Path:
    """The runc to use: what ``QUICFERRY_RUNC`` names, else that on the PATH. Raises ``Unsupported``."""
    named = os.environ.get(RUNC_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise Unsupported(
                f"{RUNC_VARIABLE} names {named}, which is no program",
                hint="give the path of a runc that can be executed, or unset it to take the one on the PATH",
            )
        return Path(named).resolve()
    found = find_program("runc")
    if found is None:
        raise Unsupported("there is no runc on the PATH", hint=INSTALL_HINT)
    return found


@functools.cache
def is_crun(program: Path) -> bool:
    """Whether the program that stands for runc is crun, which has nearly the same commands."""
    return run([program, "--version"], check=False).stdout.startswith("crun ")


def can_leave_memory_out() -> bool:
    """Whether the runtime can dump without the memory: crun has no ``--lazy-pages``."""
    try:
        return not is_crun(find_runc())
    except Unsupported:
        return False


class OciContainer(Container):
    """An edge host's container whose server runs in an OCI container of its own.

    ``box = await OciContainer.make("edge-1")`` … ``await box.close()``; see the module.
    """

    tool = "runc"  # the program that makes, dumps and restores the server's container
    runc = Path("runc")
    by_crun = False  # that program is crun
    files = oci_bundle.RootFiles({}, [])
    given = ContainerFiles()
    image: ImageSettings | None = None
    readable: Sequence[Path] = ()
    #: what the container writes; None: it writes to ``/run`` only
    layer: Layer | None = None

    @classmethod
    def surroundings(cls, edge: str) -> Surroundings:
        """With a control group and a cgroup namespace, where cgroup v2 can be mounted."""
        try:
            group = cgroups.make(edge)
        except Unsupported:
            return Surroundings(WITHOUT_GROUP)
        return Surroundings(WITH_GROUP, ("--cgroup",), group)

    @classmethod
    async def make(
        cls,
        edge: str,
        readable: Iterable[str] = (),
        *,
        enter: Sequence[str] = (),
        record: Path | None = None,
        given: ContainerFiles | None = None,
    ) -> Self:
        """As ``Container.create``; the server may also read what is in the ``readable`` directories.

        With files ``given`` it has a layer to write to, over the image. Raises ``Unsupported`` without
        runc, and ``InvalidInput`` for directories it cannot be given, and for an image that cannot be read.
        """
        runc, files = find_runc(), oci_bundle.root_files(readable)
        image = None
        if given is not None and given.image is not None:
            image = await asyncio.to_thread(read_image, Path(given.image))
            always = [*map(str, readable)]
            files = oci_bundle.lacking(Path(image.root), files)
            files = files._replace(binds=sorted({*files.binds, *always}))
        made = await cls.create(edge, enter=enter, record=record)
        made.runc, made.by_crun = runc, is_crun(runc)
        made.files, made.image = files, image
        made.readable = [Path(directory) for directory in readable]
        try:
            await asyncio.to_thread(made.make_directories)
            await asyncio.to_thread(made.admit_user)
            if given is not None:
                made.given = given
                await made.use_layer()
            await asyncio.to_thread(made.lay_out)
        except (OSError, MigrationError) as error:
            await made.close()
            raise MigrationError(f"the bundle on {edge} could not be made: {error}") from error
        return made

    async def use_layer(self) -> None:
        """Mount the container's root over its image, unless an agent before this one has done so."""
        below = self.image.root if self.image is not None else str(oci_bundle.EMPTY)
        named = [volume.source for volume in self.given.volumes if volume.moves]
        self.layer = Layer(self, oci_bundle.ROOTFS, below, named)
        if not self.layer.is_mounted:
            await self.layer.mount()

    def admit_user(self) -> None:
        """Let the container's user, if that is not root, read what it is given. Raises ``OSError``."""
        if self.image is None or self.image.uid == 0:
            return
        for directory in self.readable:
            for path in (directory, *directory.rglob("*")):
                if not path.is_symlink():
                    os.chown(path, -1, self.image.gid)
                    path.chmod(path.stat().st_mode | (0o050 if path.is_dir() else 0o040))

    def hand_over(self, files: Iterable[str]) -> None:
        """Give files that came with the server to its user."""
        if self.image is not None and self.image.uid:
            for name in files:
                os.chown(self.path(name), self.image.uid, self.image.gid, follow_symlinks=False)

    async def renew_layer(self) -> None:
        """Begin with an empty layer: this host becomes a destination."""
        if self.layer is not None:
            await self.layer.mount()
            await asyncio.to_thread(self.lay_out)

    def make_directories(self) -> None:
        """Make the directories of runc and of the bundle; may be repeated. Raises ``OSError``."""
        for directory in (
            oci_bundle.HOME,
            oci_bundle.BUNDLE,
            oci_bundle.ROOTFS,
            oci_bundle.EMPTY,
            oci_bundle.STATE,
            oci_bundle.DEVICES,
            oci_bundle.RUN,
        ):
            self.inside(directory).mkdir(mode=0o700, exist_ok=True)

    def lay_out(self) -> None:
        """Make what is in the bundle; may be repeated. Raises ``OSError``."""
        self.inside(oci_bundle.DEVICES).chmod(0o755)
        of_a_user = self.image is not None and self.image.uid != 0
        # not sticky: there a file of another user cannot be opened for writing (fs.protected_regular)
        self.inside(oci_bundle.RUN).chmod(0o777 if of_a_user else 0o755)
        self.inside(oci_bundle.ROOTFS).chmod(0o755)
        # CRIU opens mounts by way of a directory that it makes in /tmp; without one it takes the root,
        # which is read-only by then. A checkout below /tmp brings it along, others do not.
        self.inside(oci_bundle.TMP).mkdir(exist_ok=True)
        for name, (major, minor) in oci_bundle.NODES.items():
            node = self.inside(oci_bundle.DEVICES) / name
            if not node.exists():
                os.mknod(node, 0o020666, os.makedev(major, minor))
                node.chmod(0o666)  # mknod heeds the umask
        for path, target in self.files.links.items():
            link = self.inside(oci_bundle.ROOTFS) / path.lstrip("/")
            if not os.path.lexists(link):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
        if not (self.inside(oci_bundle.BUNDLE) / "config.json").exists():
            # a restore reads namespaces and mounts from the bundle, and the program from the images
            self._write_bundle(["true"], {})

    @cached_property
    def has_group(self) -> bool:
        """Whether the server's container has a control group of its own."""
        return (self.path(GROUPS) / "cgroup.procs").exists()

    @property
    def halts_by_signal(self) -> bool:  # type: ignore[override]
        """Whether ``halt`` sends SIGSTOP, for want of a group to freeze."""
        return not self.has_group

    def command(self, argv: Sequence[str]) -> list[str]:
        """As in the base; in the container's control group and cgroup namespace, too."""
        plain = super().command(argv)
        if not self.has_group:
            return plain
        program, *words = plain
        return ["sh", "-c", JOIN, str(self.path(GROUPS) / "cgroup.procs"), program, "--cgroup", *words]

    async def halt(self, pid: int) -> None:
        """Freeze the server's control group, with all its processes and threads.

        A process in vfork(2) counts as frozen, but CRIU cannot seize it: it waits, uninterruptible, for
        its child to call exec, and the child is frozen too. So it is let go until it has its child.
        Raises ``MigrationError`` when it never has; the group goes on then.
        """
        if not self.has_group:
            await super().halt(pid)
            return
        try:
            async with asyncio.timeout(VFORK_S):
                while True:
                    self._write_frozen(1)
                    await self._until_stopped(pid)
                    if not self._waits_for_a_child():
                        return
                    self._write_frozen(0)
                    await asyncio.sleep(VFORK_POLL_S)
        except TimeoutError as error:
            await self.unhalt(pid)
            raise MigrationError(
                f"a process of the container on {self.edge} waits in vfork: it cannot be dumped",
                hint="wait until that process has started its child, or start children by fork",
            ) from error

    def _waits_for_a_child(self) -> bool:
        """Whether a thread of the frozen group is uninterruptible, which only vfork makes it."""
        for thread in (self._server_group / "cgroup.threads").read_text().split():
            with contextlib.suppress(OSError):  # a zombie that was reaped
                if stat_fields(Path(f"/proc/{thread}"))[0] == "D":
                    return True
        return False

    async def unhalt(self, pid: int) -> None:
        """Thaw the server's control group."""
        if not self.has_group:
            await super().unhalt(pid)
            return
        with contextlib.suppress(FileNotFoundError):
            self._write_frozen(0)

    def is_stopped(self, pid: int) -> bool:
        """Whether the process is there and its control group frozen."""
        if not self.has_group:
            return super().is_stopped(pid)
        try:
            events = (self._server_group / "cgroup.events").read_text()
        except OSError:
            return False
        return "frozen 1" in events and self.is_alive(pid)

    @property
    def _server_group(self) -> Path:
        return self.path(GROUPS) / oci_bundle.GROUP.name

    def _write_frozen(self, value: int) -> None:
        (self._server_group / "cgroup.freeze").write_text(str(value))

    def pid_of_inner(self, inner: int) -> int | None:
        """The PID here of the process that has the PID ``inner`` in the server's container."""
        server = self.service_pid
        if server is None or inner == 1:
            return server
        for process in self.processes():
            with contextlib.suppress(OSError):  # it ended while we looked
                status = self.path(f"/proc/{process.pid}/status").read_text()
                if re.search(rf"^NSpid:\s+{process.pid}\s+{inner}$", status, re.MULTILINE):
                    return process.pid
        return None

    def inside(self, path: PurePosixPath) -> Path:
        """The agent's path to a file or directory on the private ``/run``."""
        return self.path(str(path))

    def _write_bundle(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Write ``config.json`` for a server with that argument vector and environment."""
        described = oci_bundle.spec(
            argv,
            env,
            hostname=self.edge,
            log=f"/run/{self._log_name}",
            binds=self.files.binds,
            group=oci_bundle.GROUP if self.has_group else None,
            image=self.image or (ImageSettings(root="") if self.layer is not None else None),
            volumes=self.given.volumes,
        )
        (self.inside(oci_bundle.BUNDLE) / "config.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(described))
        )

    @property
    def name(self) -> str:
        """The name by which runc knows the container."""
        return f"quicferry-{self.edge}"

    def log_path(self, pid: int) -> str:
        """The one log of all servers that are started here: their PIDs are not known in advance."""
        return str(oci_bundle.RUN / self._log_name)

    @property
    def _log_name(self) -> str:
        return f"service-{self.edge}.log"

    def place_of(self, path: str) -> str:
        """What the server has below ``/run`` is in a directory of its own here."""
        inside = PurePosixPath(path)
        return str(oci_bundle.RUN / inside.relative_to("/run")) if inside.is_relative_to("/run") else path

    def pid_made(self) -> int:
        """The PID, among those of this host's container, of the server that runc started or restored last."""
        return int(self.inside(oci_bundle.PID_FILE).read_bytes())

    async def run_tool(
        self,
        *words: str,
        timeout_s: float,
        path: str | None = None,
        descriptors: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> Completed:
        """Run runc in the edge host's container; ``path`` is its PATH, ``descriptors`` are as in ``run``.

        ``env``: variables beside those of this process; ``before``: words of a program that becomes runc.
        """
        environment = [f"{name}={value}" for name, value in (env or {}).items()]
        environment += [f"PATH={path}"] if path is not None else []
        rootless = [] if self.has_group else ["--rootless", "true"]
        fixed = [str(self.runc), *rootless, "--root", str(oci_bundle.STATE)]
        return await self.run(
            ["env", *environment, *before, *fixed, *words], timeout_s=timeout_s, descriptors=descriptors
        )

    async def start(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
        """Start the server's process in a new OCI container, with stdio opened inside; returns its PID."""
        await self.forget()
        if self.given.disk_mib:
            await asyncio.to_thread(oci_bundle.fill_disk, self.inside(oci_bundle.ROOTFS), self.given.disk_mib)
        self._write_bundle(argv, os.environ if env is None else env)
        done = await self.run_tool(
            *(
                "run",
                "--detach",
                "--bundle",
                str(oci_bundle.BUNDLE),
                "--pid-file",
                str(oci_bundle.PID_FILE),
                self.name,
            ),
            timeout_s=longer(START_S),
        )
        if done.status != 0:
            raise MigrationError(
                f"runc could not start the server on {self.edge}: {last_words(done)}",
                hint="`quicferry doctor` tries runc out"
                + (
                    ": if it says yes, it is what the image or its config.json asks for" if self.image else ""
                ),
            )
        self.adopt(self.pid_made())
        return self.pid_made()

    async def forget(self) -> None:
        """Let runc forget a container whose process has ended. Raises ``MigrationError`` while it lives."""
        if self.service_pid is not None:
            raise MigrationError(f"a server already runs on {self.edge}")
        if self.inside(oci_bundle.STATE / self.name).exists():
            await self.remove()

    async def remove(self) -> None:
        """Kill the container's server and let runc forget the container."""
        # runc, too, would kill it, but looks only every 100 ms whether it is dead
        with contextlib.suppress(OSError, ValueError):
            await self.stop(self.pid_made(), grace_s=0)
            self.inside(oci_bundle.PID_FILE).unlink()
        done = await self.run_tool("delete", "--force", self.name, timeout_s=longer(DELETE_S))
        state = self.inside(oci_bundle.STATE / self.name)
        if state.exists() and done.status != 0:
            raise MigrationError(f"runc could not remove a container on {self.edge}: {last_words(done)}")
        shutil.rmtree(state, ignore_errors=True)


def last_words(done: Completed) -> str:
    """The last line that runc wrote about its failure."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"it ended with status {done.status} and without a message"
