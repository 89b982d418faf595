"""A Llama of 3.4 million random parameters, made in a second without any download.

The same weights and tokenizer twice: a Hugging Face directory for vLLM, a GGUF for llama.cpp. Its
text is nonsense, and greedy decoding falls into special tokens (empty text), so tests that need
text sample at temperature 1.
"""

from __future__ import annotations

import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER = 256, 4, 4, 2, 512
HEAD = HIDDEN // HEADS
VOCABULARY = 4096
CONTEXT = 8192
NORM_EPSILON, ROPE_BASE = 1e-5, 10000.0
END_OF_TEXT, END_OF_TURN = 0, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Weights = dict[str, NDArray[np.float16]]

# Hugging Face's names and llama.cpp's for the same tensors of a layer.
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LAYER_SHAPES = {
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


@dataclass(frozen=True)
class TinyModel:
    """Where the model lies."""

    huggingface: Path
    """A directory with config.json, tokenizer.json and model.safetensors."""
    gguf: Path


def make(folder: Path, seed: int = 7) -> TinyModel:
    """Write the model into `folder`: the same bytes for the same seed and Python."""
    made = TinyModel(folder / "hf", folder / "tiny.gguf")
    made.huggingface.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer()
    weights = _draw_weights(tokenizer.get_vocab_size(), np.random.default_rng(seed))
    _write_huggingface(made.huggingface, tokenizer, weights)
    _write_gguf(made.gguf, tokenizer, weights)
    return made


def _train_tokenizer() -> Tokenizer:
    """Byte-level BPE trained on the text of Python's own library: at hand everywhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:120]
    tokenizer.train([str(text) for text in texts], trainer)
    return tokenizer


def _draw_weights(vocabulary: int, rng: np.random.Generator) -> Weights:
    shapes = {"model.embed_tokens": (vocabulary, HIDDEN), "model.norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}": s for name, s in LAYER_SHAPES.items()}
    return {f"{name}.weight": _draw(shape, rng) for name, shape in shapes.items()}


def _draw(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float16]:
    if len(shape) == 1:  # a norm
        return np.ones(shape, np.float16)
    values = rng.standard_normal(shape, dtype=np.float32) * (0.6 / np.sqrt(shape[-1]))
    return values.astype(np.float16)


def _write_huggingface(folder: Path, tokenizer: Tokenizer, weights: Weights) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TURN, "pad_token_id": END_OF_TEXT}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": ROPE_BASE,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "initializer_range": 0.02,
        **ends,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[END_OF_TEXT],
        "eos_token": SPECIAL[END_OF_TURN],
        "pad_token": SPECIAL[END_OF_TEXT],
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    files = {
        "config.json": config,
        "generation_config.json": ends,
        "tokenizer_config.json": tokenizer_config,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write_gguf(file: Path, tokenizer: Tokenizer, weights: Weights) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny-random-llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_vocab_size(tokenizer.get_vocab_size())
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokenizer(writer, tokenizer)
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].astype(np.float32))
    for layer in range(LAYERS):
        for theirs, ours in LAYER_NAMES.items():
            tensor = _for_llamacpp(theirs, weights[f"model.layers.{layer}.{theirs}.weight"])
            writer.add_tensor(f"blk.{layer}.{ours}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    kinds = gguf.TokenType
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.CONTROL if t in SPECIAL else kinds.NORMAL for t in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(END_OF_TEXT)
    writer.add_eos_token_id(END_OF_TURN)
    writer.add_pad_token_id(END_OF_TEXT)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _for_llamacpp(name: str, tensor: NDArray[np.float16]) -> NDArray[np.floating]:
    if tensor.ndim == 1:
        return tensor.astype(np.float32)
    if name in ("self_attn.q_proj", "self_attn.k_proj"):
        # llama.cpp interleaves the two halves that rotary embedding turns against each other.
        halves = tensor.reshape(-1, 2, HEAD // 2, HIDDEN).swapaxes(1, 2)
        return np.ascontiguousarray(halves.reshape(tensor.shape))
    return tensor
