"""What is asked of a container, checked before anything is started: its image, its command, its volumes."""

from __future__ import annotations

import shlex
from pathlib import Path

import msgspec

from quicferry.errors import InvalidInput
from quicferry.migration.container import volumes
from quicferry.migration.container.oci_bundle import lacking, root_files
from quicferry.migration.container.oci_image import ImageSettings, read_image, users_have_userfaultfd
from quicferry.migration.container.podman_container import check_volumes
from quicferry.migration.engines.registry import get
from quicferry.spec import RunSpec

#: Where a container looks for a program without a path, unless its image says otherwise (execvp(3)).
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def check_container(spec: RunSpec) -> RunSpec:
    """The spec with absolute paths, if a container can be made of it. Raises ``InvalidInput``."""
    given = volumes.parse(spec.volumes)
    if get(spec.engine).by_podman:
        check_volumes(given)
    words = _words(spec.command)
    if spec.image is None:
        return spec
    image = read_image(Path(spec.image))
    if image.uid and get(spec.engine).keeps_source and not users_have_userfaultfd():
        raise InvalidInput(
            f"{spec.image} runs as user {image.uid}, and {spec.engine} needs userfaultfd in a user namespace",
            hint="choose runc-cold or runc-pre-copy, or have vm.unprivileged_userfaultfd=1 set by sysctl",
        )
    if words and words[0] != "{server}":
        _check_program(spec.image, image, words[0], spec.volumes)
    return msgspec.structs.replace(spec, image=str(Path(spec.image).resolve()))


def _words(command: str | None) -> list[str]:
    try:
        words = shlex.split(command or "")
    except ValueError as error:
        raise InvalidInput(
            f"the command {command!r} is not understood: {error}", hint="quote as in a shell"
        ) from error
    if command is not None and not words:
        raise InvalidInput("the command is empty", hint="leave out --command for the packaged server")
    return words


def _check_program(name: str, image: ImageSettings, program: str, mounted: str | None) -> None:
    """Raise ``InvalidInput`` when neither the image nor what is mounted into it has that program."""
    root = Path(image.root)
    binds = lacking(root, root_files([]))
    folders = image.env.get("PATH", DEFAULT_PATH).split(":")
    candidates = [program] if "/" in program else [f"{folder}/{program}" for folder in folders]
    targets = [volume.target for volume in volumes.parse(mounted)]
    for candidate in candidates:
        inside = candidate if candidate.startswith("/") else f"{image.cwd.rstrip('/')}/{candidate}"
        if any(inside.startswith(f"{target}/") for target in targets):
            return  # a volume may have it
        here = [root / inside.lstrip("/")]
        if any(inside.startswith(f"{bind}/") for bind in (*binds.binds, *binds.links)):
            here.append(Path(inside))
        if any(path.is_file() or path.is_symlink() for path in here):
            return
    raise InvalidInput(
        f"the image {name} has no program {program!r}",
        hint="give --command a program of the image; the word {server} stands for the packaged server",
    )
