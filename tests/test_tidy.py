"""Style as a test: who may import whom, how long a function may be, and a few habits.

Rules:
    1. ``ROOMS`` is the allow-list: a room imports the rooms and libraries of its row and the standard library, no more.
       ``store`` in a row means the port (``blockproto/store/__init__.py``); only ``WHOLE_STORE`` may take more: it picks
       a concrete store. ``server`` and ``client`` are the faces of ``serving`` and ``client_side``.
    2. A rule is relaxed by editing this file with a reason, not by a comment where it is broken.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "blockproto"
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
LONG_FILES = {"wire.py", "protocol/session.py"}
"""One table each that is read as a whole: the messages, and what they do to a connection."""

ROOMS: dict[str, tuple[str, str]] = {
    # room: (rooms it may import, libraries it may import)
    "errors": ("", ""),
    "common": ("errors", "blake3 construct trio"),
    "wire": ("common errors", ""),
    "identity": ("common connection errors wire", "blake3 cryptography filelock mnemonic platformdirs"),
    "protocol": ("common errors wire", ""),
    "store": ("common errors", "blake3 filelock lmdb"),
    "connection": ("common errors protocol wire", "trio"),
    "observability": ("common connection errors protocol store wire", "prometheus_client trio"),
    "serving": (
        "common connection dialects errors identity observability protocol store transfer wire",
        "blake3 prometheus_client trio",
    ),
    "transfer": ("common connection errors identity observability store wire", "blake3 trio"),
    "results": ("wire", ""),
    "client_side": (
        "common connection errors identity observability protocol results store transfer wire",
        "blake3 platformdirs trio",
    ),
    "testing": ("common errors store", "blake3 pytest trio"),
    "dialects": ("client_side common connection errors results store transfer", "blake3 construct trio"),
    "queue": ("client_side common errors results transfer", "filelock platformdirs trio"),
    "__init__": ("*", ""),
    "__main__": ("cli", ""),
    "cli": ("*", "blake3 click rich trio"),
    "conformance": ("common errors wire", "blake3 cryptography platformdirs rich"),
}
FACES = {"server": "serving", "client": "client_side"}
WHOLE_STORE = ("store", "testing", "client", "server", "cli")
NO_IO = (
    "errors", "common.blocks", "common.names", "common.head_layout", "wire", "identity.realm", "protocol",
    "serving.detect_rules",
)  # fmt: skip
"""Rooms and modules without input, output or clock."""
IO_MODULES = {
    "os",
    "io",
    "socket",
    "time",
    "select",
    "threading",
    "subprocess",
    "asyncio",
    "ssl",
    "datetime",
    "pathlib",
}
POSIX_MODULES = {
    "fcntl",
    "grp",
    "pwd",
    "resource",
    "termios",
    "tty",
    "pty",
    "posix",
    "syslog",
    "crypt",
    "spwd",
    "nis",
}
CLIENT_MODULES = [
    f"blockproto{name}"
    for name in ("", ".client", ".cli", ".cli.put", ".cli.get", ".cli.look", ".cli.change")
]
"""What people on macOS and Windows import."""


def _sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


SOURCES = _sources(PACKAGE)
TESTS = _sources(ROOT / "tests")


def _label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _room(module: str) -> str:
    """``blockproto.store.local.ledger`` lies in room ``store``; the package itself is room ``__init__``."""
    room = module.split(".")[1] if "." in module else "__init__"
    return FACES.get(room, room)


def _lies_in(module: str, places: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"blockproto.{place}.") for place in places)


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of everything a file imports, wherever it stands."""
    package = _module(path) if path.name == "__init__.py" else _module(path).rpartition(".")[0]
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, module) for module in _import_from(node, package))


def _import_from(node: ast.ImportFrom, package: str) -> list[str]:
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    base = ".".join(filter(None, [*above, node.module]))
    inside = PACKAGE.parent / base.replace(".", "/")
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [
        name if (inside / name.rpartition(".")[2]).with_suffix(".py").exists() else base for name in names
    ]


def _complaint(importer: str, module: str) -> str | None:
    top, room = module.partition(".")[0], _room(importer)
    rooms, libraries = (words.split() for words in ROOMS[room])
    if top != "blockproto":
        known = top in sys.stdlib_module_names or top in libraries
        return None if known else f"library {top} is not for room {room}"
    other = _room(module)
    if other == room or "*" in rooms:
        return None
    if other == "store" and not _lies_in(importer, WHOLE_STORE) and module.count(".") > 1:
        return f"room {room} may know the store's port only, not {module}"
    return None if other in rooms else f"room {room} may not import {module}"


