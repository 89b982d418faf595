#!/usr/bin/env bash
# The result files of tests/importers/fixtures, written by the real tools: record-imports.sh OUT
# Each puts a small load on `servescope serve`. servescope puts the same on it: its runs, under
# OUT/servescope, are what the tools' figures are held against. Needs .venv-vllm and .venv-peers
# (see the Makefile). What names this machine in the files is replaced; the large are compressed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1" && cd "$1"
servescope=$root/.venv/bin/servescope
peers=$root/.venv-peers
export HF_HUB_OFFLINE=1 DO_NOT_TRACK=1 VLLM_NO_USAGE_STATS=1 VLLM_TARGET_DEVICE=cpu
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY

out=$PWD
(cd "$root" && .venv/bin/python -c \
  'import sys, pathlib; from tests.support import tiny_model
tiny_model.make(pathlib.Path(sys.argv[1]))' "$out")
tokenizer=./hf

serve() { # SIM: sets url
  "$servescope" serve "$1" --port 0 --quiet > url &
  servers+=($!)
  until [ -s url ]; do sleep 0.1; done
  url=$(head -1 url) && rm url
}
servers=()
trap 'kill "${servers[@]}"' EXIT
serve 'sim:vllm?step=5ms&model=tiny&max_num_seqs=2&max_waiting=1'
full=$url
serve 'sim:vllm?step=5ms&model=tiny'

for users in 2 4; do
  "$servescope" run "$url" --model tiny --requests 24 --input-tokens 32 --output-tokens 24 \
    --load "users:$users" --protocol openai-completions --out servescope --name "users-$users"
done

bench() {
  "$@" --base-url "$at" --model tiny --tokenizer "$tokenizer" --dataset-name random \
    --random-input-len 32 --random-output-len 24 --num-prompts 24 --ignore-eos --save-result
}
vllm() { bench "$root/.venv-vllm/bin/vllm" bench serve "$@"; }
completions=(--backend openai --endpoint /v1/completions)
chat=(--backend openai-chat --endpoint /v1/chat/completions)
at=$url
vllm "${completions[@]}" --max-concurrency 4 --result-filename vllm.json
vllm "${completions[@]}" --max-concurrency 4 --save-detailed --result-filename vllm-detailed.json \
  --percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,90,95,99
vllm "${chat[@]}" --max-concurrency 4 --save-detailed --result-filename vllm-chat.json
for users in 2 4; do
  vllm "${completions[@]}" --max-concurrency $users --append-result \
    --result-filename vllm-appended.json
done
bench "$peers/vllm-rs/vllm-rs" bench serve "${completions[@]}" --max-concurrency 4 \
  --save-detailed --result-filename vllm-rust.json
at=$full
vllm "${completions[@]}" --save-detailed --result-filename vllm-failures.json

guidellm() { # REQUESTS ...
  "$peers/bin/guidellm" run --disable-console-interactive \
    --backend "kind=openai_http,target=$url,model=tiny,request_format=/v1/completions" \
    --constraint "kind=max_requests,count=$1" --tokenizer "kind=huggingface_auto,model=$tokenizer" \
    --data kind=synthetic_text,prompt_tokens=32,output_tokens=24 "${@:2}"
}
guidellm 24 --profile kind=concurrent --override profile.streams 2,4 \
  --output kind=json,path=guidellm.json
guidellm 8 --profile kind=poisson,rate=40 --output kind=yaml,path=guidellm.yaml

aiperf() {
  # Told to be offline it takes no directory for a tokenizer.
  HF_HUB_OFFLINE='' HF_ENDPOINT=http://127.0.0.1:1 "$peers/bin/aiperf" profile --ui none \
    --model tiny --tokenizer "$tokenizer" --endpoint-type completions --streaming \
    --request-count 24 --synthetic-input-tokens-mean 32 --output-tokens-mean 24 \
    --extra-inputs ignore_eos:true --use-server-token-count "$@"
}
aiperf --url "$url" --concurrency 4 --artifact-dir aiperf
aiperf --url "$full" --concurrency 24 --artifact-dir aiperf-failures

sglang() { # MODULE ...
  "$peers/sglang/bin/python" -m "sglang.$1" --base-url "$url" --model tiny \
    --tokenizer "$tokenizer" --dataset-name random-ids --random-input-len 32 \
    --random-output-len 24 --random-range-ratio 1 --num-prompts 24 "${@:2}"
}
for users in 2 4; do
  sglang bench_serving --backend vllm --max-concurrency $users --output-file sglang.jsonl
done
sglang bench_serving --backend vllm --max-concurrency 4 --output-details \
  --output-file sglang-details.jsonl
sglang benchmark.rust_client --backend vllm --max-concurrency 4 --output-details \
  --output-file sglang-rust.jsonl

cat > locustfile.py <<'PYTHON'
from locust import FastHttpUser, constant, task

BODY = {"model": "tiny", "prompt": "word " * 32, "max_tokens": 24, "ignore_eos": True}


class Reader(FastHttpUser):
    wait_time = constant(0)

    @task
    def complete(self):
        self.client.post("/v1/completions", json=BODY)
PYTHON
"$peers/locust/bin/locust" --locustfile locustfile.py --headless --host "$url" --users 4 \
  --spawn-rate 4 --run-time 3s --csv locust --csv-full-history --only-summary

mkdir -p fixtures && cd fixtures
cp ../vllm*.json ../sglang*.jsonl ../guidellm.* ../locust_stats*.csv .
for run in aiperf aiperf-failures; do
  mkdir -p $run && cp ../$run/profile_export_aiperf.json ../$run/profile_export.jsonl $run
done
find . -type f -exec sed -i -e "s|$out/||g" -e "s|Linux-[^\"' ]*|Linux|g" {} +
gzip --best --no-name --force guidellm.*
