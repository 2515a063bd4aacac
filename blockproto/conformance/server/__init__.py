"""Cases for servers, one module for each chapter of the spec, and the subject that runs them.

A chapter's module has one ``cases = Chapter(…)``; ``CHAPTERS`` names the modules in the order of the spec.
"""

from __future__ import annotations

import importlib
import secrets
import time
from dataclasses import replace

from ..adapter import Adapter
from ..case import Case
from ..peer import Peer
from ..target import Target, Trial
from ..transcript import Transcript
from ..verdicts import Failed, Hung, Unreachable
from .sanity import check

CHAPTERS = (
    "frm",
    "hel",
    "str_",
    "crd",
    "blk",
    "brief",
    "res",
    "prefix",
    "dig",
    "com",
    "same",
    "fil",
    "fil_answers",
    "fil_wanted",
    "fet",
    "follow",
    "lst",
    "err",
    "end",
    "nam",
    "ext",
    "edge",
    "lim",
    "vec",
    "dialects",
    "tls",
    "aut",
    "prn",
)

RETURN_S = 4.0
"""How long a target that is gone is waited for, as a multiple of what an answer may take."""


def all_cases() -> list[Case]:
    """Every case for servers, in the order of the spec."""
    modules = [importlib.import_module(f"{__name__}.{chapter}") for chapter in CHAPTERS]
    return [case for module in modules for case in module.cases.cases]


class ServerSubject:
    """A server that is examined: the runner's ``Subject``.

    Args:
        target: its address, and how it is examined.
        profiles: those that it claims; cases of others are UNSUPPORTED.
    """

    def __init__(self, target: Target, profiles: frozenset[str] = frozenset({"CORE"})) -> None:
        self.sanity = check
        self.target = replace(target, folder=f"conform-{secrets.token_hex(4)}")
        self._profiles = profiles

    def reach(self) -> None:
        """See that a server of this protocol is there, and measure a round trip.

        Raises:
            Unreachable: nothing is there, or something else; the text says what.
        """
        where = f"{self.target.host}:{self.target.port}"
        try:
            sock = self.target.connect()
        except OSError as error:
            raise Unreachable(f"nothing accepts connections at {where}: {error.strerror or error}") from error
        began = time.monotonic()
        with Peer(sock, 0, Transcript(), self.target.patience, lambda note: None) as peer:
            try:
                peer.greet()
                peer.ping()
            except Hung as failure:
                raise Unreachable(
                    f"{where} accepts connections and does not answer the greeting of blockproto ({failure.reason})"
                ) from failure
            except Failed as failure:
                got = f": {failure.got}" if failure.got else ""
                raise Unreachable(
                    f"what answers at {where} is not a blockproto server ({failure.reason}{got})"
                ) from failure
        self._measure(time.monotonic() - began)

    def _measure(self, greeting_s: float) -> None:
        """Take a sanity upload's round trips as measure, too: they wait for its disk."""
        began = time.monotonic()
        try:
            with self.trial(check) as trial:
                check.script(trial)
        except Failed:
            pass  # the runner's own check reports it
        elapsed_s = max(greeting_s, (time.monotonic() - began) / 6)
        self.target = self.target.with_(patience=self.target.patience.measured(elapsed_s))

    def trial(self, case: Case) -> Trial:
        """A fresh world for one run of a case."""
        return Trial(self.target, case)

    def alive(self) -> bool:
        """Whether it still accepts connections and answers."""
        return self.target.answers()

    def wait_back(self) -> bool:
        """Start it again where an adapter can, and wait until it answers.

        A process that is gone from the network may not be gone from its parent's list yet: the adapter is asked each time.
        """
        adapter = self.target.adapter
        deadline = time.monotonic() + RETURN_S * self.target.patience.answer_s
        while time.monotonic() < deadline:
            if adapter is not None and "start" in adapter.can:
                adapter.ask("start")
            if self.target.answers():
                return True
            time.sleep(0.2)
        return False

    def lacks(self, case: Case) -> str:
        """Why a case cannot be examined: its profile was not asked for, or the adapter is missing or too simple."""
        if case.profile not in self._profiles:
            return f"profile {case.profile} was not asked for (--profile {case.profile})"
        adapter: Adapter | None = self.target.adapter
        missing = sorted(case.needs - (adapter.can if adapter else frozenset()))
        return f"needs an adapter that can {' and '.join(missing)} (--adapter)" if missing else ""

    def clean(self) -> None:
        """Remove everything that this run has stored, as far as the server does that."""
        from .. import moves

        try:
            with self.trial(check) as trial:
                writers = [one for one in self.target.cast.players(trial.dial) if one.writes]
                for peer in (trial.dial(), *map(trial.come_in, writers)):
                    moves.clean(peer, self.target.folder)
        except Failed:
            pass  # what cannot be removed stays; the cases have said why
