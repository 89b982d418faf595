"""What settings leave open follows from the model, the GPU and the engine."""

import msgspec
import pytest

from servescope.engine.config import parse
from servescope.engine.deployment import deploy, hardware, settle
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
        # vLLM's sequences left open are no more than the tokens of a step.
        ("vllm?model=llama-3.1-8b&gpu=h100&max_num_batched_tokens=512", 512, 512),
        ("vllm?max_num_batched_tokens=64", 64, 64),
        ("sglang?max_num_batched_tokens=64", 2048, 64),
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
        ("vllm?kv_tokens=8&block_tokens=9", "kv_tokens: '8': want a block at least: 9"),
        ("vllm?model=qwen2-7b&gpu=l40s&kv_tokens=577000", "gpu: .* not kv_tokens=577000"),
        ("vllm?model=qwen2-72b&gpu=l40s&kv_tokens=16", "gpu: 'l40s': want more memory"),
        ("llamacpp?model=qwen2-7b&gpu=l40s", "engine: 'llamacpp': want one of vllm, "),
        ("vllm?model=qwen2-7b&gpu=v100&dtype=bf16", "dtype: 'bf16': want one of fp16, int8, int4"),
        ("vllm?model=qwen2-7b&gpu=v100&dtype=fp8", "dtype: 'fp8': want one of .* on v100-32gb"),
        ("vllm?model=deepseek-v3&gpu=v100&tp=8", "dtype: 'auto': want one of .* kernels for fp8"),
        ("vllm?tp=2", "tp: '2': want it with a gpu"),
        ("vllm?network_bytes_per_s=1e9", "network_bytes_per_s: .* want it with a gpu"),
        ("vllm?transfer_bytes_per_s=1e9", "transfer_bytes_per_s: .* want it with a gpu"),
        ("vllm?gpu=h100", "model: '': want a model with a gpu"),
        ("tgi?prefill_replicas=1", "'1': want one of sglang, tensorrt-llm, vllm, on a gpu"),
        ("vllm?max_num_seqs=65&max_num_batched_tokens=64", "max_num_batched_tokens: '64': want 65"),
        ("vllm?model=qwen2-7b&gpu=l40s&max_num_seqs=4096", "batched_tokens: '2048': want 4096"),
        ("vllm?model=qwen2-7b&gpu=l40s&memory_utilization=0.3", "with memory_utilization=0.3 no"),
        ("vllm?dtype=fp7", "dtype: 'fp7': want it with a gpu"),
        ("vllm?model=qwen2-72b&gpu=l40s", "gpu: 'l40s': want more memory for qwen2-72b"),
    ],
)
def test_what_cannot_be_deployed_is_refused_by_name(target, want):
    with pytest.raises(BadInput, match=want):
        on(target)


def test_a_capacity_that_an_engine_reports_may_be_more_than_is_reckoned():
    target = "vllm?model=llama-3.1-8b&gpu=rtx-4090"
    reported = on(target).kv_tokens + 5000
    assert on(f"{target}&kv_tokens={reported}").kv_tokens == reported // 16 * 16


def test_a_gpu_with_more_memory_than_the_catalogues_holds_more():
    config = parse("TARGET", "sim:tgi?model=llama-3.1-8b&gpu=rtx-4090")
    more = msgspec.structs.replace(config, kv_tokens=round(1.2 * deploy(config).kv_tokens))
    with pytest.raises(BadInput, match="kv_tokens"):
        deploy(more)
    gpu, overheads = hardware(config)
    larger = msgspec.structs.replace(gpu, memory_bytes=2 * gpu.memory_bytes)
    assert deploy(more, (larger, overheads)).kv_tokens == more.kv_tokens // 16 * 16


def test_a_model_stored_in_bf16_is_served_in_fp16_where_there_is_no_bf16():
    assert settle(parse("TARGET", "sim:vllm?model=qwen2-7b&gpu=v100")).dtype == "fp16"
    assert settle(parse("TARGET", "sim:vllm?model=qwen2-7b&gpu=l40s")).dtype == "bf16"


@pytest.mark.parametrize(
    ("engine", "share"), [("vllm", "0.9"), ("sglang", "0.88"), ("tgi-1.0", "1"), ("tgi", "1.0")]
)
def test_an_engine_takes_the_share_of_the_memory_that_is_its_own_default(engine, share):
    target = f"{engine}?model=qwen2-7b&gpu=l40s"
    own = on(target).kv_tokens
    assert own == on(f"{target}&memory_utilization={share}").kv_tokens
    assert own > on(f"{target}&memory_utilization=0.8").kv_tokens


CALIBRATED = """
schema = 1
[settings]
engine = "vllm"
model = "qwen2-7b"
gpu = "l40s"
[constants]
step_s = 3e-3
decode_attention = 0.5
"""


def calibration(folder, text):
    path = folder / "server.toml"
    path.write_text(text)
    return f"vllm?calibration={path}"


def test_a_calibrations_constants_stand_for_the_catalogues(tmp_path):
    target = calibration(tmp_path, CALIBRATED)
    gpu, overheads = hardware(parse("TARGET", f"sim:{target}&gpu=l40s"))
    assert (gpu.efficiency.decode_attention, overheads.step_s) == (0.5, 3e-3)
    assert overheads.decode_attention == 1  # another constant of the same name
    assert on(target).kv_tokens == on("vllm?model=qwen2-7b&gpu=l40s").kv_tokens


@pytest.mark.parametrize(
    ("said", "instead", "want"),
    [
        ("step_s", "step", "want no constant step: "),
        ("step_s", "one_kernel", "want no constant one_kernel: "),
        ("step_s", "request_s", "want no constant request_s: "),
        ("3e-3", "-1", "want step_s above 0"),
        ('gpu = "l40s"', "", "want no constant step_s: none without a gpu"),
        ("model =", "modell =", "modell"),
        ('"l40s"', "8", "gpu"),
    ],
)
def test_a_calibration_with_something_that_nothing_heeds_is_refused(tmp_path, said, instead, want):
    with pytest.raises(BadInput, match=rf"^calibration: .*{want}"):
        on(calibration(tmp_path, CALIBRATED.replace(said, instead, 1)))


ON_NO_GPU = """
schema = 1
[settings]
model = "mine"
step = "7ms"
"""


@pytest.mark.parametrize(
    ("text", "settings", "want"),
    [
        (CALIBRATED, "step=5ms", "want no step with a gpu"),
        (CALIBRATED, "gpu=h100", "want gpu l40s, to which it was fitted, not h100"),
        (ON_NO_GPU, "gpu=h100", "want no gpu: its costs were fitted without one"),
        (ON_NO_GPU, "model=qwen2-7b", "want no other model than that of its runs, not qwen2-7b"),
    ],
)
def test_a_setting_that_contradicts_a_calibration_is_refused(tmp_path, text, settings, want):
    with pytest.raises(BadInput, match=want):
        on(f"{calibration(tmp_path, text)}&{settings}")


def test_the_gpu_of_a_calibration_has_all_its_names(tmp_path):
    target = calibration(tmp_path, CALIBRATED)
    config = parse("TARGET", f"sim:{target}&gpu=NVIDIA%20L40S")
    assert settle(config) == settle(parse("TARGET", f"sim:{target}"))
    assert on(f"{calibration(tmp_path, ON_NO_GPU)}&model=mine").model == "mine"


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
