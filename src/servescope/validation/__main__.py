"""`python -m servescope.validation [PAGE]`: print the tables; with a page, bring its tables and the
error bars of `servescope plan` up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from servescope.validation import error_bars, run
from servescope.validation.table import text, write


def main() -> None:
    """All of it."""
    cells = run()
    sys.stdout.write(text(cells))
    for page in sys.argv[1:]:
        write(Path(page), cells)
        error_bars.write(cells)


if __name__ == "__main__":
    main()
