#!/usr/bin/env bash
# The field's load clients, in virtual environments of their own: install-peers.sh VENV
# Where pip's index has no CPU build of torch under this version, point pip at PyTorch's own CPU
# index first (PIP_EXTRA_INDEX_URL); a CUDA build does as well, and takes 4 GB more.
set -euo pipefail
venv=$1
"${PYTHON:-python3}" -m venv "$venv"
"${PYTHON:-python3}" -m venv "$venv/evalscope"  # it and the others want different datasets
pip() { "$1/bin/python" -m pip --disable-pip-version-check --quiet install "${@:2}"; }
pip "$venv" torch==2.13.0  # GuideLLM loads its data with it
pip "$venv" guidellm==0.8.1 aiperf==0.13.0 openai==3.52.0 anthropic==2.11.0
pip "$venv/evalscope" 'evalscope[perf]==1.14.1'
