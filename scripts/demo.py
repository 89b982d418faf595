"""`make demo`: serve SmolLM2-135M with llama.cpp on loopback and measure it."""

import subprocess
import sys

from servescope.engines import llamacpp

OPTIONS = ["--load", "users:4", "--requests", "24", "--input-tokens", "64", "--output-tokens", "32"]


def main() -> int:
    """Start the server, measure it, end it; the exit status is that of `servescope run`."""
    print("demo: llama.cpp serves SmolLM2-135M-Instruct on loopback (about half a minute)")
    with llamacpp.started(llamacpp.SMOLLM2, slots=4, context=4096, alias="SmolLM2-135M") as url:
        command = ["run", url, *OPTIONS]
        print(f"demo: servescope {' '.join(command)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "servescope", *command], check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
