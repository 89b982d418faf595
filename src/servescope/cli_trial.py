"""Options and files to trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servescope.errors import BadInput

if TYPE_CHECKING:
    from servescope.experiment import Trial


def declared(targets: tuple[str, ...], **options: Any) -> list[Trial]:  # noqa: ANN401
    """The trials that files, or targets, and options together declare.

    What is on the command line wins. Several files are a trial each, named like its file. Raises
    BadInput.
    """
    from servescope.experiment_file import is_file, read_file  # noqa: PLC0415

    files = [target for target in targets if is_file(target)]
    if not files:
        return [_trial({"target": list(targets)}, options)]
    if len(files) < len(targets):
        raise BadInput("TARGET", ", ".join(targets), "want experiment files alone, or URLs alone")
    if len(files) == 1:
        return [_trial(read_file(files[0]), options)]
    if options["name"] is not None:
        raise BadInput("--name", options["name"], "want none: each run is named like its file")
    return [_one_of_several(file, options) for file in files]


def _one_of_several(file: str, options: dict[str, Any]) -> Trial:
    from servescope.experiment_file import read_file  # noqa: PLC0415

    try:
        return _trial({"name": Path(file).stem} | read_file(file), options)
    except BadInput as error:
        if file in str(error):
            raise
        raise BadInput(f"{file}: {error.field}", error.value, error.want) from None


def _trial(declared: dict[str, Any], options: dict[str, Any]) -> Trial:
    from servescope.experiment import declare  # noqa: PLC0415

    given = {name: value for name, value in options.items() if _given(name)}
    rate, cap = given.pop("request_rate", None), given.get("max_concurrency")
    if "load" in given and rate is not None:
        raise BadInput("--request-rate", rate, "want either --load or --request-rate")
    if "load" not in given and "load" not in declared and (rate or cap) is not None:
        given["load"], given["max_concurrency"] = _load(rate, cap)
    if "goodput" in given:
        pairs = (text.replace(",", " ").split() for text in given["goodput"])
        given["goodput"] = [pair for texts in pairs for pair in texts]
    if given.pop("no_stream", False):
        given["stream"] = False
    if given.pop("no_keep_alive", False):
        given["keep_alive"] = False
    if "extra_body" in given:
        given["extra_body"] = _json_object("--extra-body", given["extra_body"])
    if "repeat_cache" in given:
        given["repeat_cache"] = given["repeat_cache"].split(",")
    return declare(declared | given)


def _given(name: str) -> bool:
    """Whether an option was said on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _load(rate: str | None, cap: int | None) -> tuple[list[str], int | None]:
    """The load that vLLM's spellings mean, and the cap that is left."""
    if rate is not None and rate != "inf":
        return [f"poisson:{rate}"], cap
    if cap is not None:
        return [f"users:{cap}"], None
    return (["burst"], None) if rate == "inf" else ([], None)


def _json_object(field: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadInput(field, text, f"want a JSON object ({error})") from None
    if not isinstance(found, dict):
        raise BadInput(field, text, 'want a JSON object such as {"temperature": 0}')
    return found
