"""`python -m servescope.validation [PAGE]`: print the tables, and bring a page's up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from servescope.validation import run, vllm_traces
from servescope.validation.table import markdown, write


def main() -> None:
    """All of it."""
    cells = run()
    told = (vllm_traces.NOTHING_FITTED, vllm_traces.ONE_CONSTANT)
    parts = {
        "tables": [cell for cell in cells if cell.source not in told],
        "traces": [cell for cell in cells if cell.source in told],
    }
    for part, own in parts.items():
        if not own:
            missing = f"{part}: left out, {vllm_traces.VARIABLE} names no folder with them\n"
            sys.stdout.write(missing)
            continue
        table = markdown(own)
        sys.stdout.write(table + "\n")
        for page in sys.argv[1:]:
            write(Path(page), part, table)


if __name__ == "__main__":
    main()
