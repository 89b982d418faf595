"""Names lead to GPUs, models and engines, and what they hold agrees with what is published."""

import json
from pathlib import Path

import pytest

from servescope import catalog
from servescope.catalog import Model
from servescope.engine.config import ENGINES, EngineConfig, names
from servescope.engine.policies import policies, policy
from servescope.engine.scheduler import FOREVER
from servescope.errors import BadInput

CONTRACT_GPUS = {
    "v100-32gb", "a40", "a100-sxm-40gb", "a100-sxm-80gb", "a800-sxm-80gb", "l40s", "rtx-4090",
    "rtx-pro-6000", "h100-sxm-80gb", "h200-sxm-141gb",
}  # fmt: skip
CONTRACT_ENGINES = {
    "vllm", "vllm-0.1", "vllm-0.2", "sglang", "tgi-1.0", "lightllm-2023", "tensorrt-llm", "static",
}  # fmt: skip
# As the hub counts a model's tensors, or the model card where it does not.
PUBLISHED_PARAMETERS = {
    "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248, "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen2-7b": 7_615_616_512, "qwen2-72b": 72_706_203_648,
    "qwen2.5-7b": 7_615_616_512, "qwen2.5-32b": 32_763_876_352, "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360, "qwen3-14b": 14_768_307_200, "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624, "qwen3-235b-a22b": 235_093_634_560,
    "mistral-7b": 7_241_732_096, "mixtral-8x7b": 46_702_792_704,
    "internlm-7b": 7.32e9, "internlm-20b": 20.1e9, "phi-3.5-mini": 3_821_079_552,
    "gemma-2-9b": 9_241_705_984, "gemma-2-27b": 27_227_128_320, "gpt-j-6b": 6_050_882_784,
    "deepseek-v3": 671e9, "deepseek-r1": 671e9, "deepseek-v2-lite": 15_706_484_224,
    "smollm2-135m": 134_515_008,
}  # fmt: skip
PUBLISHED_ACTIVE = {
    "qwen3-30b-a3b": 3.3e9, "qwen3-235b-a22b": 22e9, "mixtral-8x7b": 12.9e9, "deepseek-v3": 37e9,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip


def test_the_names_of_the_contract_are_known():
    names = catalog.names()
    assert set(names["gpus"]) >= CONTRACT_GPUS
    assert set(names["engines"]) == CONTRACT_ENGINES
    assert set(names["models"]) == set(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize("name", catalog.names()["gpus"])
def test_every_gpu_has_sane_figures_and_their_sources(name):
    gpu = catalog.gpu(name)
    assert gpu.name == name
    assert 60e12 <= gpu.flops_per_s["fp16"] <= 3e15
    for narrow in {"fp8", "int8"} & set(gpu.flops_per_s):
        assert gpu.flops_per_s[narrow] / gpu.flops_per_s["fp16"] == pytest.approx(2, rel=0.05) or (
            narrow == "int8" and name in ("rtx-3090", "rtx-4090")  # fp16 at half rate there
        )
    assert gpu.memory_bytes / (gpu.memory_gb * 2**30) == pytest.approx(0.97, abs=0.06)
    assert gpu.source.startswith(("NVIDIA", "AMD"))
    assert "it" in gpu.efficiency.source
    assert 0 < gpu.price_per_hour < 20


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameters_counted_from_the_dimensions_are_the_published_ones(name):
    model = catalog.model(name)
    assert model.parameters == pytest.approx(PUBLISHED_PARAMETERS[name], rel=0.005)
    assert model.source.startswith("https://huggingface.co/")


@pytest.mark.parametrize("name", PUBLISHED_ACTIVE)
def test_a_token_passes_as_many_parameters_as_is_published_of_a_mixture_of_experts(name):
    model = catalog.model(name)
    idle = model.moe_layers * (model.experts - model.experts_per_token) * model.expert_parameters
    assert model.parameters - idle == pytest.approx(PUBLISHED_ACTIVE[name], rel=0.02)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("h100", "h100-sxm-80gb"),
        ("a100-80gb", "a100-sxm-80gb"),
        ("A100-SXM-80GB", "a100-sxm-80gb"),
        ("4090", "rtx-4090"),
        ("mi300x", "mi300x-192gb"),
        ("NVIDIA A800-SXM4-80GB", "a800-sxm-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
    ],
)
def test_a_gpu_is_found_by_its_alias_or_the_drivers_name(said, meant):
    assert catalog.gpu(said).name == meant


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("llama2-13b", "llama-2-13b"),
        ("meta-llama/Llama-2-13b-chat-hf", "llama-2-13b"),
        ("meta-llama/Meta-Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
    ],
)
def test_a_model_is_found_by_its_name_on_the_hub(said, meant):
    assert catalog.model(said).name == meant


