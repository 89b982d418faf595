#!/usr/bin/env bash
# The field's load clients, in virtual environments of their own: install-peers.sh VENV
# Where pip's index has no CPU build of torch under this version, point pip at PyTorch's own CPU
# index first (PIP_EXTRA_INDEX_URL); a CUDA build does as well, and takes 4 GB more.
# inference-perf needs Python 3.12: PYTHON312, or the python3.12 of PATH; else it is left out.
set -euo pipefail
venv=$1
pip() { "$1/bin/python" -m pip --disable-pip-version-check --quiet install "${@:2}"; }
environment() { "${2:-${PYTHON:-python3}}" -m venv "$1"; }

environment "$venv"
pip "$venv" torch==2.13.0  # GuideLLM loads its data with it
pip "$venv" guidellm==0.8.1 aiperf==0.13.0 openai==3.52.0 anthropic==2.11.0

environment "$venv/evalscope"  # it and the others want different datasets
pip "$venv/evalscope" 'evalscope[perf]==1.14.1'

environment "$venv/locust"
pip "$venv/locust" locust==2.47.0

if "${PYTHON312:-python3.12}" -c '' 2> /dev/null; then
  environment "$venv/inference-perf" "${PYTHON312:-python3.12}"
  pip "$venv/inference-perf" inference-perf==0.7.0
else
  echo "inference-perf is left out: want Python 3.12 (PYTHON312=/path/to/python3.12)" >&2
fi

# vLLM's client in Rust: one program of its wheel, which is all that it needs.
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"$venv/bin/python" -m pip --disable-pip-version-check --quiet download --no-deps \
  --dest "$wheels" vllm==0.33.0
mkdir -p "$venv/vllm-rs"
"$venv/bin/python" - "$wheels"/vllm-*.whl "$venv/vllm-rs/vllm-rs" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

wheel, program = sys.argv[1:]
Path(program).write_bytes(zipfile.ZipFile(wheel).read("vllm/vllm-rs"))
Path(program).chmod(0o755)
PYTHON

# SGLang's clients, in Python and Rust. Of SGLang's requirements what they import, no more: the
# rest is for GPUs, and 10 GB.
environment "$venv/sglang"
pip "$venv/sglang" torch==2.13.0 triton==3.6.0 transformers==5.19.0 apache-tvm-ffi==0.1.11 \
  sentencepiece==0.2.1 aiohttp datasets gguf ipython loguru msgspec numpy orjson pillow psutil \
  pybase64 pyzmq requests starlette tqdm
pip "$venv/sglang" --no-deps sglang==0.5.23 compressed-tensors==0.18.0
# They import torchvision too, whose builds for GPUs cannot be loaded beside this torch, and use
# nothing of it: one in which every name is a class does.
site=$("$venv/sglang/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo 'import no_torchvision' > "$site/no_torchvision.pth"
cat > "$site/no_torchvision.py" <<'PYTHON'
import importlib.machinery
import sys
import types


class Any(type):
    def __getattr__(cls, name):
        return named(name)


def named(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Any(name, (), {})


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, Finder, is_package=True)

    @staticmethod
    def create_module(spec):
        module = types.ModuleType(spec.name)
        module.__getattr__, module.__version__ = named, "0"
        return module

    @staticmethod
    def exec_module(module):
        pass


sys.meta_path.append(Finder)
PYTHON
