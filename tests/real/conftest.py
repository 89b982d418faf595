"""Real engines, started once a session on loopback; loaded for the tests in this folder alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from servescope.engines import llamacpp, vllm
from tests.support import tiny_model as tiny
from tests.support.tiny_model import TinyModel


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """The tiny random Llama, as a Hugging Face directory and as a GGUF."""
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def llama_server(tiny_model: TinyModel) -> Iterator[str]:
    """The base URL of llama.cpp with the tiny model, named `tiny`, on one thread and 8 slots."""
    with llamacpp.started(tiny_model.gguf, threads=1, slots=8, alias="tiny") as url:
        yield url


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The interpreter of the environment that has vLLM."""
    folder = os.environ.get("SERVESCOPE_VLLM_VENV")
    if not folder:
        pytest.skip("SERVESCOPE_VLLM_VENV names no environment with vLLM (make test-vllm)")
    return Path(folder, "bin", "python")


@pytest.fixture(scope="session")
def vllm_server(vllm_python: Path, tiny_model: TinyModel) -> Iterator[str]:
    """The base URL of vLLM with the tiny model, named `tiny`, with room for 16 requests at once."""
    with vllm.started(vllm_python, tiny_model.huggingface, alias="tiny") as url:
        yield url
