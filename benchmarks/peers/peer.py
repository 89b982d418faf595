"""What a peer is: a load client of the field, how it is asked for a load, and what it then says."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PROMPT_TOKENS = 32
MODEL = "null"
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
SIZE = """
import importlib.metadata, json, pathlib, re, sys
from pip._vendor.packaging.requirements import Requirement
name, _, extra = sys.argv[1].partition("[")
left, seen, files = [(name, extra.rstrip("]"))], set(), set()
while left:
    name, extra = left.pop()
    name = re.sub("[-_.]+", "-", name).lower()
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        continue
    if (name, extra) in seen:
        continue
    seen.add((name, extra))
    files.update(str(file.locate()) for file in found.files or [])
    for text in found.requires or []:
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
            left += [(wanted.name, one) for one in ("", *wanted.extras)]
paths = {path.resolve() for path in map(pathlib.Path, files) if path.is_file()}
print(json.dumps([importlib.metadata.version(re.sub(r"\\[.*", "", sys.argv[1])),
                  sum(path.stat().st_size for path in paths)]))
"""
"""Run by a peer's own interpreter: prints its version and its installed bytes."""


class Row(NamedTuple):
    """What a peer says of one request that succeeded."""

    start_s: float | None
    """On the peer's `clock`; None where it keeps none."""
    ttft_s: float
    itl_s: list[float] | None
    """Gaps between tokens; None where it keeps none."""
    serial: int | None
    """The prompt's tokens as the server said them, by which a row finds its request; None where
    the peer keeps its own count of them."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a peer is asked to do: `streams` at a time, or a Poisson process of `rate` a second."""

    url: str
    """The server's base URL, without /v1."""
    requests: int
    tokens: int
    """Output tokens of each request."""
    streams: int | None = None
    rate: float | None = None


class Skipped(Exception):
    """A peer that cannot be had, or not for this load; says why."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A load client of the field."""

    name: str
    distribution: str
    """As pip would install it."""
    program: str
    """The path of its program from the repository's root."""
    clock: Literal["monotonic", "epoch", "run"] | None
    """What `start_s` of its rows is read from; run: since its own start; None: it keeps none."""
    poisson: bool = True
    arguments: Callable[[Load, Path], list[str]]
    """Of the program, for a load and a scratch directory; it may write files there."""
    read: Callable[[Path], list[Row]]
    """The rows, from what it left in the scratch directory."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Its program; the environments are where the tests have them too."""
        peers, vllm = (
            Path(os.environ.get(name) or ROOT / default).absolute()
            for name, default in (
                ("SERVESCOPE_PEERS_VENV", ".venv-peers"),
                ("SERVESCOPE_VLLM_VENV", ".venv-vllm"),
            )
        )
        where, _, rest = self.program.partition("/")
        return {"peers": peers, "vllm": vllm}[where] / rest if where else Path(self.program)

    def command(self, load: Load, scratch: Path) -> list[str]:
        """The command line that puts `load` on its server; run it with `scratch` as directory.

        Raises Skipped where the peer is not installed or has no such load.
        """
        if not self.path.is_file():
            raise Skipped(f"{self.path} is not there: scripts/install-peers.sh installs it")
        if load.rate is not None and not self.poisson:
            raise Skipped("it has no open loop")
        scratch.mkdir(parents=True, exist_ok=True)
        return [str(self.path), *self.arguments(load, scratch)]

    def environ(self) -> dict[str, str]:
        """Its environment variables, all of them."""
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, **OFFLINE, **self.environment}

    def installed(self) -> tuple[str, int]:
        """Its version, and the bytes of its own files and those of all that it requires."""
        python = self.path.with_name("python")
        if not python.exists():  # a program by itself
            words = [str(self.path), "--version"]
            said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            return said.split()[-1], self.path.stat().st_size
        words = [str(python), "-c", SIZE, self.distribution]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        version, size_bytes = json.loads(said)
        return version, size_bytes


def tokenizer(scratch: Path) -> str:
    """Write a tokenizer of 2500 made-up words, a token each; returns its directory."""
    folder = scratch / "tokenizer"
    folder.mkdir(exist_ok=True)
    syllables = [first + second for first in "bdfklmnprs" for second in "aeiou"]
    words = ["<unk>", *(first + second for first in syllables for second in syllables)]
    unknown = {"id": 0, "content": "<unk>", "special": True, "normalized": False}
    unknown |= {"single_word": False, "lstrip": False, "rstrip": False}
    vocabulary = {word: number for number, word in enumerate(words)}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [unknown],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }
    settings |= {"eos_token": "<unk>", "pad_token": "<unk>", "model_max_length": 100_000}
    settings["chat_template"] = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)
