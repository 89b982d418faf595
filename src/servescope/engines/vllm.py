"""vLLM on the CPU, installed in a virtual environment of its own (scripts/install-vllm.sh).

With dummy weights it shows what no mock can: a real scheduler's queue, preemptions, a full KV
cache and the server's own view of each request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from servescope.engines import _child
from servescope.errors import BadInput

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # A tiny model gains nothing from more threads and loses much to their spinning.
    "OMP_NUM_THREADS": "1",
}
"""What vLLM is told through its environment."""


@contextlib.contextmanager
def started(
    python: Path,
    model_dir: Path,
    *,
    alias: str = "tiny",
    max_model_len: int = 4096,
    max_num_seqs: int = 16,
    load_format: str = "dummy",
    extra: Sequence[str] = (),
    log: Path | None = None,
    ready_s: float = 180.0,
) -> Iterator[str]:
    """Serve the Hugging Face directory `model_dir` with the vLLM of `python`; yield its base URL.

    `extra` are further flags of `vllm serve`, such as `--num-gpu-blocks-override=16`, which makes
    the KV cache small enough to fill.
    """
    if not python.is_file():
        raise BadInput("python", python, "want the interpreter of an environment that has vLLM")
    port = _child.free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(model_dir)]
    command += [f"--load-format={load_format}", f"--served-model-name={alias}"]
    command += [f"--max-model-len={max_model_len}", f"--max-num-seqs={max_num_seqs}"]
    command += ["--host=127.0.0.1", f"--port={port}", "--enforce-eager"]
    command += ["--enable-per-request-metrics", "--enable-prompt-tokens-details"]
    command += ["--disable-uvicorn-access-log", *extra]
    with _child.running(
        "vLLM",
        _child.dying_with_parent(command),
        lambda _log: url if _child.answers(f"{url}/health") else None,
        environment=ENVIRONMENT,
        log=log,
        ready_s=ready_s,
    ):
        yield url
