"""Real power cuts: `python -m tests.crash.powercut CUTS [MUTANT] [--seed N]`. Needs root and a loop device.

ext4 on a loop mount; a process sends files to a store on it and says what it was promised; the file system is shut down
under it without flushing its journal (EXT4_IOC_SHUTDOWN), which is what a power cut leaves; then it is mounted again, the
store recovers, and every promise is looked up. Without a mutant nothing may be lost; with one something should be.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack

from blockproto.errors import BlockprotoError
from blockproto.store.local.check import check_store
from blockproto.store.local.store import LocalStore

from .client import Job, Promises, broken_promises, send

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
IMAGE_BYTES = 768 << 20
CUTS_A_DISK = 5
PROMISES_MAX = 60
DELAY_S_MAX = 0.05
ROOT = Path(__file__).resolve().parents[2]


def why_not() -> str | None:
    """Why power cuts cannot be made here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "power cuts need root"
    if not Path("/dev/loop-control").exists() or shutil.which("mkfs.ext4") is None:
        return "power cuts need a loop device and mkfs.ext4"
    try:
        with tempfile.TemporaryDirectory() as folder, Disk(Path(folder)).mounted():
            return None
    except (OSError, subprocess.CalledProcessError) as exc:
        return f"power cuts need loop mounts: {exc}"


class Disk:
    """A file system that can lose its power.

    Args:
        folder: where its image and its mount point go.
    """

    def __init__(self, folder: Path) -> None:
        self._image = folder / "image"
        self.mount_point = folder / "mount"
        self.mount_point.mkdir()
        with self._image.open("wb") as image:
            image.truncate(IMAGE_BYTES)
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", self._image)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """The mounted file system; it is unmounted at the end, dead or alive."""
        _run("mount", "-o", "loop", self._image, self.mount_point)
        try:
            yield self.mount_point
        finally:
            _run("umount", self.mount_point)

    def cut(self) -> None:
        """Take its power away."""
        fd = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=60)


@dataclass
class Report:
    """What the cuts brought to light."""

    cuts: int = 0
    promises: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Heard:
    """What the process said before it died."""

    promises: Promises = field(default_factory=Promises)
    begun: list[str] = field(default_factory=list)
    going: set[str] = field(default_factory=set)
    count: int = 0

    def hear(self, line: str) -> None:
        kind, name, *_ = line.split(" ")
        self.count += kind in ("file", "block")
        if kind == "begin":
            self.begun.append(name)
        elif kind == "going":
            self.going.add(name)
            self.promises.files.discard(name)
            self.promises.blocks.pop(name, None)
        elif kind != "gone":
            self.promises.hear(line)


def live_and_die(disk: Disk, seed: int, mutant: str | None, heard: Heard) -> None:
    """Run the process on a mounted disk until the power goes."""
    rng = random.Random(seed)
    enough = heard.count + rng.randrange(1, PROMISES_MAX)
    served = disk.mount_point / "served"
    served.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        f"{__package__}.workload",
        str(served),
        str(seed),
        *([mutant] if mutant else []),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            heard.hear(line.strip())
            if heard.count >= enough:
                break
        threading.Event().wait(rng.random() * DELAY_S_MAX)
        try:
            disk.cut()
        finally:
            process.kill()
        for line in process.stdout:
            if line.endswith("\n"):
                heard.hear(line.strip())


def problems_after(served: Path, heard: Heard) -> list[str]:
    """What is wrong on a disk whose power is back; then the client finishes what it began."""
    with suppress(BlockprotoError):
        problems = check_store(served, read=True)
        store = LocalStore.open(served)
        try:
            problems += store.findings
            problems += broken_promises(store, heard.promises)
            return problems + _finish_all(store, heard)
        finally:
            store.close()
    return ["the store does not open"]


def _finish_all(store: LocalStore, heard: Heard) -> list[str]:
    problems = []
    for name in heard.begun:
        if name not in heard.going:
            stored = send(store, Job(name), heard.promises, 2)
            if stored.stored_as != name:
                problems.append(f"{name} is there twice")
    return problems


def cut_power(cuts: int, mutant: str | None = None, seed: int = 0) -> Report:
    """Cut the power ``cuts`` times, on a fresh disk now and then."""
    report = Report()
    while report.cuts < cuts:
        with tempfile.TemporaryDirectory(prefix="blockproto-") as folder:
            _cut_one_disk(Disk(Path(folder)), min(CUTS_A_DISK, cuts - report.cuts), mutant, seed, report)
    return report


def _cut_one_disk(disk: Disk, cuts: int, mutant: str | None, seed: int, report: Report) -> None:
    heard = Heard()
    for _ in range(cuts):
        with disk.mounted():
            live_and_die(disk, seed * 1000 + report.cuts, mutant, heard)
        with disk.mounted() as mount_point:
            problems = problems_after(mount_point / "served", heard)
        report.cuts += 1
        report.problems += [f"cut {report.cuts}: {problem}" for problem in problems]
        if problems:
            break
    report.promises += heard.count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cuts", type=int)
    parser.add_argument("mutant", nargs="?")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1000))
    options = parser.parse_args()
    reason = why_not()
    if reason is not None:
        sys.exit(reason)
    report = cut_power(options.cuts, options.mutant, options.seed)
    print(
        f"seed {options.seed}: {report.cuts} cuts, {report.promises} promises, {len(report.problems)} broken"
    )
    print("\n".join(report.problems[:20]))
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
