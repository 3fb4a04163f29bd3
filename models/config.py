"""What a decoder is: sizes, rotation, and the few switches in which the families differ."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jaxserve.layers.rope import Rope


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Everything that shapes a decoder's parameters and its forward pass.

    Frozen and hashable, so it can be a static argument of jit. embed, ffw and head_dim are widths;
    sliding_windows has one entry per layer: how many tokens it sees, itself included, or None for
    all. qkv_bias, output_bias and mlp_bias say which projections add a bias, qk_norm whether
    queries and keys are normalised per head before they are rotated. num_labels: how many labels a
    head scores that stands in place of the language model's; 0 is no head at all. architecture:
    makes the module that computes it, where that is no plain `Decoder`: a subclass of it.
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
    num_labels: int | None = None
    architecture: Callable[["DecoderConfig"], Any] | None = None

    @property
    def is_causal(self) -> bool:
        """Whether a token sees none after it."""
        return True

    @property
    def num_caches(self) -> int:
        """How many layers keep keys and values."""
        return self.num_layers

    @property
    def spare_tensors(self) -> tuple[str, ...]:
        """How the names of tensors begin that a checkpoint may have and this model needs not."""
        if self.num_labels is None:
            return ("lm_head.",) if self.tied_embeddings else ()
        return ("lm_head.",) if self.num_labels else ("lm_head.", "score.")

    def pooled(self, num_labels: int) -> "DecoderConfig":
        """Return the model that answers with a vector, or with the scores of so many labels."""
        return replace(self, num_labels=num_labels, tied_embeddings=False)

    @property
    def num_token_ids(self) -> int:
        """Token ids that a prompt may have: those below."""
        return self.vocab_size

    @property
    def longest_context(self) -> int:
        """How many tokens a sequence may have; more than `max_position` with dynamic RoPE only."""
        return self.rope.longest_context(self.max_position)


type ModelConfig = DecoderConfig
