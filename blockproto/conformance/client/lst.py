"""LST for clients: list, and receipts before many files."""

from __future__ import annotations

from collections.abc import Iterator

from ... import wire
from ..case import Chapter, Side
from ..peer import Heard
from ..sample import Sample
from ..verdicts import require
from . import taking
from .str_ import several
from .trial import Trial
from .visit import Visit

cases = Chapter("client/lst", Side.CLIENT)

CURSORS = {
    "of-one-byte": "1",
    "of-1100-bytes": "ü" * 550,
    "with-control-characters": "a\x00b\n\x7f",
    "not-utf-8": "\udcff\udc80",
}


@cases.table(
    "pages/cursor-{}",
    "LST-003 FRM-013",
    CURSORS,
    why="A cursor means nothing to a client: what is changed in it leads elsewhere.",
)
def pages(trial: Trial, cursor: str) -> None:
    """Two pages: the second LIST has the same fields and the cursor, byte for byte; all entries are printed."""
    samples = sorted((trial.sample(number + 1) for number in range(4)), key=lambda one: one.filename)
    for sample in samples:
        trial.shelf.offer(sample)
    items = [trial.shelf.item(sample.filename) for sample in samples]
    trial.start("list", folder="")
    visit = trial.visit()
    first = visit.expect_heard(wire.List, cursor="", exact=False)
    visit.say(first.stream, wire.Result(1, tuple(items[:3]), cursor))
    second = visit.expect_heard(wire.List)
    fields = {name: getattr(first.message, name) for name in ("kind", "limit", "name", "recursive", "exact")}
    visit.compare(second, "BP1-LST-003", cursor=cursor, **fields)
    visit.say(second.stream, wire.Result(1, tuple(items[3:])))
    entries = trial.done().get("entries", [])
    wanted = [(sample.filename, sample.filesize, False) for sample in samples]
    got = [(one.get("filename"), one.get("filesize"), one.get("folder")) for one in entries]
    require(got == wanted, "other entries are printed", expected=str(wanted), got=str(got))


@cases.add(
    "many/asks-for-receipts-first",
    "LST-014",
    why="Ten thousand files that are there already cost ten thousand round trips, or ten.",
)
def receipts_first(trial: Trial) -> None:
    """The same sixty files again: the client asks for their receipts, many in one LIST, and sends none of them."""
    samples = several(trial, 60)
    visit = trial.visit()
    for sample, heard in _begun(trial, visit, samples):
        upload = taking.upload_of(visit, sample, heard)
        if not upload.brief:
            visit.say(upload.stream, upload.opened())
        taking.go_on(visit, trial.shelf, upload)
        sourceid = upload.sample.sourceid
        trial.shelf.receipts[sourceid] = wire.ReceiptItem(
            sourceid, sourceid[::-1], sample.root, sample.filesize, sample.filename
        )
    trial.done()
    trial.shelf.lists.clear()
    trial.again()
    visit = trial.visit()
    trial.repeats = True
    trial.done()
    asked = [message for message in trial.shelf.lists if message.kind == wire.ListKind.RECEIPTS]
    ids = {one for message in asked for one in message.ids}
    require(
        len(ids) == len(samples), "the receipts of files that are there are not asked for", got=str(len(ids))
    )
    require(len(asked) <= 3, "receipts are asked for a few at a time", got=f"{len(asked)} LISTs")
    require(visit.came() == 0, "bytes travel again of files that are there", got=str(visit.came()))


def _begun(trial: Trial, visit: Visit, samples: list[Sample]) -> Iterator[tuple[Sample, Heard]]:
    """Each of these files with the frame that begins it, in the order in which they come."""
    by_name = {sample.filename: sample for sample in samples}
    while by_name:
        heard = trial.shelf.wanted(visit, "BLOCK or OPEN")
        yield by_name.pop(heard.message.filename), heard  # type: ignore[union-attr]


@cases.add(
    "remove/answered-by-result",
    "STR-006 ERR-001",
    why="A REMOVE is done when its answer says so.",
)
def remove(trial: Trial) -> None:
    """REMOVE of a file: the answer ends its stream, and the client says nothing more on it."""
    sample = trial.sample(5)
    trial.shelf.offer(sample)
    trial.start("remove", filename=sample.filename)
    visit = trial.visit()
    heard = visit.expect_heard(wire.Remove, kind=wire.RemoveKind.FILE)
    visit.say(heard.stream, wire.Result(1))
    trial.done()
    more = [one for one in visit.rest() if one.stream == heard.stream]
    require(not more, "the client says something on a stream that was ended", got=", ".join(map(str, more)))
