"""Step times agree with what bandwidths and peaks leave, and with themselves."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope import catalog
from servescope.catalog import Overheads
from servescope.engine import FS
from servescope.engine.costs import Network, Roofline, kv_tokens
from servescope.engine.lines import at
from servescope.errors import BadInput

ENGINES = catalog.names()["engines"]
SETUPS = [
    {"model": "llama-2-13b", "gpu": "a800-sxm-80gb"},
    {"model": "llama-2-70b", "gpu": "a100", "tp": 4, "nodes": 2},
    {"model": "llama-3.1-8b", "gpu": "h100", "weights": "fp8", "kv_dtype": "fp8"},
    {"model": "qwen2-72b", "gpu": "rtx-4090", "weights": "int4", "tp": 4, "pp": 2},
    {"model": "mixtral-8x7b", "gpu": "l40s", "tp": 4},
    {"model": "deepseek-v3", "gpu": "h200", "weights": "fp8", "tp": 8},
    {"model": "gpt-j-6b", "gpu": "v100-32gb"},
]


def made(engine="vllm", **setup):
    model, gpu = catalog.model(setup.pop("model")), catalog.gpu(setup.pop("gpu"))
    overheads = engine if isinstance(engine, Overheads) else catalog.engine(engine)
    return Roofline(model, gpu, overheads, **setup)


COSTS = [made(engine, **setup) for engine in ENGINES for setup in SETUPS]


def causal(tokens):
    return tokens * (tokens + 1) / 2


def test_decoding_alone_takes_as_long_as_reading_the_weights():
    model, gpu = catalog.model("llama-2-13b"), catalog.gpu("a800-sxm-80gb")
    reading = model.weight_bytes("fp16") / (gpu.hbm_bytes_per_s * gpu.efficiency.hbm)
    cost = made(Overheads(), model="llama-2-13b", gpu="a800-sxm-80gb")
    assert cost.duration_s(1, 1, 0, 256, 1) == pytest.approx(reading, rel=0.15)


def test_a_long_prefill_runs_near_the_reachable_peak():
    model, gpu = catalog.model("llama-2-13b"), catalog.gpu("a800-sxm-80gb")
    cost = made(Overheads(), model="llama-2-13b", gpu="a800-sxm-80gb")
    split = cost.parts(8192, 1, causal(8192), 0, 1).operators
    matrices = split["qkv"] + split["output"] + split["ffn"]
    reached = 2 * 8192 * (model.parameters - 2 * model.vocab * model.hidden) / matrices
    peak = gpu.flops_per_s["fp16"] * gpu.efficiency.compute
    assert 0.9 * peak < reached < peak


def test_two_gpus_halve_a_long_prefill_but_for_their_all_reduces():
    one = made(Overheads(), model="llama-2-13b", gpu="a800-sxm-80gb")
    two = made(Overheads(), model="llama-2-13b", gpu="a800-sxm-80gb", tp=2)
    step = (8192, 1, causal(8192), 0, 1)
    alone, shared = one.parts(*step).operators, two.parts(*step).operators
    for operator in ("qkv", "output", "ffn"):
        assert shared[operator] == pytest.approx(alone[operator] / 2, rel=0.02)
    size, layers = 8192 * 5120 * 2, 40
    bus = catalog.gpu("a800-sxm-80gb").bus_bytes_per_s(2)
    assert shared["all_reduce"] == pytest.approx(2 * layers * size / bus, rel=0.01)


def test_all_reduces_cost_more_over_pcie_than_nvlink_and_most_over_a_network():
    step = (64, 64, 0, 64_000, 64)

    def all_reduce(**more):
        split = made(model="llama-2-70b", tp=4, **more).parts(*step)
        assert split.operators["all_reduce"] == pytest.approx(split.resources["interconnect"])
        return split.resources["interconnect"]

    here = all_reduce(gpu="a100-sxm-80gb")
    assert here < all_reduce(gpu="a100-sxm-80gb", engine="vllm-0.2")  # by ring, eagerly
    assert here < all_reduce(gpu="a100-pcie-80gb")
    # 70B has 160 of them; two of a ring's turns wait for the network, however many GPUs it has.
    waits = [all_reduce(gpu="a100-sxm-80gb", nodes=2, network=Network(1e15, s)) for s in (0, 1e-3)]
    assert waits[1] - waits[0] == pytest.approx(160 * 2e-3)
    apart = all_reduce(gpu="a100-sxm-80gb", nodes=2)
    assert apart > all_reduce(gpu="a100-sxm-80gb", nodes=2, network=Network(50e9, 5e-6)) > here


def test_a_stages_result_is_handed_over_once_for_each_boundary():
    cost = made(Overheads(), model="llama-2-70b", gpu="a100", pp=4)
    handed = cost.parts(4096, 1, causal(4096), 0, 1).operators["hand_over"]
    assert handed == pytest.approx(3 * (10e-6 + 1024 * 8192 * 2 / 300e9))
    whole = made(Overheads(), model="llama-2-70b", gpu="a100").duration_s(
        4096, 1, causal(4096), 0, 1
    )
    assert cost.duration_s(4096, 1, causal(4096), 0, 1) == pytest.approx(whole / 4, rel=0.1)


def test_few_tokens_read_few_experts_and_many_read_all():
    model = catalog.model("mixtral-8x7b")
    cost = made(Overheads(), model="mixtral-8x7b", gpu="h100", tp=2)

    def experts_bytes(tokens):
        seconds = cost.parts(tokens, tokens, 0, tokens, 0).operators["experts"]
        return (seconds - model.layers * 8e-6) * 3.35e12 * 0.88 * 2  # four kernels of routing

    each = model.layers * model.expert_parameters * 2
    assert experts_bytes(1) == pytest.approx(2 * each, rel=0.1)  # two of eight
    assert experts_bytes(4) == pytest.approx(8 * (1 - 0.75**4) * each, rel=0.1)
    assert experts_bytes(32) == pytest.approx(8 * each, rel=0.1)


def test_latent_attention_is_bound_by_compute_where_many_heads_share_a_vector():
    wide = made(model="deepseek-v3", gpu="h200", weights="fp8")
    narrow = made(model="deepseek-v2-lite", gpu="h200")
    step = (256, 256, 0, 256_000, 256)
    seconds = wide.parts(*step).operators["attention_decode"]
    work = 61 * 256_000 * 2 * 128 * (2 * 512 + 64)
    assert seconds == pytest.approx(work / (989.4e12 * 0.57), rel=0.05)
    assert narrow.parts(*step).resources["hbm_kv"] > 27 * 256_000 * 576 * 2 / 4.8e12


def test_weights_of_4_bits_speed_up_decoding_and_slow_down_prefill():
    half = made(Overheads(), model="llama-3.1-8b", gpu="a100")
    small = made(Overheads(), model="llama-3.1-8b", gpu="a100", weights="int4")
    decode, prefill = (1, 1, 0, 256, 1), (8192, 1, causal(8192), 0, 1)
    assert half.duration_s(*decode) / small.duration_s(*decode) > 2
    assert 0.6 < half.duration_s(*prefill) / small.duration_s(*prefill) < 0.8


def test_unpacking_weights_costs_less_where_other_cores_keep_up_with_the_tensor_cores():
    def slower(gpu):
        times = [
            made(Overheads(), model="llama-3.1-8b", gpu=gpu, weights=weights)
            .parts(8192, 1, causal(8192), 0, 1)
            .operators["ffn"]
            for weights in ("int4", "fp16")
        ]
        return times[0] / times[1]

    assert slower("a100") > slower("a40") > slower("rtx-4090") > 1


def test_decodes_beside_prompts_compute_a_tile_of_queries_where_one_kernel_serves_both():
    def added(gpu, **overheads):
        cost = made(Overheads(**overheads), model="qwen3-14b", gpu=gpu)
        both = cost.duration_s(520, 9, causal(512), 8 * 32_000, 9)
        return both - cost.duration_s(520, 9, causal(512), 0, 9)

    def alone(gpu):
        cost = made(Overheads(), model="qwen3-14b", gpu=gpu)
        return cost.parts(8, 8, 0, 8 * 32_000, 8).operators["attention_decode"]

    layers, heads, kv_heads = 40, 40, 8
    tiles = layers * (heads - kv_heads) * 8 * 32_000 * 64 * 4 * 128 / (312e12 * 0.51)
    assert added("a100") == pytest.approx(alone("a100"), rel=0.01)
    assert added("a100", one_kernel=True) - alone("a100") == pytest.approx(tiles, rel=0.01)
    assert added("h100", one_kernel=True) == pytest.approx(alone("h100"), rel=0.01)


def test_an_eager_engine_is_bound_by_its_launches_until_the_batch_is_large():
    eager = made("vllm-0.1", model="llama-3.1-8b", gpu="h100")
    assert eager.duration_s(1, 1, 0, 64, 1) == pytest.approx(32 * 0.35e-3 + 1.9e-3 + 0.034e-3)
    assert eager.parts(1, 1, 0, 64, 1).resources["host"] > 6e-3


def test_an_engine_that_overlaps_shows_a_tenth_of_its_host_time():
    shown = made("sglang", model="llama-3.1-8b", gpu="a100").duration_s(1, 1, 0, 64, 1)
    device = made(Overheads(), model="llama-3.1-8b", gpu="a100").duration_s(1, 1, 0, 64, 1)
    assert shown - device == pytest.approx(0.2e-3)


steps = st.tuples(
    st.integers(1, 4096),
    st.integers(1, 256),
    st.floats(0, 1e8),
    st.floats(0, 1e7),
    st.integers(0, 256),
)


@settings(max_examples=200, deadline=None)
@given(cost=st.sampled_from(COSTS), step=steps)
def test_both_splits_of_a_step_add_up_to_its_time(cost, step):
    split, whole = cost.parts(*step), cost.duration_s(*step)
    assert sum(split.operators.values()) == pytest.approx(whole, rel=1e-12)
    assert sum(split.resources.values()) == pytest.approx(whole, rel=1e-12)
    assert min(split.operators.values()) >= -1e-15
    assert min(split.resources.values()) >= -1e-15


@settings(max_examples=200, deadline=None)
@given(cost=st.sampled_from(COSTS), step=steps, more=st.integers(0, 4))
def test_more_of_anything_never_makes_a_step_shorter(cost, step, more):
    larger = [amount + (1 if k == more else 0) for k, amount in enumerate(step)]
    assert cost.duration_s(*larger) >= cost.duration_s(*step) * (1 - 1e-12)


batches = st.integers(1, 256)
contexts = st.integers(1, 2_000_000)
hosts = st.builds(
    Overheads,
    layer_s=st.sampled_from([0, 0.2e-3, 0.35e-3, 1e-3]),
    step_s=st.floats(0, 40e-3),
    sequence_s=st.floats(0, 0.5e-3),
    hidden=st.floats(0, 1),
    decode_attention=st.floats(0.5, 2),
    one_kernel=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(overheads=hosts, setup=st.sampled_from(SETUPS), batch=batches, context=contexts)
def test_the_lines_of_a_decode_step_are_its_time(overheads, setup, batch, context):
    cost = made(overheads, **setup)
    seconds = cost.duration_s(batch, batch, 0, context, batch)
    assert at(cost.decode(batch), context) / FS == pytest.approx(seconds, rel=1e-6)


def test_eight_a100_of_40_gb_hold_111_contexts_of_2048_tokens_of_internlm_20b():
    memory = catalog.gpu("a100-sxm-40gb").memory_gb * 1e9
    held = kv_tokens(catalog.model("internlm-20b"), memory, utilization=1, tp=8)
    assert held // 2048 == 111


def test_vllm_holds_as_many_tokens_of_llama_8b_on_a_4090_as_it_says():
    model = catalog.model("llama-3.1-8b")
    memory, peak = catalog.gpu("rtx-4090").memory_bytes, model.activation_bytes(2048, 256)
    held = kv_tokens(model, memory, utilization=0.9, activation_bytes=peak)
    assert held == pytest.approx(41_408, rel=0.001)
    assert kv_tokens(model, 16e9) == 0  # the weights alone take more


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tp": 3}, "tp"), ({"tp": 0}, "tp"), ({"pp": 41}, "pp"), ({"nodes": 0}, "nodes"),
        ({"nodes": 2}, "nodes"), ({"weights": "fp7"}, "dtype"), ({"kv_dtype": "int4"}, "kv_dtype"),
    ],
)  # fmt: skip
def test_what_cannot_be_spread_or_stored_is_refused_by_name(wrong, named):
    with pytest.raises(BadInput) as refused:
        made(model="llama-2-13b", gpu="a100", **wrong)
    assert refused.value.field == named


def test_a_changed_gpu_changes_what_it_should():
    gpu = catalog.gpu("a100")
    faster = msgspec.structs.replace(gpu, hbm_bytes_per_s=2 * gpu.hbm_bytes_per_s)
    model, engine = catalog.model("llama-2-13b"), Overheads()
    decode, prefill = (1, 1, 0, 256, 1), (8192, 1, causal(8192), 0, 1)
    before, after = Roofline(model, gpu, engine), Roofline(model, faster, engine)
    assert before.duration_s(*decode) / after.duration_s(*decode) > 1.7
    assert before.duration_s(*prefill) / after.duration_s(*prefill) < 1.1