@pytest.mark.parametrize(
    ("look_up", "said", "hint"),
    [
        (catalog.gpu, "rtx-4080", "did you mean rtx-4090?"),
        (catalog.gpu, "pcie", "one of a100-pcie-40gb, a100-pcie-80gb, h100-pcie-80gb"),
        (catalog.gpu, "", "want one of"),
        (catalog.model, "lama-2-13b", "did you mean llama-2-13b?"),
        (catalog.engine, "vlm", "did you mean vllm?"),
    ],
)
def test_an_unknown_name_is_refused_with_a_likely_one(look_up, said, hint):
    with pytest.raises(BadInput) as refused:
        look_up(said)
    assert hint in str(refused.value)


def test_engines_that_a_server_imitates_have_overheads_where_names_agree():
    assert {"vllm", "sglang"} <= set(ENGINES) & set(catalog.names()["engines"])
    for name in catalog.names()["engines"]:
        overheads = catalog.engine(name)
        assert 0 <= overheads.hidden < 1
        assert overheads.source


def test_a_path_to_a_config_or_its_folder_is_a_model(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    model = catalog.model(str(folder))
    assert (model.name, model.parameters) == ("mine", catalog.model("llama-2-7b").parameters)
    assert model == catalog.model(str(folder / "config.json"))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadInput, match=r"config\.json"):
        catalog.model(str(tmp_path))


@pytest.mark.parametrize("key", [key for key in LLAMA if key != "model_type"])
@pytest.mark.parametrize("value", [None, 0, -1, "4096", 1.5, True])
def test_a_key_that_is_missing_or_wrong_is_named(key, value):
    with pytest.raises(BadInput, match=key):
        Model.from_config({**LLAMA, key: value})


def test_a_model_type_nobody_knows_is_read_as_a_llama_where_it_has_its_keys():
    assert Model.from_config({**LLAMA, "model_type": "novel"}).parameters == 6_738_415_616
    for key, value in (("hybrid_override_pattern", "M-M*"), ("moe_num_experts", 64)):
        with pytest.raises(BadInput, match=key):
            Model.from_config({**LLAMA, key: value})


def test_a_model_without_attention_is_said_not_to_be_simulated():
    mamba = {"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24, "state_size": 16}
    with pytest.raises(BadInput, match=r"Mamba.* are not simulated"):
        Model.from_config(mamba)


def test_gpt_js_keys_are_not_read_of_models_that_only_look_like_it():
    with pytest.raises(BadInput, match="hidden_size"):
        Model.from_config({"model_type": "gpt_bigcode", "n_embd": 6144, "n_layer": 40})


@pytest.mark.parametrize(
    "odd",
    [
        {"head_dim": 0},
        {"num_key_value_heads": 0},
        {"num_key_value_heads": 7},
        {"num_experts_per_tok": 16, "num_experts": 8},
        {"mlp_only_layers": 3, "num_experts": 8},
    ],
)
def test_odd_values_of_keys_that_may_be_missing_are_refused(odd):
    key = next(iter(odd))
    with pytest.raises(BadInput, match=key):
        Model.from_config({**LLAMA, "num_experts_per_tok": 2, **odd})


def test_gemma_3s_files_rely_on_defaults_and_nest_the_text_model():
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240}
    config = {"model_type": "gemma3", "text_config": {**text, "num_hidden_layers": 34}}
    model = Model.from_config(config)
    assert model.parameters == pytest.approx(3.88e9, rel=0.005)  # its 4.3e9 less the vision tower
    assert (model.kv_heads, model.head_dim, model.tied) == (4, 256, True)


def test_gpt_oss_is_read_with_its_experts_and_its_4_bit_files():
    model = Model.from_config(
        {
            "model_type": "gpt_oss",
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 36,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 201088,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "quantization_config": {"quant_method": "mxfp4"},
        }
    )
    assert model.parameters == pytest.approx(116.8e9, rel=0.005)
    assert model.weights == "int4"


@pytest.mark.parametrize(
    ("stored", "weights"),
    [
        ({"quant_method": "fp8", "fmt": "e4m3"}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "compressed-tensors", "config_groups": {
            "group_0": {"weights": {"num_bits": 8, "type": "float"}}}}, "fp8"),
        ({"quant_method": "compressed-tensors", "config_groups": {
            "group_0": {"weights": {"num_bits": 4, "type": "int"}}}}, "int4"),
    ],
)  # fmt: skip
def test_weights_are_in_the_format_that_their_quantization_says(stored, weights):
    assert Model.from_config({**LLAMA, "quantization_config": stored}).weights == weights


