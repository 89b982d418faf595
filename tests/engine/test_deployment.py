"""What settings leave open follows from the model, the GPU and the engine."""

import pytest

from servescope.engine.config import parse
from servescope.engine.deployment import deploy, settle
from servescope.errors import BadInput


def on(text):
    return deploy(parse("TARGET", f"sim:{text}"))


@pytest.mark.parametrize(
    ("target", "sequences", "tokens"),
    [
        ("vllm?model=llama-3.1-8b&gpu=h100-sxm-80gb", 1024, 8192),
        ("vllm?model=llama-3.1-8b&gpu=a100-sxm-80gb", 256, 2048),
        ("vllm?model=llama-3.1-8b&gpu=l40s", 256, 2048),
        ("vllm?model=llama-3.1-8b&gpu=l40s&max_num_seqs=7&max_num_batched_tokens=99", 7, 99),
        ("sglang?model=llama-3.1-8b&gpu=rtx-4090", 2048, 2048),
        ("sglang?model=llama-3.1-8b&gpu=a100-sxm-80gb", 2048, 8192),
        ("vllm-0.1?model=llama-2-13b&gpu=h100-sxm-80gb", 256, 2560),
    ],
)
def test_limits_that_are_left_open_are_those_the_engine_takes_on_that_gpu(
    target, sequences, tokens
):
    engine = on(target).engine()
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (sequences, tokens)


def test_weights_are_in_the_format_that_the_model_is_stored_in():
    v3 = "vllm?model=deepseek-v3&gpu=b200&tp=8"
    assert settle(parse("TARGET", f"sim:{v3}")).dtype == "fp8"
    assert on(v3).kv_tokens == on(f"{v3}&dtype=fp8").kv_tokens
    assert on("vllm?model=qwen2-7b&gpu=l40s").kv_tokens == (
        on("vllm?model=qwen2-7b&gpu=l40s&dtype=bf16").kv_tokens
    )


@pytest.mark.parametrize("name", ["awq", "gptq", "w4a16"])
def test_int4_has_the_names_that_its_makers_gave_it(name):
    target = "vllm?model=qwen2-72b&gpu=rtx-4090&tp=4&max_model_len=4096&dtype="
    assert on(target + name).kv_tokens == on(target + "int4").kv_tokens


@pytest.mark.parametrize(
    ("target", "want"),
    [
        ("vllm?model=qwen2-7b&gpu=l40s&dtype=fp7", "dtype: 'fp7': want one of auto, fp16"),
        ("vllm?router=prefix", "router: 'prefix': want one of round_robin"),
        ("vllm?kv_tokens=15", "kv_tokens: '15': want a block at least: 16"),
        ("vllm?tp=2", "tp: '2': want it with a gpu"),
        ("vllm?dtype=fp7", "dtype: 'fp7': want it with a gpu"),
        ("vllm?model=qwen2-72b&gpu=l40s", "gpu: 'l40s': want more memory for qwen2-72b"),
    ],
)
def test_what_cannot_be_deployed_is_refused_by_name(target, want):
    with pytest.raises(BadInput, match=want):
        on(target)


def test_the_share_of_the_memory_is_what_each_engine_takes_it_for():
    target = "?model=qwen2-7b&gpu=rtx-4090&max_num_seqs=64&max_num_batched_tokens=512&dtype=int4"
    full, half = ("&memory_utilization=1", "&memory_utilization=0.5")
    whole = {
        name: on(name + target + full).kv_tokens for name in ("vllm", "sglang", "tensorrt-llm")
    }
    # All of it leaves the same, but SGLang has its activations beside its share.
    assert whole["sglang"] > whole["vllm"] == pytest.approx(whole["tensorrt-llm"], abs=32)
    assert on("tensorrt-llm" + target + half).kv_tokens == pytest.approx(
        whole["tensorrt-llm"] / 2, abs=32
    )
    assert on("vllm" + target + half).kv_tokens < 0.45 * whole["vllm"]
