"""A container in which Podman, with runc for its runtime, runs the server as an OCI container.

As ``oci_container``, with Podman between: what Podman keeps (images, containers, volumes, settings) lies on
the private ``/run`` of the edge host's container and ends with it. So does what it would write elsewhere:
``/var/lib`` is covered by an overlay, ``/dev/shm`` (its locks) by a tmpfs.

The server's image is made there, and is the same on all hosts to the last bit: an archive names it by its
digest. What the machine has of the system is mounted into it, as with runc. Capabilities, seccomp profile,
limits and masked paths are those that Podman gives by default, unless the image is a bundle that says others.

Podman has one container at most, of the same name on every host, so that its control group has the same name,
too: that of a restored container is found in its archive.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Self

from quicferry.emulation.sandbox import cgroups
from quicferry.errors import InvalidInput, MigrationError, Unsupported
from quicferry.migration.container import oci_bundle, oci_image
from quicferry.migration.container.container import MOUNT_RUN, Surroundings
from quicferry.migration.container.oci_container import (
    CRUN_GROUPS,
    FRESH_SYS,
    START_S,
    OciContainer,
    last_words,
)
from quicferry.migration.container.oci_image import ImageSettings
from quicferry.migration.container.processes import Completed
from quicferry.migration.container.volumes import ContainerFiles, Volume
from quicferry.process import find_program
from quicferry.slowness import longer

INSTALL_HINT = (
    "run `provision/podman.sh` as root, or `apt-get install podman`; `quicferry doctor` tries it out"
)
LOAD_S = 300.0
REMOVE_S = 30.0

HOME = PurePosixPath("/run/podman")
GRAPH, RUN_ROOT, TEMPORARY, VOLUMES = HOME / "graph", HOME / "run", HOME / "tmp", HOME / "volumes"
NETWORKS, OWN_HOME, SETTINGS = HOME / "networks", HOME / "home", HOME / "settings"
#: What Podman takes for runc, and where that leaves CRIU's last log.
SYS = HOME / "sys"
RUNTIME, LOGS = HOME / "runtime", HOME / "logs"
LAYOUT, IMAGE = HOME / "layout", HOME / "image"  # how an image is made; the digest by which Podman knows it
#: For an archive that is the same whenever it is made: no access times, no PIDs in extended headers (tar(1)).
REPEATABLE = (
    *("--format=posix", "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"),
    *("--sort=name", "--numeric-owner", "--xattrs"),
)
NAME = "quicferry"

#: The private ``/run`` is mounted first, as the overlay needs room on it.
SURROUNDINGS = " && ".join(
    (
        MOUNT_RUN,
        "mkdir -p /run/podman/var/upper /run/podman/var/work",
        "mount -t overlay -o lowerdir=/var/lib,upperdir=/run/podman/var/upper,workdir=/run/podman/var/work "
        "overlay /var/lib",
        "mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
        *FRESH_SYS,
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
    )
)

#: runc for Podman. One of CRIU's images is left out, for the reason given at ``image_stream.LEFT_BEHIND``:
#: Podman unpacks the archive directly before, into a directory that root cannot enter in a user namespace.
#: And what CRIU said is kept, as Podman removes it.
RUNTIME_SCRIPT = """\
#!/bin/sh
step= before= images= work=
for word; do
  shift
  set -- "$@" "$word"
  case $before in
    --image-path) images=$word ;;
    --work-path) work=$word ;;
  esac
  case $step$word in checkpoint | restore) step=$word && set -- "$@" {more} ;; esac
  before=$word
