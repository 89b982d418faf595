#!/usr/bin/env bash
# Vidur, which `benchmarks/simulate.py --vidur VENV/bin/python` is compared with, in a virtual
# environment of its own: install-vidur.sh VENV
# Of its repository only the code and what it measured of Llama-2 7B on an A100 is fetched.
set -euo pipefail
venv=$1
commit=7d47513363ec447a741ac5e47241580b47724fbf  # of November 2024, the last one
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip --disable-pip-version-check --quiet install numpy==2.4.6 pandas==3.1.1 \
  scikit-learn==1.9.1 wandb==0.31.0 kaleido==1.5.0 ddsketch==3.0.1 plotly_express==0.4.1 \
  matplotlib==3.11.2 seaborn==0.13.2 fasteners==0.20
test -d "$venv/vidur" || git clone --quiet --no-checkout --filter=blob:none \
  https://github.com/microsoft/vidur "$venv/vidur"
git -C "$venv/vidur" sparse-checkout set vidur data/profiling/compute/a100/meta-llama/Llama-2-7b-hf
git -C "$venv/vidur" checkout --quiet "$commit"
