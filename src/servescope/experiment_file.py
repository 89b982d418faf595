"""Experiment files: the options of a trial by name, as YAML, TOML or JSON.

A file is data: no templates, no expressions, no tags that make objects. Keys that come twice and
files that grow when read (YAML's aliases) are refused.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from servescope.errors import BadInput

SUFFIXES = (".yaml", ".yml", ".toml", ".json")
MOST_BYTES = 1 << 20


def is_file(word: str) -> bool:
    """Whether a word on the command line names an experiment file, there or not."""
    is_target = "://" in word or word.startswith("sim:")  # such as sim:vllm?calibration=fit.toml
    return not is_target and word.lower().endswith(SUFFIXES)


def read_file(path: str) -> dict[str, Any]:
    """What an experiment file declares. Raises BadInput naming the place of a fault."""
    if Path(path).exists() and not Path(path).is_file():
        raise BadInput("FILE", path, "want a plain file")
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise BadInput("FILE", path, "want an experiment file of at most 1 MiB")
        text = content.decode("utf-8-sig")
        found = _parse(text, Path(path).suffix.lower())
    except OSError as error:
        raise BadInput("FILE", path, f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # every decoder's own error is one of these
        raise BadInput("FILE", path, " ".join(str(error).split())) from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise BadInput("FILE", path, "want names of options with their values")
    return found


def _parse(text: str, suffix: str) -> Any:  # noqa: ANN401 (whatever the file holds)
    if suffix == ".toml":
        return tomllib.loads(text)
    if suffix == ".json":
        return json.loads(text, object_pairs_hook=_once)
    return _yaml(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError for a key that comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} comes twice")
    return found


def _yaml(text: str) -> Any:  # noqa: ANN401 (whatever the file holds)
    import yaml  # noqa: PLC0415 (for those who write YAML)

    class Loader(yaml.SafeLoader):
        """Plain values alone, no aliases, no key twice."""

        def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401 (nodes of YAML)
            if self.check_event(yaml.AliasEvent):
                raise ValueError("want no aliases (*name)")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: ANN401
            seen: set[str] = set()
            for key, _ in node.value:
                if key.id != "scalar":
                    raise ValueError(f"want names, line {key.start_mark.line + 1}")
                if key.value in seen:
                    raise ValueError(f"{key.value} comes twice, line {key.start_mark.line + 1}")
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)  # noqa: S506 (a safe loader, made stricter)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