done
[ "$images" ] || exec {runc} "$@"
[ "$step" = restore ] && rm -f "$images/timens-0.img" && chmod -R u+rwX "$images"
{runc} "$@"
status=$?
cp "$work"/*.log {logs}/ 2>/dev/null
exit $status
"""

CONTAINERS_CONF = """\
[containers]
pids_limit = 0
default_sysctls = []
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
tmp_dir = "{tmp}"
static_dir = "{graph}/libpod"
volume_path = "{volumes}"
[engine.runtimes]
runc = ["{runtime}"]
[network]
network_config_dir = "{networks}"
"""
STORAGE_CONF = """\
[storage]
driver = "overlay"
runroot = "{run}"
graphroot = "{graph}"
"""
UNSET = ("--unset=XDG_CONFIG_HOME", "--unset=XDG_RUNTIME_DIR")
POLICY = {"default": [{"type": "insecureAcceptAnything"}]}
#: What a named volume or a bind mount must not have in its names: the separators of Podman's ``--mount``.
SEPARATORS = (",", '"', "\n")


def find_podman() -> Path:
    """The Podman on the PATH. Raises ``Unsupported``."""
    found = find_program("podman")
    if found is None:
        raise Unsupported("there is no podman on the PATH", hint=INSTALL_HINT)
    return found


class PodmanContainer(OciContainer):
    """An edge host's container in which Podman makes the server's; see the module."""

    tool = "podman"
    podman = Path("podman")

    @classmethod
    def surroundings(cls, edge: str) -> Surroundings:
        """With a control group and a cgroup namespace. Raises ``Unsupported`` where there are none."""
        return Surroundings(SURROUNDINGS, ("--cgroup",), cgroups.make(edge))

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
        """As ``OciContainer.make``; also has Podman make the image, unless an agent before this one has."""
        podman = find_podman()
        made = await super().make(edge, readable, enter=enter, record=record, given=given)
        made.podman = podman
        try:
            if not made.inside(IMAGE).exists():
                await made.load_image()
        except OSError as error:
            await made.close()
            raise MigrationError(f"the image on {edge} could not be made: {error}") from error
        except BaseException:
            await made.close()
            raise
        return made

    async def use_layer(self) -> None:
        """Nothing: Podman has a layer over its image, and volumes."""

    async def renew_layer(self) -> None:
        """Nothing: a container's layer goes with it."""

    def make_directories(self) -> None:
        """As in the base; also those of Podman. Raises ``OSError``."""
        super().make_directories()
        for directory in (GRAPH, RUN_ROOT, TEMPORARY, VOLUMES, NETWORKS, OWN_HOME, SETTINGS, LOGS):
            self.inside(directory).mkdir(mode=0o700, parents=True, exist_ok=True)

    def lay_out(self) -> None:
        """Write Podman's settings; may be repeated. Raises ``OSError``."""
        of_a_user = self.image is not None and self.image.uid != 0
        self.inside(oci_bundle.RUN).chmod(0o777 if of_a_user else 0o755)
        places = {
            "tmp": TEMPORARY, "graph": GRAPH, "volumes": VOLUMES, "runtime": RUNTIME, "networks": NETWORKS,
            "run": RUN_ROOT,
        }  # fmt: skip
        policy = OWN_HOME / ".config" / "containers" / "policy.json"
        for path, text in (
            (SETTINGS / "containers.conf", CONTAINERS_CONF.format(**places)),
            (SETTINGS / "storage.conf", STORAGE_CONF.format(**places)),
            (SETTINGS / "registries.conf", ""),
            (policy, json.dumps(POLICY)),
            (RUNTIME, self.runtime_script()),
        ):
            self.inside(path).parent.mkdir(parents=True, exist_ok=True)
            self.inside(path).write_text(text)
        self.inside(RUNTIME).chmod(0o755)
        (self.inside(SYS) / "fs" / "cgroup").mkdir(parents=True, exist_ok=True)
        if self.image is not None and self.image.seccomp is not None:
            self.inside(SETTINGS / "seccomp.json").write_text(json.dumps(self.image.seccomp))

    def runtime_script(self) -> str:
        """What Podman takes for its runtime."""
        more = " ".join(CRUN_GROUPS) if self.by_crun else ""
        return RUNTIME_SCRIPT.format(runc=self.runc, logs=LOGS, more=more)

    async def load_image(self) -> None:
        """Have Podman load an image with the files of ``--image`` and the links that it lacks."""
        layer = LAYOUT / "layer.tar"
        self.inside(LAYOUT).mkdir(mode=0o700)
        if self.image is not None:
            words = ["tar", "--create", f"--file={layer}", f"--directory={self.image.root}", *REPEATABLE, "."]
            done = await self.run(words, timeout_s=longer(LOAD_S))
            if done.status != 0:
                raise MigrationError(
                    f"the image {self.image.root} cannot be packed on {self.edge}: {last_words(done)}",
                    hint="is there room? It is kept in memory, on the private /run of the edge host",
                )
        _add_links(self.inside(layer), self.files.links)
        made = await asyncio.to_thread(oci_image.write_layout, self.inside(LAYOUT), self.inside(layer))
        done = await self.run_tool("load", "--quiet", "--input", str(LAYOUT), timeout_s=longer(LOAD_S))
        if done.status != 0:
            raise MigrationError(
                f"podman could not load an image on {self.edge}: {last_words(done)}",
                hint="`quicferry doctor --only podman` tries it out",
            )
        shutil.rmtree(self.inside(LAYOUT))
        self.inside(IMAGE).write_text(made)

    @property
    def name(self) -> str:
        """The name by which Podman knows the container, on all hosts the same."""
        return NAME

    @property
    def _server_group(self) -> Path:
        """The directory of the server's control group. Raises ``FileNotFoundError`` when none runs."""
        pid = self.service_pid
        if pid is None:
            raise FileNotFoundError("no server, and no control group")
        # as seen from here, the path is that in the group of the edge host's container
        lines = self.path(f"/proc/{pid}/cgroup").read_text().splitlines()
        group = PurePosixPath(next(line for line in lines if line.startswith("0::"))[3:])
        return self.path("/sys/fs/cgroup") / group.parent.name / group.name

    async def run_tool(
        self,
        *words: str,
        timeout_s: float,
        path: str | None = None,
        descriptors: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> Completed:
        """Run Podman in the edge host's container, with settings of its own; else as in the base."""
        variables = {
            "HOME": str(OWN_HOME),
            "TMPDIR": str(TEMPORARY),
            "CONTAINERS_CONF": str(SETTINGS / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(SETTINGS / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(SETTINGS / "registries.conf"),
            **(env or {}),
        }
        environment = [f"{name}={value}" for name, value in variables.items()]
        environment += [f"PATH={path}"] if path is not None else []
        return await self.run(
            ["env", *UNSET, *environment, *before, str(self.podman), *words],
            timeout_s=timeout_s,
            descriptors=descriptors,
        )

    async def start(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
        """Have Podman run the server in a new container, with stdio opened inside; returns its PID."""
        await self.forget()
        settings = run_words(
            os.environ if env is None else env,
            binds=self.files.binds,
            image=self.image,
            volumes=self.given.volumes,
        )
        log = f"/run/{self._log_name}"
        image = self.inside(IMAGE).read_text()
        command = ["/bin/sh", "-c", oci_bundle.WITH_STDIO_ON, "sh", log, *argv]
        done = await self.run_tool("create", *settings, image, *command, timeout_s=longer(START_S))
        if done.status == 0 and self.given.disk_mib:
            await self._fill_layer()
        if done.status == 0:
            done = await self.run_tool("start", NAME, timeout_s=longer(START_S))
        if done.status != 0:
            raise MigrationError(
                f"podman could not start the server on {self.edge}: {last_words(done)}",
                hint="`quicferry doctor --only podman` tries it out",
            )
        self.adopt(self.pid_made())
        return self.pid_made()

    async def _fill_layer(self) -> None:
        """Have files in the layer of a container that has not been started."""
        mounted = await self.run_tool("mount", NAME, timeout_s=longer(START_S))
        if mounted.status != 0:
            raise MigrationError(f"podman could not mount the layer on {self.edge}: {last_words(mounted)}")
        oci_bundle.fill_disk(self.path(mounted.stdout.strip()), self.given.disk_mib)
        await self.run_tool("umount", NAME, timeout_s=longer(START_S))

    async def forget(self) -> None:
        """Have Podman remove a container that has ended. Raises ``MigrationError`` while it lives."""
        if self.service_pid is not None:
            raise MigrationError(f"a server already runs on {self.edge}")
        if any(self._known()):
            await self.remove()

    def _known(self) -> Iterator[Path]:
        """The directories of the containers and volumes that Podman knows."""
        for directory in (GRAPH / "overlay-containers", VOLUMES):
            if self.inside(directory).is_dir():
                yield from (path for path in self.inside(directory).iterdir() if path.is_dir())

    async def remove(self) -> None:
        """Kill the container's server and have Podman remove container and volumes."""
        try:
            await self.stop(self.pid_made(), grace_s=0)
            self.inside(oci_bundle.PID_FILE).unlink()
        except (OSError, ValueError):  # there is none
            pass
        words = ["rm", "--force", "--time", "0", "--ignore", NAME]
        done = await self.run_tool(*words, timeout_s=longer(REMOVE_S))
        names = [volume.source for volume in self.given.volumes if volume.moves]
        if done.status == 0 and names:
            # what is not there is not an error of ours
            await self.run_tool("volume", "rm", "--force", *names, timeout_s=longer(REMOVE_S))
        if done.status != 0:
            raise MigrationError(f"podman could not remove a container on {self.edge}: {last_words(done)}")


def run_words(
    env: Mapping[str, str],
    *,
    binds: Iterable[str],
    image: ImageSettings | None = None,
    volumes: Sequence[Volume] = (),
) -> list[str]:
    """The options of ``podman create`` (podman-create(1)) for a server. Raises ``InvalidInput``.

    ``/run`` is a directory of the edge host's container. With ``--read-only`` Podman would mount a tmpfs on
    each of several directories, which CRIU would pack.
    """
    variables = {**env, **(image.env if image is not None else {})}
    return [
        *("--name", NAME, "--pidfile", str(oci_bundle.PID_FILE), "--pull", "never"),
        *("--network", "host", "--no-hosts", "--dns", "none", "--systemd", "false", "--http-proxy=false"),
        *("--annotation", f"org.criu.config={oci_bundle.CRIU_CONFIG}"),
        *(word for name, value in variables.items() for word in ("--env", f"{name}={value}")),
        *("--mount", _bind(str(oci_bundle.RUN), "/run", "false")),
        *(word for path in binds for word in ("--mount", _bind(path, path, "true"))),
        *(word for volume in volumes for word in ("--mount", _volume(volume))),
        *(_confined(image) if image is not None else ()),
    ]


def _bind(source: str, target: str, readonly: str) -> str:
    _check_separators(source, target)
    return f"type=bind,source={source},target={target},readonly={readonly},bind-nonrecursive=true"


def _volume(volume: Volume) -> str:
    if not volume.moves:
        return _bind(volume.source, volume.target, "true")
    _check_separators(volume.target)
    return f"type=volume,source={volume.source},target={volume.target}"


def check_volumes(volumes: Iterable[Volume]) -> None:
    """Raise ``InvalidInput`` for a volume that Podman cannot be given."""
    for volume in volumes:
        _volume(volume)


def _check_separators(*paths: str) -> None:
    for path in paths:
        if any(separator in path for separator in SEPARATORS):
            raise InvalidInput(
                f"podman cannot be given {path!r}",
                hint="name a path without commas and quotes, or use runc-cold",
            )


def _confined(image: ImageSettings) -> Iterator[str]:
    """How a bundle or a layout wants to be run; what it does not say is Podman's default."""
    if image.uid:
        # CRIU sets the limits of its processes, which for another user's takes a user namespace. With one
        # Podman would mount the machine's /sys, with all that is mounted below, which CRIU refuses.
        whole = f"0:0:{oci_image.MAPPED_IDS}"
        yield from ("--user", f"{image.uid}:{image.gid}", "--uidmap", whole, "--gidmap", whole)
        yield from ("--mount", _bind(str(SYS), "/sys", "true"))
    if image.cwd != "/":
        yield from ("--workdir", image.cwd)
    if image.readonly:
        yield from ("--read-only", "--read-only-tmpfs=false")
    if image.capabilities is not None:
        yield from ("--cap-drop", "all")
        for name in image.capabilities.get("bounding", []):
            yield from ("--cap-add", name)
    for limit in image.rlimits:
        yield from ("--ulimit", _limit(limit))
    if image.seccomp is not None:
        yield from ("--security-opt", f"seccomp={SETTINGS / 'seccomp.json'}")
    if image.masked_paths:
        yield from ("--security-opt", "mask=" + ":".join(image.masked_paths))


def _limit(limit: Mapping[str, Any]) -> str:
    """An entry of ``process.rlimits`` as Podman's ``--ulimit`` wants it: ``nofile=1024:2048``."""
    kind = str(limit["type"]).removeprefix("RLIMIT_").lower()
    return f"{kind}={limit['soft']}:{limit['hard']}"


def _add_links(archive: Path, links: Mapping[str, str]) -> None:
    """Add links, and the directory that CRIU needs, to an archive; one is made when there is none."""
    with tarfile.open(archive, "a") as file:
        there = set(file.getnames())
        for path, target in links.items():
            info = tarfile.TarInfo(f"./{path.lstrip('/')}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            file.addfile(info, io.BytesIO())
        if "./tmp" not in there:
            info = tarfile.TarInfo("./tmp")
            info.type, info.mode = tarfile.DIRTYPE, 0o1777
            file.addfile(info)
