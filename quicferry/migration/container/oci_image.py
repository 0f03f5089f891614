"""The image of a container: what kind of directory it is, its root file system, and how it wants to be run.

=============  =======================================  ===================================================
kind           known by                                 gives, besides the files
=============  =======================================  ===================================================
OCI layout     ``oci-layout`` and ``index.json``        command, environment, working directory, user,
                                                        architecture
bundle         ``config.json`` beside ``rootfs``        the same, and capabilities, rlimits, seccomp, masked
                                                        and read-only paths, a read-only root
root           anything else                            nothing
=============  =======================================  ===================================================

An OCI layout is what ``skopeo copy docker://… oci:DIRECTORY`` and ``podman save --format oci-dir`` write
(https://github.com/opencontainers/image-spec: image-layout.md, config.md, layer.md). It is unpacked once into
the cache of the checkout, under its digest.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import msgspec
import zstandard

from quicferry.errors import UNDECODABLE, InvalidInput
from quicferry.paths import CHECKOUT

CACHE = CHECKOUT / ".cache" / "images"
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
#: As ``platform.machine()`` has it -> as the image specification has it (GOARCH).
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}
MEDIA = "application/vnd.oci.image"
MAX_JSON_BYTES = 4 << 20
#: Linux, Documentation/admin-guide/sysctl/vm.rst.
USERFAULTFD_SWITCH = Path("/proc/sys/vm/unprivileged_userfaultfd")
#: IDs of users and groups that a container's user namespace has, each the same as outside.
MAPPED_IDS = 1 << 16
HINT = (
    "give an unpacked bundle, an OCI layout (`skopeo copy docker://IMAGE oci:DIRECTORY`), or a root directory"
)


class ImageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """An image, ready to be the root of a container. What is None or empty is not said by the image."""

    root: str  # its files: a directory that nobody writes to
    argv: list[str] = []  # its own command
    env: dict[str, str] = {}
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    readonly: bool = False  # the container may not write to its root
    capabilities: dict[str, list[str]] | None = None
    rlimits: list[dict[str, Any]] = []
    seccomp: dict[str, Any] | None = None
    masked_paths: list[str] = []
    readonly_paths: list[str] = []


def read_image(directory: Path, cache: Path = CACHE) -> ImageSettings:
    """Find out what an image is, and unpack it if need be. Raises ``InvalidInput``."""
    if not directory.is_dir():
        raise InvalidInput(f"the image {directory} is no directory", hint=HINT)
    directory = directory.resolve()
    if (directory / "index.json").is_file() and (directory / "oci-layout").is_file():
        return _from_layout(directory, cache)
    if (directory / "config.json").is_file():
        bundle = _from_bundle(directory)
        if bundle is not None:
            return bundle
    if not any(directory.iterdir()):
        raise InvalidInput(f"the image {directory} is empty", hint=HINT)
    return ImageSettings(root=str(directory))


def users_have_userfaultfd() -> bool:
    """Whether what is in a user namespace may have a userfaultfd for faults of the kernel, as CRIU wants."""
    try:
        return USERFAULTFD_SWITCH.read_text().strip() == "1"
    except OSError:
        return False


class User(msgspec.Struct, frozen=True):
    """User and group IDs of a container's process, as ``config.json`` has them."""

    uid: int = 0
    gid: int = 0


class _Process(msgspec.Struct, frozen=True):
    args: list[str] = []
    env: list[str] = []
    cwd: str = "/"
    user: User = User()
    capabilities: dict[str, list[str]] | None = None
    rlimits: list[dict[str, Any]] | None = None


class _Root(msgspec.Struct, frozen=True):
    path: str = "rootfs"
    readonly: bool = False


class _Linux(msgspec.Struct, frozen=True):
    seccomp: dict[str, Any] | None = None
    maskedPaths: list[str] | None = None  # noqa: N815 - the specification's names
    readonlyPaths: list[str] | None = None  # noqa: N815


class _Config(msgspec.Struct, frozen=True):
    """What is taken from ``config.json`` of a bundle."""

    ociVersion: str | None = None  # noqa: N815
    process: _Process = _Process()
    root: _Root = _Root()
    linux: _Linux = _Linux()


def _from_bundle(directory: Path) -> ImageSettings | None:
    """A bundle's settings; None for a root directory with a ``config.json`` of some program's own."""
    path = directory / "config.json"
    has_root = (directory / "rootfs").is_dir()
    try:
        known = _json(path)
    except InvalidInput:
        if has_root:
            raise
        return None
    if not has_root and "ociVersion" not in known:
        return None
    config = _converted(known, _Config, path)
    root = (directory / config.root.path).resolve()
    if not root.is_dir():
        raise InvalidInput(
            f"the bundle {directory} has no root file system: {config.root.path} is no directory",
            hint="unpack it there (`umoci unpack` does), or name a directory that has it",
        )
    process, linux = config.process, config.linux
    uid, gid = _checked_ids(directory, process.user.uid, process.user.gid)
    return ImageSettings(
        uid=uid,
        gid=gid,
        root=str(root),
        argv=process.args,
        env=_environment(process.env),
        cwd=process.cwd,
        readonly=config.root.readonly,
        capabilities=process.capabilities,
        rlimits=process.rlimits or [],
        seccomp=linux.seccomp,
        masked_paths=linux.maskedPaths or [],
        readonly_paths=linux.readonlyPaths or [],
    )


