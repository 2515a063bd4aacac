"""Does the conformance harness judge our server alike every time? Shuffled runs, half of them beside a busy processor.

    python -m tests.campaigns.flakes [--runs 50] [--seed 1] [--quick]

Each run has a server of its own and an order of its own. Every second one runs beside one busy process for each
processor; every second pair sends in segments of one byte. What is neither PASS nor what the first run said is a flake.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = [sys.executable, "-m", "blockproto"]
RUN_S = 600.0


def burn() -> None:
    """Keep a processor busy."""
    while True:
        pass


@contextmanager
def hog(wanted: bool) -> Iterator[None]:
    """Busy processes, one for each processor."""
    burning = (
        [multiprocessing.Process(target=burn, daemon=True) for _ in range(os.cpu_count() or 1)]
        if wanted
        else []
    )
    for process in burning:
        process.start()
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.join()


def once(folder: Path, *options: str) -> tuple[dict[str, str], str]:
    """One run against a fresh server: verdict by case, and what was said to people."""
    served, report = folder / "served", folder / "report.jsonl"
    served.mkdir()
    server = subprocess.Popen(
        [*COMMAND, "serve", str(served), "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        ran = subprocess.run(
            [*COMMAND, "conform", "server", address, "--json", str(report), *options],
            stderr=subprocess.PIPE,
            text=True,
            timeout=RUN_S,
        )
        rows = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
        return {row["case"]: row["verdict"] for row in rows if "case" in row}, ran.stderr
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


def main() -> int:
    """Run, and print a line for each run and each flake; the exit code is 1 if there was one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(1)
    )  # so that busy processes and servers end with this one
    usual: dict[str, str] = {}
    flakes = 0
    for number in range(chosen.runs):
        busy, small = number % 2 == 1, number % 4 >= 2
        options = ["--shuffle", str(chosen.seed + number)]
        options += ["--small-segments"] if small else []
        options += ["--quick"] if chosen.quick else []
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, hog(busy):
            verdicts, said = once(Path(folder), *options)
        usual = usual or verdicts
        odd = {
            case: verdict
            for case, verdict in verdicts.items()
            if verdict != usual.get(case, "PASS") or verdict in {"FAIL", "HANG", "CRASH", "HARNESS_ERROR"}
        }
        flakes += len(odd)
        words = " ".join([*(["busy"] if busy else []), *(["small segments"] if small else [])])
        print(
            f"run {number + 1}: {len(verdicts)} cases in {time.monotonic() - began:.0f} s, {len(odd)} flakes {words}",
            flush=True,
        )
        for case, verdict in odd.items():
            print(f"  {verdict} {case}", flush=True)
        if odd:
            print(said[-6_000:], flush=True)
    print(f"{chosen.runs} runs, {flakes} flakes")
    return int(flakes > 0)


if __name__ == "__main__":
    sys.exit(main())
