"""The simulated server in a process of its own, for tests and for programs that want an engine."""

from __future__ import annotations

import subprocess
import sys
from typing import Self

from servescope.engine.config import EngineConfig
from servescope.errors import ServescopeError

_PATIENCE_S = 10.0


class Server:
    """`servescope serve` on loopback while the with statement lasts; it ends with this process."""

    url: str
    """Where it answers."""

    def __init__(self, config: EngineConfig, port: int = 0) -> None:
        self.config, self._port = config, port

    def __enter__(self) -> Self:
        """Start it; it answers from here on. Raises ServescopeError where it cannot listen."""
        words = ["-P", "-m", "servescope.serve", str(self.config), str(self._port)]
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.PIPE,  # it ends when this pipe does, however we end
            stdout=subprocess.PIPE,
            start_new_session=True,  # ctrl-C is for us
            text=True,
        )
        assert self.process.stdout is not None  # noqa: S101 (for the type checker)
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            self.__exit__()
            raise ServescopeError("the simulated server did not start; it has said why")
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
