"""The command in a process of its own, watched from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

QUICK = ("--data", "dummy", "--seed", "7", "--input-tokens", "20", "--output-tokens", "10")
PATIENCE_S = 20.0


def until(condition, what: str):
    """Wait for something that must come true; what it returns."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)
    return found


class Command:
    """`servescope` with these words."""

    def __init__(self, *words: object, cwd: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "servescope", *map(str, words)],
            cwd=cwd,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out = self.err = ""

    def wait(self) -> int:
        """Its exit status, with `out` and `err` filled."""
        self.out, self.err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode

    def children(self) -> list[int]:
        """The processes it has started and that run."""
        return children(self.process.pid)


def children(pid: int) -> list[int]:
    """The processes that this one has started and that run."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def gone(pids: list[int]) -> bool:
    """Whether none of these runs any more."""
    return not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
