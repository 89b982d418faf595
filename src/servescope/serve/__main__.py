"""What `Server` starts: `python -m servescope.serve SIM PORT`; it ends when its input does."""

from __future__ import annotations

import sys

from servescope.engine.config import parse
from servescope.errors import ServescopeError
from servescope.serve.listen import run


def _ready(url: str, _paths: list[str]) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


def main(sim: str, port: str) -> None:
    """Serve on loopback."""
    try:
        run(parse("SIM", sim), port=int(port), ready=_ready, until_closed=sys.stdin.fileno())
    except ServescopeError as error:
        sys.exit(f"servescope: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
