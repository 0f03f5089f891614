"""What is asked of a container, checked before anything is started: its image, its command, its volumes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import msgspec

from quicferry.errors import InvalidInput
from quicferry.migration.container import volumes
from quicferry.migration.container.oci_bundle import lacking, root_files
from quicferry.migration.container.oci_image import ImageSettings, read_image, users_have_userfaultfd
from quicferry.migration.container.podman_container import check_volumes
from quicferry.migration.engines.registry import get
from quicferry.spec import RunSpec

SHELL = "/bin/sh"
MOST_LINKS = 40  # as the kernel follows, path_resolution(7)
ELF_HEAD_BYTES = 20
BIG_ENDIAN = 2  # ELFDATA2MSB, elf(5)
CANNOT_HINT = (
    "chmod +x for a script; an image for this machine: `skopeo copy --override-arch`, or build it anew"
)
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
    # the shell opens the server's log inside the container, before it becomes the server
    for program in dict.fromkeys([SHELL, *(word for word in words[:1] if word != "{server}")]):
        _check_program(spec.image, image, program, spec.volumes)
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
    cannot: str | None = None
    for candidate in candidates:
        inside = candidate if candidate.startswith("/") else f"{image.cwd.rstrip('/')}/{candidate}"
        found = resolved(root, inside)
        if found is None:
            continue  # the kernel will not follow it either
        leads_to, is_link = found
        if any(path.startswith(f"{target}/") for target in targets for path in (inside, leads_to)):
            return  # a volume may have it
        here = [root / leads_to.lstrip("/")]
        if is_link and not here[0].exists():
            return  # a link to what only the container has
        if any(leads_to.startswith(f"{bind}/") for bind in (*binds.binds, *binds.links)):
            here.append(Path(leads_to))
        for path in here:
            if path.is_file():
                cannot = _why_not(path)
                if cannot is None:
                    return
    if cannot is not None:
        raise InvalidInput(f"{program!r} of the image {name} {cannot}", hint=CANNOT_HINT)
    if program == SHELL:
        raise InvalidInput(
            f"the image {name} has no {SHELL}, with which every container here is started",
            hint="take an image with a shell (no distroless one)",
        )
    raise InvalidInput(
        f"the image {name} has no program {program!r}",
        hint="give --command a program of the image; the word {server} stands for the packaged server",
    )


def resolved(root: Path, inside: str) -> tuple[str, bool] | None:
    """Where a path of the image leads, its links followed within the image; None for links in a circle.

    Also whether its last name is a link. What is not there is no link: it stays as it was named.
    """
    found: list[str] = []
    left = inside.split("/")[::-1]
    links, ends_in_link = 0, False
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            found = found[:-1]  # as the kernel: above the root is the root
            continue
        link = root.joinpath(*found, name)
        if not link.is_symlink():
            found.append(name)
            continue
        links += 1
        if links > MOST_LINKS:
            return None
        ends_in_link = ends_in_link or not any(left)
        target = str(link.readlink())
        if target.startswith("/"):
            found = []
        left += target.split("/")[::-1]
    return "/" + "/".join(found), ends_in_link


def _why_not(program: Path) -> str | None:
    """Why a file cannot be executed here; None when nothing speaks against it."""
    if not program.stat().st_mode & 0o111:
        return "is not executable"
    ours, its = elf_machine(Path(sys.executable)), elf_machine(program)
    if its is not None and its != ours:
        return f"is built for another machine (ELF machine {its}, this one is {ours})"
    return None


def elf_machine(program: Path) -> int | None:
    """For which machine an ELF file is built (``e_machine``, elf(5)); None for another file."""
    try:
        with program.open("rb") as file:
            head = file.read(ELF_HEAD_BYTES)
    except OSError:
        return None
    if len(head) < ELF_HEAD_BYTES or head[:4] != b"\x7fELF":
        return None
    return int.from_bytes(head[18:20], "big" if head[5] == BIG_ENDIAN else "little")