@pytest.mark.parametrize("stored", [{"quant_method": "gptq", "bits": 3}, {"bits": 8}, "fp8"])
def test_a_quantization_that_nobody_knows_is_refused_and_not_taken_for_16_bits(stored):
    with pytest.raises(BadInput, match="model"):
        Model.from_config({**LLAMA, "quantization_config": stored})


def test_qwens_dense_layers_among_experts_are_counted():
    moe = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512}
    assert Model.from_config({**LLAMA, **moe}).moe_layers == 32
    assert Model.from_config({**LLAMA, **moe, "decoder_sparse_step": 2}).moe_layers == 16
    assert Model.from_config({**LLAMA, **moe, "mlp_only_layers": [0, 5]}).moe_layers == 30
    assert catalog.model("deepseek-v3").dense_layers == 3


def test_weights_take_what_their_format_takes():
    model = catalog.model("llama-2-70b")
    assert model.weight_bytes("fp16") == 2 * model.parameters
    ends = 2 * 32000 * 8192
    assert model.weight_bytes("fp8") == pytest.approx(model.parameters + ends, rel=1e-4)
    # TheBloke/Llama-2-70B-AWQ, group size 128: 36.61 GB of safetensors
    assert model.weight_bytes("int4") == pytest.approx(36.61e9, rel=1e-3)
    with pytest.raises(BadInput, match="did you mean fp8"):
        model.weight_bytes("fp-8")


def test_parallel_ranks_share_weights_and_kv_heads_as_far_as_these_go():
    model = catalog.model("llama-2-70b")  # 8 KV heads
    whole = model.weight_bytes("fp16")
    assert model.weight_bytes("fp16", tp=8) == pytest.approx(whole / 8, rel=1e-3)
    assert model.weight_bytes("fp16", tp=16) > whole / 16
    assert model.kv_bytes_per_token("fp16") == 327_680
    assert model.kv_bytes_per_token("fp8", tp=4) == 327_680 / 8
    assert model.kv_bytes_per_token(tp=16) == model.kv_bytes_per_token(tp=8)
    assert model.kv_bytes_per_token(tp=2, pp=4) == model.kv_bytes_per_token() / 8
    latent = catalog.model("deepseek-v3")
    assert latent.kv_bytes_per_token(tp=8) == latent.kv_bytes_per_token() == 61 * 576 * 2
    experts = catalog.model("qwen3-30b-a3b")
    assert experts.weight_bytes("fp16", tp=4) == pytest.approx(
        experts.weight_bytes("fp16") / 4, rel=0.02
    )
    with pytest.raises(BadInput, match="kv_dtype"):
        model.kv_bytes_per_token("int4")


def test_what_a_gpu_has_no_tensor_cores_for_is_computed_in_fp16():
    a100, h100 = catalog.gpu("a100-sxm-80gb"), catalog.gpu("h100")
    formats = ("bf16", "fp8", "int8", "int4")
    assert [a100.computes_in(f) for f in formats] == ["fp16", "fp16", "int8", "fp16"]
    assert [h100.computes_in(f) for f in formats] == ["fp16", "fp8", "int8", "fp16"]


def test_a_large_all_reduce_goes_over_nvlink_or_over_pcie():
    assert catalog.gpu("a100").bus_bytes_per_s(2) == pytest.approx(199e9, rel=0.01)
    assert catalog.gpu("h100").bus_bytes_per_s(8) == pytest.approx(469e9, rel=0.01)
    assert catalog.gpu("l40s").bus_bytes_per_s(4) == pytest.approx(12.5e9, rel=0.05)


LIMITS = ("max_num_seqs", "max_num_batched_tokens")


def limits(kind, found):
    """As the page has them; a limit that follows from other settings is a star."""
    made = kind(EngineConfig(**found))
    for name in LIMITS:
        declared = found.get(name, getattr(kind, name))
        follows = declared != getattr(made, name)
        yield "*" if follows else "none" if declared == FOREVER else str(declared)


def defaults(name):
    """An engine's row of the page."""
    kind = policy(name)
    also = (other for other in names() if EngineConfig(engine=other).policy == name != other)
    on = [{}, *(kind.limits_on(catalog.gpu(gpu)) for gpu in ("rtx-4090", "h100"))]
    return [
        f"`{name}`",
        " ".join(f"`{other}`" for other in also),
        *(", ".join(limits(kind, found)) for found in on),
        str(kind.block_tokens),
        "true" if kind.caches_prefixes else "has none",
        f"{catalog.engine(name).memory_utilization:g}",
    ]


def test_the_page_shows_what_each_engine_takes_where_a_setting_is_left_open():
    page = (Path(__file__).parents[2] / "docs" / "catalog.md").read_text("utf-8")
    table = page.partition("| `memory_utilization` |")[2].partition("\n\n")[0].splitlines()[2:]
    assert table == ["| " + " | ".join(defaults(name)) + " |" for name in policies()]
