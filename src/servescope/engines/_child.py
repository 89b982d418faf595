"""A server as a child process: start it, wait until it answers, end it and nothing else.

Run as `python -m servescope.engines._child COMMAND...` it becomes that command, made to die with
its parent: how a program that is not ours learns to leave nothing behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from servescope.errors import Unreachable

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.02
_GRACE_S = 10.0
_TAIL_LINES = 15

Ready = Callable[[Path], str | None]
"""Given the log of a child: its base URL if it answers by now, else None."""


@contextlib.contextmanager
def running(
    engine: str,
    command: Sequence[str],
    ready: Ready,
    *,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    ready_s: float = 60.0,
) -> Iterator[str]:
    """Run `command`, yield the URL where it answers, and end it with all its own children.

    What it prints goes to `log` (a temporary file when None). Raises Unreachable, with the log's
    last lines, when it ends or `ready_s` passes before it answers. Call it from a thread that
    outlives the block: on Linux the engine dies with the thread that started it.
    """
    with contextlib.ExitStack() as stack:
        if log is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="servescope-"))
            log = Path(folder, "engine.log")
        with log.open("wb") as sink:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, **(environment or {})),
                start_new_session=True,  # a group of its own, ended as one; spared from Ctrl-C
            )
        stack.callback(_end, child)
        yield _wait(engine, child, ready, log, ready_s)


def die_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when its parent ends, even if that was killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """`command`, wrapped so that it dies with us."""
    return [sys.executable, "-m", "servescope.engines._child", *command]


def answers(url: str) -> bool:
    """Whether a GET of `url` gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own loopback
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    """A loopback port that is free now, for servers that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(
    engine: str, child: subprocess.Popen[bytes], ready: Ready, log: Path, ready_s: float
) -> str:
    deadline = time.monotonic() + ready_s
    while time.monotonic() < deadline:
        if child.poll() is not None:
            reason = f"ended with exit status {child.returncode} before it answered"
            raise Unreachable(f"{engine} {reason}; its last words:\n{_tail(log)}")
        if (url := ready(log)) is not None:
            return url
        time.sleep(_POLL_S)
    raise Unreachable(
        f"{engine} did not answer within {ready_s:g} s; its last words:\n{_tail(log)}"
    )


def _tail(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])


def _end(child: subprocess.Popen[bytes]) -> None:
    _signal_group(child, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_GRACE_S)
    _signal_group(child, signal.SIGKILL)  # what did not listen, and what it left behind
    child.wait()


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # The child leads a session of its own, so its id is the group's and nobody else is in it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    die_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - becoming the command is the purpose