def _checked_ids(directory: Path, uid: object, gid: object) -> tuple[int, int]:
    """These IDs of a user and a group, if a container here can have them."""
    if isinstance(uid, int) and isinstance(gid, int) and 0 <= uid < MAPPED_IDS and 0 <= gid < MAPPED_IDS:
        return uid, gid
    raise InvalidInput(
        f"the image {directory} wants to run as user {uid} of group {gid}",
        hint=f"both must be numbers below {MAPPED_IDS}, or names in the image's /etc/passwd and /etc/group",
    )


def _user(directory: Path, words: str, root: Path) -> tuple[int, int]:
    """The IDs for ``User`` of an image's config: ``user`` or ``user:group``, numbers or names.

    A user without a group has the one that the image's ``/etc/passwd`` gives it, else the group 0.
    """
    user, _, group = words.partition(":")
    uid, gid = _named(root, "etc/passwd", user)
    if group:
        gid = _named(root, "etc/group", group)[0]
    return _checked_ids(directory, user if uid is None else uid, group if gid is None else gid)


def _named(root: Path, table: str, name: str) -> tuple[int | None, int | None]:
    """The ID of a user or group of the image, by number or name, and a user's group (passwd(5), group(5))."""
    file = _beneath(root, PurePosixPath(table))
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    for fields in (line.split(":") for line in lines):
        if len(fields) > 3 and name in (fields[0], fields[2]) and fields[2].isdecimal():
            return int(fields[2]), int(fields[3]) if fields[3].isdecimal() else 0
    return (int(name), 0) if name.isdecimal() else (None, 0)


class _Wanted(msgspec.Struct, frozen=True):
    """``config`` of an image: how it wants to be run. Tools write null for what is not said."""

    User: str | None = None
    Entrypoint: list[str] | None = None
    Cmd: list[str] | None = None
    Env: list[str] | None = None
    WorkingDir: str | None = None


class _ImageConfig(msgspec.Struct, frozen=True):
    os: str | None = None
    architecture: str | None = None
    config: _Wanted | None = None


class _Descriptor(msgspec.Struct, frozen=True):
    digest: str
    platform: dict[str, Any] | None = None

    @property
    def architecture(self) -> str | None:
        """What it is for; None where that is not said."""
        return (self.platform or {}).get("architecture")


class _Manifest(msgspec.Struct, frozen=True):
    config: _Descriptor
    layers: list[_Descriptor]


class _Index(msgspec.Struct, frozen=True):
    manifests: list[_Descriptor] = []


def _from_layout(directory: Path, cache: Path) -> ImageSettings:
    manifest = _manifest(directory)
    config_blob = _blob(directory, manifest.config)
    config = _converted(_decoded(config_blob.read_bytes(), config_blob), _ImageConfig, config_blob)
    here = ARCHITECTURES.get(platform.machine(), platform.machine())
    made_for = f"{config.os or 'linux'}/{config.architecture or here}"
    if made_for != f"linux/{here}":
        raise InvalidInput(
            f"the image {directory} is for {made_for}, this machine is linux/{here}",
            hint=f"fetch the one for linux/{here}: `skopeo copy --override-arch {here} …`",
        )
    wanted = config.config or _Wanted()
    root = _unpacked(directory, manifest, cache)
    user = wanted.User or "0"
    uid, gid = (0, 0) if user == "root" else _user(directory, user, root)
    return ImageSettings(
        uid=uid,
        gid=gid,
        root=str(root),
        argv=[*(wanted.Entrypoint or []), *(wanted.Cmd or [])],
        env=_environment(wanted.Env or []),
        cwd=wanted.WorkingDir or "/",
    )


def _manifest(directory: Path) -> _Manifest:
    """The manifest of the one image of a layout; of an index within it, that for this machine."""
    here = ARCHITECTURES.get(platform.machine(), platform.machine())
    path = directory / "index.json"
    found = _json(path)
    for _ in range(3):  # an index may lead to an index
        if "layers" in found:
            return _converted(found, _Manifest, path)
        offered = _converted(found, _Index, path).manifests
        fitting = [each for each in offered if (each.architecture or here) == here]
        if not fitting:
            there = ", ".join(sorted({str(each.architecture) for each in offered}))
            raise InvalidInput(
                f"the image {directory} is for {there or 'no machine'}, this machine is {here}", hint=HINT
            )
        path = _blob(directory, fitting[0])
        found = _decoded(path.read_bytes(), path)
    raise InvalidInput(f"the image {directory} has no manifest", hint=HINT)


def _blob(directory: Path, descriptor: _Descriptor) -> Path:
    """The file of a blob, checked against its digest. Raises ``InvalidInput``."""
    kind, _, digest = descriptor.digest.partition(":")
    path = directory / "blobs" / kind / digest
    if kind != "sha256" or not digest.isalnum() or not path.is_file():
        raise InvalidInput(f"the image {directory} lacks the blob {kind}:{digest}", hint=HINT)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise InvalidInput(f"the blob {kind}:{digest} of {directory} is damaged", hint="fetch it again")
    return path


