"""One virtual machine in QEMU that does one job and powers off: the standard library only.

The project and the job go in through a folder of the host (9p), the results come out the same way
(``guest.sh`` is the other end). The disk is an overlay that is thrown away: each job starts from the same
state. The machine has no network: everything that a job needs is in the image.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
QEMU = "qemu-system-x86_64"

#: Of the models that can be emulated one with AVX2, which polars is built for.
EMULATED_CPU = "Haswell-noTSX"

#: What the kernel is told. An emulated processor leaks nothing to anybody, and page-table isolation would
#: make every system call flush QEMU's translations; services that no job needs only delay the start. Beside
#: a heavy load the timer may not tick in the moment in which the kernel tries it, which then panics
#: ("IO-APIC + timer doesn't work"): it does not try.
KERNEL_ARGUMENTS = (
    "root=/dev/vda rw console=ttyS0 quicferry.job panic=-1 audit=0 mitigations=off no_timer_check "
) + " ".join(
    f"systemd.mask={unit}"
    for unit in (
        "ssh.service",
        "named.service",
        "getty.target",
        "timers.target",
        "e2scrub_reap.service",
        "ldconfig.service",
        "systemd-hwdb-update.service",
        "systemd-journal-catalog-update.service",
        "systemd-journal-flush.service",
    )
)

#: How long a KVM that works takes at most to print the kernel's first line, in seconds.
KVM_TRIAL_S = 30.0


class MachineError(Exception):
    """The machine could not be started or did not come to its end; the text says what was seen."""


class Accelerator(NamedTuple):
    """How the machine's processor is had."""

    name: str
    arguments: tuple[str, ...]
    slower: float  # how many times longer a program runs than on the host; 16 was measured for Python
    why: str
    #: how many seconds may pass here in one of the machine: more than 1 where it counts its own instructions
    dilation: float = 1.0


KVM = Accelerator("kvm", ("-accel", "kvm", "-cpu", "host", "-smp", "2"), 1.5, "KVM started a kernel here")
TCG = Accelerator(
    "tcg",
    ("-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU, "-smp", "2"),
    25.0,
    "the processor is emulated",
)
#: Time in the machine is that of its own instructions: a noisy host delays it, but does not distort it.
ICOUNT = Accelerator(
    "icount",
    ("-accel", "tcg,thread=single", "-cpu", EMULATED_CPU, "-smp", "1", "-icount", "shift=0,sleep=on"),
    5.0,
    "the processor is emulated, and so is the time",
    # it counts 1000 million instructions a second; 200 million are done at best, beside other load fewer
    dilation=50.0,
)
ACCELERATORS = {each.name: each for each in (KVM, TCG, ICOUNT)}


def accelerator(name: str, image: Path, processors: int | None = None) -> Accelerator:
    """The accelerator of that name; ``auto``: KVM where a kernel starts with it, else emulation.

    ``processors``: how many the machine has, where that is not the accelerator's usual number.
    """
    by = ACCELERATORS[name] if name != "auto" else KVM if _kvm_works(image) else TCG
    if processors is None:
        return by
    words = list(by.arguments)
    words[words.index("-smp") + 1] = str(processors)
    return by._replace(arguments=tuple(words))


def _kvm_works(image: Path) -> bool:
    """Whether a kernel prints its first line: /dev/kvm can be opened on machines that cannot run a guest."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with tempfile.TemporaryDirectory() as folder:
        console = Path(folder) / "console.txt"
        argv = [QEMU, *KVM.arguments, "-m", "512", "-nodefaults", "-display", "none", "-no-reboot"]
        argv += ["-kernel", str(image / "vmlinuz"), "-append", "console=ttyS0 panic=-1"]
        argv += ["-serial", f"file:{console}"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return _wait(
                lambda: console.exists() and "Linux version" in console.read_text(errors="replace"),
                process,
                KVM_TRIAL_S,
            )
        finally:
            _end(process)


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the condition came true before the process ended or the time was over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return condition()
        time.sleep(0.2)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that we started, by its id."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def image() -> Path:
    """The folder of the image, made if there is none for this checkout.

    Raises ``MachineError`` when it cannot be made.
    """
    made = subprocess.run([str(HERE / "image.sh")], stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode != 0:
        raise MachineError("the image could not be made; image.sh says why above")
    return Path(made.stdout.strip().splitlines()[-1])


def pack_project(archive: Path) -> None:
    """Pack what git knows of this checkout, and what is new in it: one file crosses 9p faster than 2000."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        stdout=subprocess.PIPE,
        check=True,
    )
    with tarfile.open(archive, "w") as packed:
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                packed.add(ROOT / name, arcname=name)


