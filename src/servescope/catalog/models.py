"""A model's shape, from a Hugging Face config.json, and what follows: weights and KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import msgspec

from servescope.catalog.gpus import Gpu
from servescope.errors import BadInput
from servescope.plugins import one_of

_BITS = {"fp16": 16.0, "bf16": 16.0, "fp8": 8.0, "int8": 8.0, "int4": 4 + 20 / 128}
"""A weight's bits. int4 as AWQ and GPTQ: a scale of 16 bits and a zero point of 4 for each group of
128 weights."""
_KV_BYTES = {"auto": 2, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1}
_TWO_MATRICES = {"gptj", "gpt_neox", "phi", "starcoder2", "nemotron"}
"""Model types whose feed-forward network has no gate."""
_GPT_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
_GEMMA3 = {  # its files leave out what is the default of transformers' Gemma3TextConfig
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
}
_OTHER_KINDS = (
    *("hybrid_override_pattern", "mamba_d_state", "attn_layer_period", "linear_num_key_heads"),
    *("interleave_moe_layer_step", "moe_num_experts", "state_size", "ssm_cfg", "block_types"),
)
"""Keys of models whose layers differ in ways that Llama's keys do not tell: Mamba or linear
attention in some or in all, experts in every other or by another name."""
_ALSO_CALLED = {"awq": "int4", "gptq": "int4", "w4a16": "int4", "w8a8": "int8"}
_STORED_AS = {
    "fp8": "fp8", "fbgemm_fp8": "fp8", "float8": "fp8", "int8": "int8",
    "awq": "int4", "mxfp4": "int4", "int4": "int4",
}  # fmt: skip
"""Formats of weights, by quantization method or, where that leaves it open, by their numbers."""


def weight_bytes_each(weights: str) -> float:
    """Bytes of one weight of a matrix product stored so; raises BadInput naming `dtype`."""
    if weights not in _BITS:
        raise BadInput("dtype", weights, f"want {one_of(weights, ['auto', *_BITS])}")
    return _BITS[weights] / 8


def weight_format(asked: str, model: Model, gpu: Gpu) -> str:
    """The format of a model's weights on a GPU. Raises BadInput naming `dtype`.

    `auto` is the model's own, but fp16 for bf16 where the GPU lacks that; AWQ and GPTQ are int4.
    """
    own = "fp16" if model.weights == "bf16" and "bf16" in gpu.lacks else model.weights
    found = own if asked == "auto" else _ALSO_CALLED.get(asked, asked)
    if found in gpu.lacks:
        others = ", ".join(name for name in _BITS if name not in gpu.lacks)
        want = f"want one of {others} on {gpu.name}: engines have no kernels for {found} there"
        raise BadInput("dtype", asked, want)
    return found


def kv_element_bytes(kv_dtype: str) -> int:
    """Bytes of one number in the KV cache; raises BadInput naming `kv_dtype`."""
    if kv_dtype not in _KV_BYTES:
        raise BadInput("kv_dtype", kv_dtype, f"want {one_of(kv_dtype, _KV_BYTES)}")
    return _KV_BYTES[kv_dtype]


class Mla(msgspec.Struct, frozen=True, kw_only=True):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): sizes of its projections."""

    kv_rank: int
    """Numbers that a token's keys and values are compressed to, for all heads together."""
    rope_dim: int
    """And of the one key that carries the position."""
    nope_dim: int
    """Of a head's query and key, without the position's part."""
    value_dim: int
    query_rank: int
    """0: queries are not compressed."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a decoder-only transformer. Biases, under a thousandth of it, are left out."""

    name: str
    source: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_tokens: int
    """The longest context that it was made for."""
    tied: bool
    """Whether the embedding is the output matrix too."""
    weights: str = "bf16"
    """The format that its files are in."""
    ffn: int
    """The width of a dense layer's feed-forward network."""
    ffn_matrices: int = 3
    """3 with a gate, 2 without."""
    experts: int = 0
    """Routed experts of a mixture-of-experts layer; 0: all layers are dense."""
    experts_per_token: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    """The width of the experts that every token passes, together."""
    dense_layers: int
    """Layers without experts: all, or the few that a mixture of experts has."""
    mla: Mla | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, name: str = "", source: str = "") -> Self:
        """The model of a config.json; raises BadInput naming a key that is missing or wrong.

        Llama's keys and their kin are understood (Qwen, Mistral, Mixtral, Phi-3, InternLM, Gemma,
        GPT-OSS, DeepSeek), GPT-J's, and those of a `text_config`. An unknown model type with
        Llama's keys is taken for a Llama, unless others tell that its layers are of other kinds.
        Sliding windows are ignored: all layers see everything.
        """
        keys = _Keys(config)
        keys.refuse_other_kinds()
        kind, experts = keys.kind, keys.experts()
        hidden, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
        layers, ffn = keys.whole("num_hidden_layers"), keys.get("intermediate_size")
        kv_heads = keys.whole("num_key_value_heads", heads)
        if heads % kv_heads:
            want = f"want a divisor of the {heads} of num_attention_heads"
            raise BadInput("model", f"num_key_value_heads={kv_heads}", want)
        per_token = keys.whole("num_experts_per_tok") if experts else 0
        if per_token > experts:
            want = f"want {experts} at most, as many as there are experts"
            raise BadInput("model", f"num_experts_per_tok={per_token}", want)
        expert_ffn = keys.whole("moe_intermediate_size", ffn) if experts else 0
        shared = keys.whole("n_shared_experts", 0) * expert_ffn
        default_ffn = 4 * hidden if kind == "gptj" else expert_ffn or None
        return cls(
            name=name or str(keys.get("_name_or_path") or kind),
            source=source,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=keys.whole("head_dim", hidden // heads),
            vocab=keys.whole("vocab_size"),
            context_tokens=keys.whole("max_position_embeddings", 2048),
            tied=bool(keys.get("tie_word_embeddings", kind.startswith("gemma"))),
            weights=keys.stored_as(),
            ffn=keys.whole("intermediate_size", default_ffn),
            ffn_matrices=2 if kind in _TWO_MATRICES else 3,
            experts=experts,
            experts_per_token=per_token,
            expert_ffn=expert_ffn,
            shared_ffn=keys.whole("shared_expert_intermediate_size", shared) if experts else 0,
            dense_layers=keys.dense_layers(layers) if experts else layers,
            mla=keys.mla() if keys.get("kv_lora_rank") is not None else None,
        )

    @property
    def parameters(self) -> int:
        """All weights."""
        return round(self._matrices(1) + self._norms + self._ends)

    @property
    def moe_layers(self) -> int:
        """Layers with experts."""
        return self.layers - self.dense_layers

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert."""
        return self.ffn_matrices * self.hidden * self.expert_ffn

    def weight_bytes(self, weights: str, tp: int = 1, pp: int = 1) -> float:
        """Bytes of the weights on one of `tp` x `pp` GPUs, the one that holds most.

        Matrices of the layers are in the format `weights`; embedding, norms and output matrix stay
        in 16 bits. Raises BadInput naming `dtype`.
        """
        layers = -(-self.layers // pp) / self.layers
        ends = self._ends if pp == 1 else self.vocab * self.hidden  # the embedding or the output
        matrices = layers * self._matrices(tp) * weight_bytes_each(weights)
        return matrices + (layers * self._norms + ends / tp) * 2

    def kv_bytes_per_token(self, kv_dtype: str = "fp16", tp: int = 1, pp: int = 1) -> float:
        """Bytes of a token's keys and values on one of `tp` x `pp` GPUs, the one that holds most.

        With more GPUs than KV heads, heads are held several times; MLA's latent vector is on all.
        Raises BadInput naming `kv_dtype`.
        """
        return -(-self.layers // pp) * self.kv_elements(tp) * kv_element_bytes(kv_dtype)

    def kv_elements(self, tp: int) -> float:
        """Numbers in the KV cache for one token and layer, on one of `tp` GPUs."""
        if self.mla:
            return self.mla.kv_rank + self.mla.rope_dim
        return 2 * self.kv_heads_per_rank(tp) * self.head_dim

    def kv_heads_per_rank(self, tp: int) -> float:
        """KV heads on one of `tp` GPUs: at least one."""
        return max(self.kv_heads / tp, 1)

    def activation_bytes(self, tokens: int, sequences: int, tp: int = 1) -> float:
        """Bytes beside weights and KV cache while a step of so many tokens runs, at its peak.

        What lives at once in a feed-forward layer (gate, up, their product, four vectors of the
        hidden size), three copies of the logits in fp32, and 0.6 GB of CUDA context and workspace:
        what these leave of the 1.24 GB that vLLM 0.19 had there with Llama-3.1-8B on an RTX 4090
        (2048 tokens, 256 sequences; traces of casys-kaist/LLMServingSim).
        """
        width = (
            self.experts_per_token * self.expert_ffn + self.shared_ffn if self.experts else self.ffn
        )
        layer = tokens * (self.ffn_matrices * width / tp + 4 * self.hidden) * 2
        return layer + 3 * sequences * self.vocab * 4 + 0.6e9

    @property
    def _ends(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def _norms(self) -> int:
        return (2 * self.layers + 1) * self.hidden

    def _matrices(self, tp: int) -> float:
        """Weights of the layers' matrices on one of `tp` GPUs."""
        dense = self.ffn_matrices * self.hidden * self.ffn / tp
        shared = self.ffn_matrices * self.hidden * self.shared_ffn / tp
        routed = self.experts * (self.expert_parameters / tp + self.hidden)  # and the router
        attention = sum(rows * columns for rows, columns in self.attention_shapes(tp))
        return (
            self.layers * attention
            + self.dense_layers * dense
            + self.moe_layers * (shared + routed)
        )

    def attention_shapes(self, tp: int) -> tuple[tuple[float, float], ...]:
        """(outputs, inputs) of a layer's attention matrices on one of `tp` GPUs, the output's last.

        Query, key and value are one matrix. MLA: the down-projections are on every GPU.
        """
        heads, hidden, mla = self.heads / tp, self.hidden, self.mla
        if mla is None:
            qkv = (heads + 2 * self.kv_heads_per_rank(tp)) * self.head_dim
            return (qkv, hidden), (hidden, heads * self.head_dim)
        query = heads * (mla.nope_dim + mla.rope_dim)
        queries = ((mla.query_rank, hidden), (query, mla.query_rank)) if mla.query_rank else ()
        return (
            *(queries or ((query, hidden),)),
            (mla.kv_rank + mla.rope_dim, hidden),
            (heads * (mla.nope_dim + mla.value_dim), mla.kv_rank),
            (hidden, heads * mla.value_dim),
        )


class _Numbers(msgspec.Struct):
    num_bits: int
    type: str = "int"


class _Group(msgspec.Struct):
    weights: _Numbers


class _Quantization(msgspec.Struct):
    """What is read of a `quantization_config`: GPTQ's bits, the groups of compressed-tensors."""

    quant_method: str
    bits: int | None = None
    config_groups: dict[str, _Group] = {}


class _Keys:
    """A config.json read by Llama's names."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        inner = config.get("text_config")
        self._config = {**config, **inner} if isinstance(inner, Mapping) else config
        self.kind = str(self._config.get("model_type", "llama"))
        self._defaults: Mapping[str, Any] = _GEMMA3 if self.kind.startswith("gemma3") else {}

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 (as JSON has it)
        """The value; null counts as missing."""
        for name in (key, _GPT_KEYS.get(key, key) if self.kind == "gptj" else key):
            if self._config.get(name) is not None:
                return self._config[name]
        return self._defaults.get(key, default)

    def whole(self, key: str, default: Any = None) -> int:  # noqa: ANN401
        """A whole number above 0, or 0 where that is the default; BadInput names the key."""
        value = self.get(key, default)
        if value is None:
            raise BadInput("model", self.kind, f"want {key} in its config.json")
        if type(value) is not int or value < (default != 0):
            raise BadInput("model", f"{key}={value!r}", f"want {key} to be a whole number above 0")
        return value

    def refuse_other_kinds(self) -> None:
        """Raise BadInput for a model whose shape these keys do not tell."""
        for key in _OTHER_KINDS:
            if self.get(key) is not None:
                want = (
                    f"want a model without {key}: layers of other kinds than Llama's (Mamba, linear"
                )
                want += " attention, experts in some of them) are not simulated"
                raise BadInput("model", self.kind, want)

    def experts(self) -> int:
        """Routed experts; 0: none."""
        for key in ("n_routed_experts", "num_local_experts", "num_experts"):
            if self.get(key) is not None:
                return self.whole(key, 0)
        return 0

    def dense_layers(self, layers: int) -> int:
        """Layers without experts in a model that has some."""
        if self.get("first_k_dense_replace") is not None:  # DeepSeek counts from 0
            every = self.whole("moe_layer_freq", 1)
            dense = set(range(self.whole("first_k_dense_replace", 0)))
            return sum(k in dense or k % every != 0 for k in range(layers))
        every, listed = self.whole("decoder_sparse_step", 1), self.get("mlp_only_layers", [])
        if not isinstance(listed, list):
            raise BadInput(
                "model", f"mlp_only_layers={listed!r}", "want mlp_only_layers to be a list"
            )
        dense = set(listed)  # Qwen counts from 1
        return sum(k in dense or (k + 1) % every != 0 for k in range(layers))

    def mla(self) -> Mla:
        """The sizes of latent attention."""
        return Mla(
            kv_rank=self.whole("kv_lora_rank"),
            rope_dim=self.whole("qk_rope_head_dim"),
            nope_dim=self.whole("qk_nope_head_dim"),
            value_dim=self.whole("v_head_dim"),
            query_rank=self.whole("q_lora_rank", 0),
        )

    def stored_as(self) -> str:
        """The weights' format; BadInput where it is none that is known here."""
        said = self.get("quantization_config")
        if said is None:
            dtype = self.get("torch_dtype", self.get("dtype"))
            return "fp16" if dtype == "float16" else "bf16"
        try:
            stored = msgspec.convert(said, _Quantization)
        except msgspec.ValidationError as error:
            raise BadInput(
                "model", self.kind, f"want another quantization_config: {error}"
            ) from None
        groups = (group.weights for group in stored.config_groups.values())
        numbers = next((f"{one.type}{one.num_bits}" for one in groups), f"int{stored.bits}")
        found = _STORED_AS.get(stored.quant_method, _STORED_AS.get(numbers))
        if found is None:
            want = "want weights of 4 or 8 bits as AWQ, GPTQ, FP8 or compressed-tensors have them"
            raise BadInput("model", stored.quant_method, want)
        return found