def _unpacked(directory: Path, manifest: _Manifest, cache: Path) -> Path:
    """The directory with the files of all layers, one over the other; made when it is not there yet."""
    names = [layer.digest for layer in manifest.layers]
    target = cache / hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]
    if target.is_dir():
        return target
    draft = cache / f"{target.name}.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        for layer in manifest.layers:
            with _opened(_blob(directory, layer)) as archive:
                _lay(archive, draft)
    except (tarfile.TarError, OSError, EOFError, zstandard.ZstdError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise InvalidInput(f"the image {directory} cannot be unpacked: {error}", hint=HINT) from error
    except InvalidInput:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    draft.rename(target)
    return target


def _opened(blob: Path) -> tarfile.TarFile:
    """A layer as a tar file, whatever it is packed with."""
    with blob.open("rb") as file:
        if file.read(4) != zstandard.FRAME_HEADER:
            return tarfile.open(blob)
        file.seek(0)
        data = zstandard.ZstdDecompressor().stream_reader(file).read()
    return tarfile.open(fileobj=io.BytesIO(data))


def _lay(archive: tarfile.TarFile, root: Path) -> None:
    """Lay the files of a layer over those that are there."""
    for member in archive:
        inside = PurePosixPath(member.name)
        if inside.name.startswith(WHITEOUT):
            _hide(root, inside)
            continue
        _lay_one(archive, member, root, _beneath(root, inside))


def _lay_one(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path, target: Path) -> None:
    """Make one file. Devices are not made: ``/dev`` is the container's own."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return
    if not (member.isdir() and target.is_dir() and not target.is_symlink()):
        _remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        target.mkdir(exist_ok=True)
    elif member.issym():
        target.symlink_to(member.linkname)
    elif member.islnk():
        os.link(_beneath(root, PurePosixPath(member.linkname)), target, follow_symlinks=False)
        return
    elif (content := archive.extractfile(member)) is not None:
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file)
    os.chown(target, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        target.chmod(member.mode & 0o7777)  # after chown, which clears some of it
        os.utime(target, (member.mtime, member.mtime))


def _beneath(root: Path, inside: PurePosixPath) -> Path:
    """Where a path of a layer is. Raises ``InvalidInput`` for one that leads out of the image."""
    steps = PurePosixPath(str(inside).lstrip("/"))
    parent = Path(os.path.realpath(root / steps.parent))
    if ".." in steps.parts or not parent.is_relative_to(os.path.realpath(root)):
        raise InvalidInput(f"a layer names what is not in it: {inside}", hint=HINT)
    return parent / steps.name if steps.name else root


def _hide(root: Path, whiteout: PurePosixPath) -> None:
    """Remove what a whiteout says is not there."""
    if whiteout.name != OPAQUE:
        _remove(_beneath(root, whiteout.with_name(whiteout.name.removeprefix(WHITEOUT))))
        return
    directory = _beneath(root, whiteout).parent
    for child in list(directory.iterdir()) if directory.is_dir() else []:
        _remove(child)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_layout(directory: Path, layer: Path) -> str:
    """Make an OCI layout of one layer, a tar file on the same file system that is moved into it.

    Returns the digest of its config, which is the image's. Nothing in it tells when it was made: the same
    files give the same digest. Raises ``OSError``.
    """
    here = ARCHITECTURES.get(platform.machine(), platform.machine())
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = layer.stat().st_size
    layer.rename(blobs / digest)
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    config = _add_blob(blobs, {"architecture": here, "os": "linux", "config": {}, "rootfs": rootfs})
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": {"mediaType": f"{MEDIA}.config.v1+json", **config},
        "layers": [{"mediaType": f"{MEDIA}.layer.v1.tar", "digest": f"sha256:{digest}", "size": size}],
    }
    described = {"mediaType": f"{MEDIA}.manifest.v1+json", **_add_blob(blobs, manifest)}
    index = {"schemaVersion": 2, "manifests": [described]}
    (directory / "index.json").write_bytes(msgspec.json.encode(index))
    (directory / "oci-layout").write_bytes(msgspec.json.encode({"imageLayoutVersion": "1.0.0"}))
    return str(config["digest"]).partition(":")[2]


def _add_blob(blobs: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Write a document as a blob; its digest and size."""
    data = msgspec.json.encode(document)
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _environment(words: list[str]) -> dict[str, str]:
    return dict(_pairs(words))


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            yield name, value


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InvalidInput(f"{path} is too large to be read", hint=HINT)
    return _decoded(path.read_bytes(), path)


T = TypeVar("T")


def _converted(document: dict[str, Any], kind: type[T], path: Path) -> T:
    """A decoded document as values. Raises ``InvalidInput`` for what the specification does not allow."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{path} is not understood: {error}", hint=HINT) from error


def _decoded(data: bytes, path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except UNDECODABLE as error:
        raise InvalidInput(f"{path} is no JSON object: {error}", hint=HINT) from error
