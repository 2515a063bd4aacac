"""A mutant: one edit of our source that breaks one rule, applied to the functions of a process that has imported it.

    Mutant("check-not-compared", "FRM-010", "protocol/framing.py", "if not check_frame(", "if False and check_frame(")

Rules:
    1. ``old`` stands exactly once in the file, inside a function. When the code changes, the mutant has to be looked at
       again: a test says so.
    2. Only the code of that function is exchanged, so that a process that was forked off becomes a mutant in a moment.
    3. An edit is a mistake that an honest implementer could make of that clause, as small as can be.
"""

from __future__ import annotations

import ast
import importlib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import blockproto

PACKAGE = Path(blockproto.__file__).parent
BOTH = ("server", "client")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One broken rule.

    Attributes:
        name: what is wrong.
        clauses: the clauses that are broken, without ``BP1-``; the first is the one whose cases must notice.
        file: in the package.
        old, new: the edit.
        sides: who can be examined with it.
        also: more edits, (file, old, new), where the same rule is kept twice.
    """

    name: str
    clauses: str
    file: str
    old: str
    new: str
    sides: tuple[str, ...] = BOTH
    also: tuple[tuple[str, str, str], ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The whole ids of its clauses."""
        return tuple(f"BP1-{one}" for one in self.clauses.split())

    def why_not(self) -> str:
        """Why it cannot be applied to the source as it is, or an empty string."""
        for file, old, _ in ((self.file, self.old, self.new), *self.also):
            count = (PACKAGE / file).read_text(encoding="utf-8").count(old)
            if count != 1:
                return f"{self.name}: {file} has {count} times {old!r}"
        return ""

    def apply(self) -> None:
        """Exchange the code of the functions that the edits are in.

        Raises:
            ValueError: an ``old`` does not stand exactly once in its file, or not in a function.
        """
        edits: dict[str, list[tuple[str, str]]] = {}
        for file, old, new in ((self.file, self.old, self.new), *self.also):
            edits.setdefault(file, []).append((old, new))
        for file, pairs in edits.items():
            try:
                _edit(file, pairs)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from error


def _edit(file: str, pairs: list[tuple[str, str]]) -> None:
    """Exchange the code of every function of a file that an edit is in."""
    path = PACKAGE / file
    source = edited = path.read_text(encoding="utf-8")
    names = set()
    for old, new in pairs:
        if source.count(old) != 1:
            raise ValueError(f"{file} has {source.count(old)} times {old!r}")
        at = source.index(old) + len(old) - len(old.lstrip())
        name = _function_at(source, source[:at].count("\n") + 1)
        if name is None:
            raise ValueError(f"in {file}, {old!r} is in no function")
        names.add(name)
        edited = edited.replace(old, new)
    codes = dict(_codes(compile(edited, str(path), "exec", dont_inherit=True)))
    for name in names:
        _live(_module(file), name).__code__ = codes[name]


def _module(file: str) -> types.ModuleType:
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return importlib.import_module(f"blockproto.{name}")


@cache
def _functions(source: str) -> list[tuple[int, int, str]]:
    """(first line, last line, qualified name) of every function that is not inside another."""
    found: list[tuple[int, int, str]] = []

    def dialect_connection(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found.append((child.lineno, child.end_lineno or child.lineno, prefix + child.name))
            elif isinstance(child, ast.ClassDef):
                dialect_connection(child, f"{prefix}{child.name}.")

    dialect_connection(ast.parse(source), "")
    return found


def _function_at(source: str, line: int) -> str | None:
    return next((name for first, last, name in _functions(source) if first <= line <= last), None)


def _codes(module: types.CodeType) -> Iterator[tuple[str, types.CodeType]]:
    """Every code object with its qualified name."""
    for constant in module.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant.co_qualname, constant
            yield from _codes(constant)


def _live(module: types.ModuleType, qualname: str) -> Any:
    """The function of that name, from under its decorators."""
    found: Any = module
    for part in qualname.split("."):
        found = vars(found)[part]
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    return found