@pytest.mark.parametrize("path", SOURCES, ids=_label)
def test_imports_keep_to_the_allow_list(path: Path) -> None:
    room = _room(_module(path))
    assert room in ROOMS, f"{_label(path)}: a new room needs a row in ROOMS"
    complaints = [
        f"{_label(path)}:{line}: {why}"
        for line, module in _imports(path)
        if (why := _complaint(_module(path), module))
    ]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("path", [path for path in SOURCES if _lies_in(_module(path), NO_IO)], ids=_label)
def test_the_core_does_no_io(path: Path) -> None:
    found = [
        f"{_label(path)}:{line}: {module}"
        for line, module in _imports(path)
        if module.partition(".")[0] in IO_MODULES
    ]
    assert not found, "\n".join(found)


def _circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """The modules that import each other, directly or through others."""
    reached = {module: _reached_from(module, imports) for module in imports}
    circles: list[set[str]] = []
    for module in imports:
        circle = {other for other in reached[module] if module in reached.get(other, ())}
        if circle and circle not in circles:
            circles.append(circle)
    return circles


def _reached_from(module: str, imports: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        new = imports.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return reached


def test_there_is_no_circle() -> None:
    """An import for annotations, or inside a function, counts too: whoever reads one module must know the other."""
    imports = {_module(path): {module for _, module in _imports(path)} - {_module(path)} for path in SOURCES}
    found = _circles(imports)
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
    assert found == []


def _file(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.exists()), None)


def _loaded_with(module: str) -> dict[str, set[str]]:
    """module of ours: what it imports at its top, for everything that importing ``module`` loads."""
    loaded: dict[str, set[str]] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in loaded or path is None:
            continue
        top = {node.lineno for node in _tree(path).body if isinstance(node, (ast.Import, ast.ImportFrom))}
        loaded[name] = {imported for line, imported in _imports(path) if line in top}
        waiting += loaded[name]
        waiting += [name.rpartition(".")[0]] if "." in name else []
    return loaded


