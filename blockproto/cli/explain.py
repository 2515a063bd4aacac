"""``blockproto explain``: why a transfer was slow or stuck, from the log that ``put --log`` or ``get --log`` wrote."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ..common.names import show_name
from ..observability.explain import explain as explained
from .options import json_option
from .output import Status, print_json


@click.command("explain", epilog="Exit codes: 0 done, 2 usage, or LOG is no such log.")
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def explain(log: Path, as_json: bool) -> int:
    """Say why a transfer was slow or stuck, and what to do about it.

    LOG is what `put --log LOG` or `get --log LOG` wrote: also that of a program that was killed, or is still running.
    """
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            told = explained(lines)
    except ValueError as error:
        raise click.UsageError(f"'{log}': {error}") from error
    if as_json:
        shares = {reason: round(told.share(reason), 4) for reason, _ in told.waits.most_common()}
        fields = asdict(told) | {"waits": dict(told.waits), "files": list(told.files)}
        print_json({"reason": told.reason, "advice": told.advice, "shares": shares, **fields})
    else:
        for sentence in told.sentences():
            click.echo(show_name(sentence))
    return Status.DONE
