"""``blockproto chaos``: a bad line between an app and a server, to see what the app does on it.

The model of the line is ``blockproto.testing.chaos``; here are the words in which people say what they want.
"""

from __future__ import annotations

import re
import signal
from dataclasses import asdict
from typing import Any

import click
import trio

from ..identity.loopback import is_loopback
from ..testing.chaos import Amount, ChaosProxy, Conditions, Ending, How, Report
from .address import AddressError, parse_listen, show_host_port, to_listen
from .options import json_option
from .output import Status, about, print_json, say, show_count, show_size, warn

_USES = """\b
A phone on 4G:       --up 8mbit --down 30mbit --delay 60ms
Edge of the network: --rate 256kbit --delay 600ms --reset-after 10s-60s
A train in a tunnel: --rate 8mbit --delay 100ms --black-hole-after 3MB --heal-after 20s
A broken router:     --flip-every 20MB

Exit codes: 0 ended by SIGTERM, 1 cannot listen, 2 usage, 130 Ctrl-C.
"""
_UNITS: dict[str, dict[str, float]] = {
    "rate": {"bit": 1 / 8, "kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8},
    "time": {"ms": 1e-3, "s": 1.0, "min": 60.0},
    "size": {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
}
_EXAMPLES = {"rate": "8mbit or 256kbit", "time": "100ms or 20s", "size": "3MB or 512KiB"}


class Quantity(click.ParamType):  # type: ignore[type-arg]
    """A number with its unit; with ``span`` also two of them, ``1MB-5MB``.

    Args:
        kinds: which units it may have.
        span: whether it may be a span; the value is then (kind, Amount), else a number.
    """

    name = "quantity"

    def __init__(self, *kinds: str, span: bool = False) -> None:
        self._kinds = kinds
        self._span = span

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click.ParamType."""
        if not isinstance(value, str):
            return value
        parts = value.split("-") if self._span else [value]
        read = [self._read(part.strip()) for part in parts]
        if len(read) > 2 or None in read or len({one[0] for one in read if one}) > 1:
            self.fail(f"'{value}': write {self._examples()}", param, ctx)
        numbers = [one[1] for one in read if one]
        if numbers[0] > numbers[-1]:
            self.fail(f"'{value}': write the smaller number first", param, ctx)
        if numbers[-1] == 0 and "time" not in self._kinds:
            self.fail(f"'{value}': write a number above 0", param, ctx)
        kind = next(one[0] for one in read if one)
        return (kind, Amount(numbers[0], numbers[-1])) if self._span else numbers[0]

    def _read(self, text: str) -> tuple[str, float] | None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.lower())
        for kind in self._kinds:
            if match and match[2] in _UNITS[kind]:
                return kind, float(match[1]) * _UNITS[kind][match[2]]
        return None

    def _examples(self) -> str:
        each = " or ".join(_EXAMPLES[kind] for kind in self._kinds)
        return f"{each}, or a span as in 1MB-5MB" if self._span else each


_RATE, _TIME, _SIZE = Quantity("rate"), Quantity("time"), Quantity("size")
_WHEN = Quantity("size", "time", span=True)


def _to_target(_ctx: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, int]:
    try:
        host, port = parse_listen(text)
    except AddressError as error:
        raise click.BadParameter(f"'{text}': {error}") from error
    if port == 0:
        raise click.BadParameter(f"'{text}': write the port that the server printed")
    return host, port


@click.command("chaos", epilog=_USES)
@click.option(
    "--listen",
    default="127.0.0.1:7979",
    show_default=True,
    callback=to_listen,
    metavar="HOST:PORT",
    help="Where the app connects instead of the server; port 0 picks a free one.",
)
@click.option(
    "--to",
    "target",
    default="127.0.0.1:7878",
    show_default=True,
    callback=_to_target,
    metavar="HOST:PORT",
    help="The server that everything is passed on to.",
)
@click.option(
    "--rate", type=_RATE, metavar="RATE", help="How fast, each way: 8mbit, 256kbit (bits a second)."
)
@click.option("--up", type=_RATE, metavar="RATE", help="How fast from the app to the server.")
@click.option("--down", type=_RATE, metavar="RATE", help="How fast from the server to the app.")
@click.option(
    "--delay",
    type=_TIME,
    default="0ms",
    metavar="TIME",
    help="Latency: the round-trip time, as ping shows it; each way takes half of it. Connecting itself takes no time.",
)
@click.option(
    "--buffer",
    type=_SIZE,
    metavar="SIZE",
    help="How much waits at the line's beginning at most; without it 0.1 s of line time, at least 8 KiB. "
    "A phone network has far more, which is why calls stutter while something is uploaded.",
)
@click.option(
    "--slice", "slice_size", type=_SIZE, metavar="SIZE", help="Hand on at most this much at once: 1B."
)
@click.option(
    "--flip-every", type=_SIZE, metavar="SIZE", help="Change one bit in this many bytes, on average."
)
@click.option(
    "--reset-after", type=_WHEN, metavar="WHEN", help="Break the connection; what is under way is lost."
)
@click.option(
    "--close-after", type=_WHEN, metavar="WHEN", help="Close it in order; what is under way still arrives."
)
@click.option(
    "--black-hole-after",
    type=_WHEN,
    metavar="WHEN",
    help="Let nothing through any more and tell nobody, as in a tunnel.",
)
@click.option(
    "--heal-after", type=_TIME, metavar="TIME", help="End the black hole after this time; then it goes on."
)
@click.option(
    "--first", type=click.IntRange(1), metavar="N", help="Only the first N connections end like that."
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Of what happens at random: the same seed does the same again.",
)
@click.option("--insecure", is_flag=True, help="Listen to other machines too: a phone has to reach this one.")
@json_option
def chaos(
    listen: tuple[str, int],
    target: tuple[str, int],
    rate: float | None,
    up: float | None,
    down: float | None,
    delay: float,
    buffer: float | None,
    slice_size: float | None,
    flip_every: float | None,
    first: int | None,
    seed: int,
    insecure: bool,
    as_json: bool,
    **ends: Any,
) -> int:
    """Put a bad line between an app and a server, and see what the app does on it.

    Let the app connect to --listen instead of to the server. Each connection gets a line of its own. WHEN is how much has
    come through (both ways together), or how long the connection has been open: 3MB, 20s, or a span from which each
    connection draws, as 1MB-5MB. Stop it with Ctrl-C; it then says what has passed.
    """
    if not is_loopback(listen[0]) and not insecure:
        raise click.UsageError(
            f"'{listen[0]}' lets other machines reach {show_host_port(*target)} through this one: "
            "add --insecure if that is what you want, or listen on 127.0.0.1"
        )
    conditions = Conditions(
        up_bytes_s=up or rate,
        down_bytes_s=down or rate,
        round_trip_s=delay,
        buffer_bytes=None if buffer is None else int(buffer),
        slice_bytes=None if slice_size is None else max(1, int(slice_size)),
        flip_every_bytes=flip_every,
        ending=_ending(**ends),
    )
    report = _print_report if as_json else _say_report
    proxy = ChaosProxy(target, conditions, seed=seed, endings_max=first, report=report)
    where = f"--listen {show_host_port(*listen)}"
    with about(where, lambda _: (where, "choose an address of this machine and a port that is free")):
        return trio.run(_run, proxy, listen, as_json)


def _ending(heal_after: float | None, **whens: tuple[str, Amount] | None) -> Ending | None:
    hows = {"reset_after": How.RESET, "close_after": How.CLOSED, "black_hole_after": How.BLACK_HOLE}
    given = {hows[name]: when for name, when in whens.items() if when is not None}
    if len(given) > 1:
        raise click.UsageError(
            "a connection ends in one way: give one of --reset-after, --close-after, --black-hole-after"
        )
    if heal_after is not None and How.BLACK_HOLE not in given:
        raise click.UsageError("--heal-after ends a black hole: say when it begins with --black-hole-after")
    for how, (kind, amount) in given.items():
        after_bytes, after_s = (amount, None) if kind == "size" else (None, amount)
        return Ending(how, after_bytes, after_s, heal_after)
    return None


async def _run(proxy: ChaosProxy, listen: tuple[str, int], as_json: bool) -> int:
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            for host, port in await nursery.start(proxy.serve, listen):
                click.echo(f"listening on {show_host_port(host, port)}")
            ended_by = await anext(received)
            nursery.cancel_scope.cancel()
    totals = asdict(proxy.totals)
    if as_json:
        print_json({"event": "total", **totals})
    else:
        say(
            f"{show_count(proxy.totals.connections, 'connection')}, {show_size(proxy.totals.up_bytes)} up, "
            f"{show_size(proxy.totals.down_bytes)} down, {show_count(proxy.totals.flipped_bits, 'wrong bit')}; "
            f"{proxy.totals.resets} reset, {proxy.totals.closes} closed, {proxy.totals.black_holes} fell into a black hole, "
            f"{proxy.totals.refused} refused"
        )
    return Status.INTERRUPTED if ended_by == signal.SIGINT else Status.DONE


def _print_report(report: Report) -> None:
    print_json({**report._asdict(), "at_s": round(report.at_s, 6)})


def _say_report(report: Report) -> None:
    passed = f"{show_size(report.up_bytes)} up, {show_size(report.down_bytes)} down"
    text = f"{report.at_s:9.3f} s  connection {report.connection} ({report.peer}) {report.event}: {passed}"
    (warn if report.event == "refused" else say)(text)
