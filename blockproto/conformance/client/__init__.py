"""Cases for clients, one module for each chapter of the spec, and the server that misbehaves on purpose.

    command     the client as a process that is given a job
    visit       one connection that it makes
    shelf       what the harness's server has
    taking      what an honest server does with an upload, in steps that cases are made of
    giving      the same with a download
    certificates  what a server shows in TLS
    guarding    TLS that is answered, and connections on which nothing may be said
    trial       the world of one case: files, connections, runs of the command
    subject     a command as the runner's subject

How a client is given its job stands in ``spec/conformance.md``. A chapter's module has one ``cases = Chapter(…)``.
"""

from __future__ import annotations

import importlib

from ..case import Case

CHAPTERS = (
    "frm",
    "hel",
    "str_",
    "crd",
    "blk",
    "res",
    "dig",
    "com",
    "fil",
    "fet",
    "lst",
    "err",
    "end",
    "edge",
    "nam",
    "ext",
    "tls",
    "aut",
)
"""The modules with cases, in the order of the spec."""


def all_cases() -> list[Case]:
    """Every case for clients, in the order of the spec."""
    modules = [importlib.import_module(f"{__name__}.{chapter}") for chapter in CHAPTERS]
    return [case for module in modules for case in module.cases.cases]
