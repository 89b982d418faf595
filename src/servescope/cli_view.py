"""`servescope view`: many runs in a browser."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("directory", default="runs", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Another one needs a token.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8008, show_default=True, help="0: any."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the token that browsers are asked for, as a password. Or set "
    "SERVESCOPE_SERVE_TOKEN.",
)
@click.option("--quiet", is_flag=True, help="Only the URL on standard output.")
def view(directory: Path, host: str, port: int, token_file: Path | None, *, quiet: bool) -> None:
    """Browse the runs under DIRECTORY: list, filter, open their reports, compare them.

    It serves pages on loopback until ctrl-C; who else has an account on this machine can read them
    too, unless there is a token.
    """
    from servescope.report.browse import Browser  # noqa: PLC0415 (--help need not wait for it)
    from servescope.serve import browse, listen  # noqa: PLC0415

    browser = Browser(directory)

    def ready(url: str) -> None:
        click.echo(url if quiet else f"the runs under {directory} on {url} (ctrl-C ends)")

    token = listen.token_from(token_file)
    browse.run(browser.respond, host=host, port=port, token=token, ready=ready)