@pytest.mark.parametrize("module", CLIENT_MODULES)
def test_the_client_loads_without_posix(module: str) -> None:
    """The client runs on macOS and Windows: what only POSIX has is imported where it is used, not at a module's top."""
    found = {
        name: imported & POSIX_MODULES
        for name, imported in _loaded_with(module).items()
        if imported & POSIX_MODULES
    }
    assert not found


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=_label)
def test_functions_are_short(path: Path) -> None:
    functions = [
        node for node in ast.walk(_tree(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = [
        f"{_label(path)}:{node.lineno}: {node.name} has {lines} lines"
        for node in functions
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not long, "\n".join(long)


def test_files_are_short() -> None:
    """The harness, whose cases stand one after another, is not meant."""
    lines = {
        path.relative_to(PACKAGE).as_posix(): path.read_text().count("\n")
        for path in PACKAGE.rglob("*.py")
        if not path.is_relative_to(PACKAGE / "conformance")
    }
    assert {name for name, count in lines.items() if count > FILE_LINES_MAX} <= LONG_FILES


@pytest.mark.parametrize("path", SOURCES, ids=_label)
def test_modules_say_what_they_are(path: Path) -> None:
    text = ast.get_docstring(_tree(path))
    assert text, f"{_label(path)}: a module begins with a docstring of one sentence"
    assert text.splitlines()[0].rstrip()[-1:] in ".:;?!", f"{_label(path)}: the first line is a sentence"


def _project_texts() -> list[Path]:
    endings = {".py", ".md", ".toml", ".json", ".yml", ".txt", ""}
    skipped = {
        ".git",
        ".venv",
        "__pycache__",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".hypothesis",
        "build",
        "results",
    }
    paths = (path for path in ROOT.rglob("*") if path.is_file() and path.suffix in endings)
    return [
        path
        for path in paths
        if not skipped & set(path.relative_to(ROOT).parts) and path != Path(__file__).resolve()
    ]


def test_no_file_points_outside_the_repository() -> None:
    outside = re.compile(r"\.\./shared|/work/(main|shared)|/tmp/bp|\bDESIGN\.md\b")
    found = [
        _label(path)
        for path in _project_texts()
        if outside.search(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not found, f"these mention files that no clone has: {found}"


def _naps(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, enclosing function, its source form) of every call of something named ``sleep``."""

    def visit(node: ast.AST, function: ast.AST | None) -> Iterator[tuple[int, str, str]]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node
        if isinstance(node, ast.Call):
            called = node.func
            name = (
                called.attr
                if isinstance(called, ast.Attribute)
                else called.id
                if isinstance(called, ast.Name)
                else ""
            )
            if name == "sleep":
                form = ast.unparse(function) if function is not None else ""
                yield node.lineno, getattr(function, "name", ""), form
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    return visit(tree, None)


def _may_nap(function: str, form: str) -> bool:
    """Whether a nap is a look again at a process until a deadline, or passes on a clock that jumps."""
    waits = function.startswith("wait_") and re.search(r"deadline|timeout_s", form) is not None
    return waits or "autojump_clock" in form or "mock_clock" in form


@pytest.mark.parametrize("path", TESTS, ids=_label)
def test_tests_do_not_sleep(path: Path) -> None:
    """Waiting is for an event or a condition with a deadline; simulations run on a clock that jumps."""
    if "simulation" in path.parts:
        return
    found = [f"{_label(path)}:{line}" for line, name, form in _naps(_tree(path)) if not _may_nap(name, form)]
    assert not found, f"sleeping in {found}: wait for what is to happen, in a function wait_… with a deadline"


UPLOADING = ("transfer.engine", "transfer.file_service", "transfer.live_uploads", "transfer.live_upload", "transfer.quota",
    "client_side.download", "testing.store_contract",
)  # fmt: skip
"""What opens uploads and counts quota itself, or tries stores; whoever else receives files goes through ``FileWriter``."""


def _ways_around(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of everything that reaches uploads or quota without being held to rights, names and quota."""
    opening = {"open", "wake", "discard", "begin_brief", "end_brief"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        of = ast.unparse(node.value)
        around = of.endswith("uploads") and node.attr in opening
        if around or node.attr == "quotas" or (of.endswith("store") and node.attr == "begin_brief"):
            yield node.lineno, f"{of}.{node.attr}"


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if not _lies_in(_module(path), UPLOADING)], ids=_label
)
def test_files_come_in_through_the_service(path: Path) -> None:
    found = [f"{_label(path)}:{line}: {what}" for line, what in _ways_around(_tree(path))]
    assert not found, "\n".join(found)


def test_pytest_is_for_the_contract_of_stores_only() -> None:
    """It is not installed with blockproto."""
    contract = PACKAGE / "testing" / "store_contract"
    outside = [path for path in SOURCES if contract not in path.parents]
    assert [_label(path) for path in outside if "pytest" in {module for _, module in _imports(path)}] == []
    assert [
        _label(path) for path in outside if "blockproto.testing.store_contract" in str(list(_imports(path)))
    ] == []


def test_the_tidy_rules_catch_what_they_forbid() -> None:
    assert _complaint("blockproto.protocol.session", "trio") == "library trio is not for room protocol"
    assert _complaint("blockproto.wire", "blockproto.server") is not None
    assert _complaint("blockproto.serving.server", "blockproto.store.local.store") is not None
    assert _complaint("blockproto.serving.server", "blockproto.store") is None
    assert _complaint("blockproto.store.local.batch", "blockproto.store.local.ledger") is None
    assert _complaint("blockproto.protocol", "zlib") is None
    tree = ast.parse("def test_a():\n    time.sleep(1)\n\ndef wait_b(deadline):\n    trio.sleep(1)\n")
    around = ast.parse(
        "engine.uploads.open(key)\nself.quotas\nstore.begin_brief(key)\nwriter.open(id)\nwriter.begin_brief(id)"
    )
    assert sorted(line for line, _ in _ways_around(around)) == [1, 2, 3]
    assert [_may_nap(name, form) for _, name, form in _naps(tree)] == [False, True]


def _unbounded(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of every call in a test that may wait for a process without end."""
    awaited = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Await)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or id(node) in awaited:
            continue
        called = ast.unparse(node.func)
        timeout = any(word.arg == "timeout" for word in node.keywords)
        if called in {"subprocess.run", "subprocess.check_output", "subprocess.check_call"} and not timeout:
            yield node.lineno, f"{called} without timeout"
        elif called == "subprocess.Popen":
            yield node.lineno, "subprocess.Popen: take processes.Process, whose waits end"


@pytest.mark.parametrize("path", TESTS, ids=_label)
def test_no_test_waits_for_a_process_without_end(path: Path) -> None:
    if path.name in {"processes.py", "server_adapter.py", "zygote.py", "record_old.py"} or {
        "campaigns",
        "crash",
    } & set(path.parts):
        return
    found = [f"{_label(path)}:{line}: {what}" for line, what in _unbounded(_tree(path))]
    assert not found, "\n".join(found)
