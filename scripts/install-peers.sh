#!/usr/bin/env bash
# The field's load clients, in a virtual environment of their own: install-peers.sh VENV
# Where pip's index has no CPU build of torch under this version, point pip at PyTorch's own CPU
# index first (PIP_EXTRA_INDEX_URL); with a CUDA build all works as well and takes 5 GB more.
set -euo pipefail
venv=$1
"${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install torch==2.13.0  # GuideLLM loads its data with it
pip install guidellm==0.8.1 aiperf==0.13.0 openai==3.52.0 anthropic==2.11.0
