"""Copy what the conformance harness needs of the spec into the package, so that an installed package has it.

    python spec/export.py [--check]

``blockproto/conformance/data/clauses.json`` is made from the clauses of the chapters here; those vectors that the
harness plays are copied byte for byte. With ``--check`` nothing is written, and the exit code is 1 if something differs.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

SPEC = Path(__file__).resolve().parent
DATA = SPEC.parent / "blockproto" / "conformance" / "data"
VECTORS = ("names", "refusals", "transitions")

CLAUSE = re.compile(
    r"^- \*\*\[(?P<id>[A-Z0-9]+-[A-Z0-9]+-\d{3}) (?P<level>MUST|SHOULD|MAY) (?P<role>[a-z]+) · "
    r"(?P<profile>[A-Z]+) · (?P<proof>[a-z]+)\]\*\* (?P<text>\S.*)$",
    re.M,
)


def clauses() -> list[dict[str, str]]:
    """Every clause of every chapter, in the order of the text."""
    return [
        {**match.groupdict(), "document": path.name}
        for path in sorted(SPEC.glob("*.md"), key=lambda path: (path.name != "protocol.md", path.name))
        for match in CLAUSE.finditer(path.read_text(encoding="utf-8"))
    ]


def exported() -> dict[Path, str]:
    """What belongs into the package: its path there, and its text."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in clauses())
    vectors = {
        DATA / f"{name}.json": (SPEC / "vectors" / f"{name}.json").read_text("utf-8") for name in VECTORS
    }
    return {DATA / "clauses.json": f"[\n{lines}\n]\n", **vectors}


def main(arguments: list[str]) -> int:
    """Write, or with ``--check`` compare; the exit code."""
    differing = [
        (path, text)
        for path, text in exported().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in differing:
        if "--check" in arguments:
            print(f"{path.name} is not what the spec says; run spec/export.py")
        else:
            path.write_text(text, encoding="utf-8")
    return int(bool(differing) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
