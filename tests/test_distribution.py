"""The source distribution: whole, and with one place for the version."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import blockproto

ROOT = Path(__file__).resolve().parent.parent
BUILD = "import sys; from setuptools.build_meta import build_sdist; print(build_sdist(sys.argv[1]))"


@pytest.fixture
def tracked() -> list[str]:
    """The files of this checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no checkout: what belongs to a source distribution cannot be asked")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60)
    return [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).exists()]


def test_the_source_distribution_holds_every_file(tracked: list[str], tmp_path: Path) -> None:
    source, built = tmp_path / "source", tmp_path / "built"
    built.mkdir()
    for name in tracked:
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-W", "ignore", "-c", BUILD, str(built)]
    ran = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    (archive,) = built.iterdir()
    assert archive.name == f"blockproto-{blockproto.__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert set(tracked) - held == set()


def test_the_version_stands_once() -> None:
    texts = {
        path: path.read_text() for path in [ROOT / "pyproject.toml", *(ROOT / "blockproto").rglob("*.py")]
    }
    stating = [path for path, text in texts.items() if f'"{blockproto.__version__}"' in text]
    assert stating == [ROOT / "blockproto" / "__init__.py"]
