"""NAM for clients: names."""

from __future__ import annotations

from ..case import Chapter, Side
from ..verdicts import require
from . import giving, taking
from .trial import Trial

cases = Chapter("client/nam", Side.CLIENT)

NAMES = {
    "not-normalised": "e\u0301te\u0301 \u212b \ufb01.txt",
    "many-scripts": "сон/夢/حلم/सपना \U0001f4a4.bin",
    "signs-of-shells-and-urls": "a b?c#d%41&e;f'g\"h\\i*j:k|l<m>.txt",
    "upper-and-lower": "ReadMe.TXT",
    "of-255-bytes": "x" * 255,
    "of-1024-bytes": "/".join(["y" * 203] * 5) + "/zzzz",
}


@cases.table(
    "sends/{}",
    "NAM-001 NAM-003",
    NAMES,
    why="A name that is changed on its way is another file for everybody else.",
)
def sends(trial: Trial, name: str) -> None:
    """The filename goes over the wire byte for byte."""
    sample = trial.sample(2_000_000, filename=name)
    path = trial.folder / "source"
    path.write_bytes(sample.content)
    trial.start("upload", path=str(path), filename=name)
    visit = trial.visit()
    taking.take_upload(visit, trial.shelf, sample)
    trial.stored(sample)


@cases.table(
    "asks-for/{}",
    "NAM-001",
    {key: NAMES[key] for key in ("not-normalised", "many-scripts", "signs-of-shells-and-urls")},
    why="A name that is changed on its way is another file for everybody else.",
)
def asks_for(trial: Trial, name: str) -> None:
    """The filename of a download goes over the wire byte for byte."""
    sample = trial.sample(1_000, filename=name)
    trial.shelf.offer(sample)
    target = trial.folder / "target"
    target.mkdir()
    trial.start("download", filename=name, path=str(trial.path(sample, "target")))
    giving.give_download(trial.visit(), trial.shelf, sample)
    trial.fetched(sample)


@cases.table(
    "never-sent/{}",
    "NAM-003",
    {"1025-bytes": "/".join(["y" * 204] * 5) + "/", "component-of-256-bytes": "x" * 256},
    why="Limits of names are for both sides.",
)
def never_sent(trial: Trial, name: str) -> None:
    """A filename that is too long does not go over the wire; the client reports it."""
    name = name if len(name) == 256 else name + "z"
    path = trial.folder / "source"
    path.write_bytes(b"x" * 100_000)
    trial.start("upload", path=str(path), filename=name)
    said = trial.refused().get("error")
    require(said == "NAME_REFUSED", "another error is reported", expected="NAME_REFUSED", got=str(said))


assert all(len(name.encode()) <= 1_024 for name in NAMES.values())