def run(
    script: str,
    results: Path,
    *,
    given: Mapping[str, str],
    image: Path,
    by: Accelerator,
    patience_s: Callable[[Path], float],
    memory_mib: int,
) -> int:
    """Start a machine, let it do ``script`` (bash, as root, in the checkout), and fetch what it left.

    ``given`` are files by name that the script finds in /job. ``results`` is the folder that it finds as
    /job/results; console.txt in it has what the kernel and init printed. ``patience_s`` says, by what is
    in the results so far, how many seconds the machine may take from its start. Returns the script's exit
    status. Raises ``MachineError`` when the machine did not come to its end in that time.
    """
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quicferry-vm.") as folder:
        job = Path(folder) / "job"
        (job / "results").mkdir(parents=True)
        pack_project(job / "project.tar")
        for name, text in {**given, "run.sh": script}.items():
            (job / name).write_text(text)
        overlay = Path(folder) / "disk.qcow2"
        _make_overlay(image / "disk.qcow2", overlay)
        console = results / "console.txt"
        argv = [QEMU, *by.arguments, "-m", str(memory_mib), "-nodefaults", "-display", "none", "-no-reboot"]
        argv += ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img")]
        argv += ["-append", kernel_arguments(by)]
        argv += ["-drive", f"file={overlay},if=virtio,format=qcow2,cache=unsafe"]
        argv += ["-virtfs", f"local,path={job},mount_tag=job,security_model=none"]
        argv += ["-serial", f"file:{console}", "-object", "rng-random,id=rng,filename=/dev/urandom"]
        argv += ["-device", "virtio-rng-pci,rng=rng"]
        status = job / "results" / "status"
        with (results / "qemu.txt").open("wb") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                begun = time.monotonic()
                while process.poll() is None and time.monotonic() - begun < patience_s(job / "results"):
                    time.sleep(0.5)
            finally:
                _end(process)
                shutil.copytree(job / "results", results, dirs_exist_ok=True)
        if not status.exists():
            tail = console.read_text(errors="replace").splitlines()[-3:] if console.exists() else []
            said = "; ".join(tail) or (results / "qemu.txt").read_text(errors="replace").strip() or "nothing"
            raise MachineError(f"the machine did not come to its end; it said last: {said}")
        return int(status.read_text())


def tsc_khz(seconds: float = 0.5) -> int | None:
    """The frequency of this host's time stamp counter, in kHz; None where it has none.

    An emulated processor hands the host's counter on. A kernel that measures its frequency beside a heavy
    load may get it wrong (289 s passed in the machine in 120 s): it is told (``tsc_early_khz``).
    """
    if platform.machine() != "x86_64":
        return None
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; shl rdx, 32; or rax, rdx; ret
    place = ctypes.c_char.from_buffer(code)
    count = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))

    ticks_0, ns_0 = _together(count)
    time.sleep(seconds)
    ticks_1, ns_1 = _together(count)
    del count, place
    code.close()
    return round((ticks_1 - ticks_0) * 1_000_000 / (ns_1 - ns_0))


def _together(count: Callable[[], int]) -> tuple[int, int]:
    """The counter and the clock (ns) at one moment: of some readings that with the least time between."""
    readings = []
    for _ in range(50):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        ticks = count()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        readings.append((after - before, ticks, (before + after) // 2))
    _, ticks, at_ns = min(readings)
    return ticks, at_ns


def kernel_arguments(by: Accelerator) -> str:
    """The kernel's command line."""
    khz = tsc_khz() if by.name == TCG.name else None
    return KERNEL_ARGUMENTS if khz is None else f"{KERNEL_ARGUMENTS} tsc_early_khz={khz}"


def _make_overlay(disk: Path, overlay: Path) -> None:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(disk), str(overlay)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
