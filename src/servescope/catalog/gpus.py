"""What a GPU can do: datasheet figures, and the share of them that kernels reach."""

from __future__ import annotations

import msgspec


def index_of_2_4_8(gpus: int) -> int:
    """Which of three figures, for 2, 4 and 8 GPUs, is that of so many: 2, 3 to 4, 5 and more."""
    return min(2, max(0, (gpus - 1).bit_length() - 1))


class Efficiency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Constants of kernels on a GPU or an architecture, as shares of the datasheet's peaks.

    A matrix product takes `(compute time^p + memory time^p)^(1/p) + launch_s`, p the sharpness; one
    in 8 bits has its input quantized before.
    """

    compute: float
    hbm: float
    launch_s: float
    sharpness: float
    prefill_attention: float
    """Of peak flop/s."""
    decode_attention: float
    """Of peak memory bandwidth."""
    packs_heads: bool = False
    """Whether attention kernels for prompts and decodes together put the query heads of a KV head
    into one tile, as FlashAttention 3 does and 2 does not."""
    nvlink_share: tuple[float, float, float]
    """Bus bandwidth of an all-reduce over 2, 4 and 8 GPUs as a share of the link, one direction."""
    pcie_share: tuple[float, float, float]
    fp8_compute: float | None = None
    """`compute` for 8-bit products; None: the same."""
    fp8_input_bytes: float = 0.0
    """What quantizing the input of an 8-bit product moves, in bytes for each of its numbers."""
    source: str

    def gemm(self, dtype: str) -> float:
        """The share of peak flop/s that products computed in `dtype` reach."""
        narrow = dtype in ("fp8", "int8")
        return (self.fp8_compute if narrow else None) or self.compute


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU. Rates are per second; links count one direction."""

    name: str
    architecture: str
    aliases: tuple[str, ...] = ()
    flops_per_s: dict[str, float]
    """Dense tensor-core peak by `fp16` (and bf16), `fp8`, `int8`."""
    lacks: tuple[str, ...] = ()
    """Formats of weights that engines have no kernels for on it."""
    vector_flops_per_s: float
    """Peak of the other cores in fp32: what unpacking weights goes at."""
    memory_gb: int
    """As sold, in 10^9 bytes or so: what tables of 'theoretical' capacity reckon with."""
    memory_bytes: int
    """As the driver reports it."""
    hbm_bytes_per_s: float
    nvlink_bytes_per_s: float
    """0: none."""
    pcie_bytes_per_s: float
    power_w: float
    price_per_hour: float
    """US dollars, on demand."""
    efficiency: Efficiency
    source: str

    def __hash__(self) -> int:
        """A table of numbers has none of its own."""
        return hash(self.name)

    def computes_in(self, weights: str) -> str:
        """The format that products with such weights are computed in: `fp16`, `fp8` or `int8`.

        int4 weights are dequantised to fp16 on their way, and so are all that the GPU has no
        tensor cores for.
        """
        return weights if weights in self.flops_per_s else "fp16"

    def bus_bytes_per_s(self, gpus: int) -> float:
        """Bus bandwidth of a large all-reduce over so many GPUs of a node, in NCCL's sense.

        An all-reduce of S bytes takes 2 (n - 1) / n S / bandwidth.
        """
        which = index_of_2_4_8(gpus)
        if self.nvlink_bytes_per_s:
            return self.nvlink_bytes_per_s * self.efficiency.nvlink_share[which]
        return self.pcie_bytes_per_s * self.efficiency.pcie_share[which]
