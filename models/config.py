"""What a decoder is: sizes, rotation, and the few switches in which the families differ."""

from dataclasses import dataclass

from jaxserve.layers.rope import Rope


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Everything that shapes a decoder's parameters and its forward pass.

    Frozen and hashable, so it can be a static argument of jit. embed, ffw and head_dim are widths;
    sliding_windows has one entry per layer: how many tokens it sees, itself included, or None for
    all. qkv_bias, output_bias and mlp_bias say which projections add a bias, qk_norm whether
    queries and keys are normalised per head before they are rotated.
    """

    model_type: str
    vocab_size: int
    embed: int
    ffw: int
    num_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    max_position: int
    tied_embeddings: bool
    sliding_windows: tuple[int | None, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def longest_context(self) -> int:
        """How many tokens a sequence may have; more than `max_position` with dynamic RoPE only."""
        return self.rope.longest_context(self.max_position)
