"""`python -m servescope`."""

from servescope.cli import main

if __name__ == "__main__":  # processes that share the work import it, too
    main()
