"""The ground-truth server in C, compiled where it is used, and what its log says."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray  # noqa: TC002

HERE = Path(__file__).parent


def compiled(name: str) -> Path:
    """The program of NAME.c, compiled when that is newer. Raises SystemExit without a compiler."""
    source = HERE / f"{name}.c"
    program = Path(tempfile.gettempdir()) / f"servescope-bench-{os.getuid()}" / name
    program.parent.mkdir(mode=0o700, exist_ok=True)
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise SystemExit("want a C compiler (cc) for the ground-truth server")
        subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    return program


class Served(NamedTuple):
    """What the server did for one request, CLOCK_MONOTONIC nanoseconds."""

    received: int
    """When the kernel had the request."""
    before: NDArray[np.int64]
    """Just before each token's send."""
    after: NDArray[np.int64]


class Truth:
    """The server, pinned to a core, in a with statement; afterwards `log` holds what it did."""

    def __init__(self, core: int, *, ttft_s: float, itl_s: float) -> None:
        self.core, self.ttft_s, self.itl_s = core, ttft_s, itl_s
        self.log: dict[int, Served] = {}
        """By serial number, in the order of arrival."""

    def __enter__(self) -> Self:
        handle, self._path = tempfile.mkstemp()
        os.close(handle)
        times = [f"{s * 1e6:.0f}" for s in (self.ttft_s, self.itl_s)]
        self.process = subprocess.Popen(
            ["taskset", "-c", str(self.core), str(compiled("truth")), "0", self._path, *times],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().strip()}"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        said = np.fromfile(self._path, np.int64)
        Path(self._path).unlink()
        at = 0
        while at < len(said):
            serial, received, count = said[at : at + 3].tolist()
            times = said[at + 3 : at + 3 + 2 * count]
            self.log[serial] = Served(received, times[::2], times[1::2])
            at += 3 + 2 * count
