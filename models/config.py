"""What a decoder is: sizes, rotation, and the few switches in which the families differ."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxserve.layers.rope import Rope

# How the names of tensors begin that encoders are saved with, and that embeddings or scores of
# labels do without: the heads of other tasks, and the positions' own numbers.
_SPARE = (
    "cls.",
    "lm_head.",
    "pooler.",
    "classifier.",
    *(
        f"{base}{part}"
        for base in ("", "bert.", "roberta.")
        for part in ("pooler.", "embeddings.position_ids", "embeddings.token_type_ids")
    ),
)


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
        """How many tokens a sequence may have: `max_position`, stretched by the RoPE's factor."""
        return self.rope.longest_context(self.max_position)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Everything that shapes an encoder of the BERT families; see DecoderConfig.

    num_positions: rows of the table of positions, of which a text begins at `first_position`.
    num_segments: kinds of text that token ids tell apart, see `encoder.py`. num_labels: how many
    labels its head scores; 0 is no head.
    """

    model_type: str
    vocab_size: int
    embed: int
    ffw: int
    num_layers: int
    heads: int
    norm_eps: float
    num_positions: int
    first_position: int
    num_segments: int
    num_labels: int

    # What those who plan for a decoder ask of it.
    is_causal: ClassVar[bool] = False
    num_caches: ClassVar[int] = 0
    tied_embeddings: ClassVar[bool] = False
    spare_tensors: ClassVar[tuple[str, ...]] = _SPARE

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.embed // self.heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: each head has its own."""
        return self.heads

    @property
    def sliding_windows(self) -> tuple[None, ...]:
        """Every layer sees the whole text."""
        return (None,) * self.num_layers

    @property
    def max_position(self) -> int:
        """How many tokens a text may have."""
        return self.num_positions - self.first_position

    @property
    def longest_context(self) -> int:
        """The same: positions cannot be stretched."""
        return self.max_position

    @property
    def num_token_ids(self) -> int:
        """Token ids that a text may have: those below."""
        return self.vocab_size * self.num_segments

    def pooled(self, num_labels: int) -> "EncoderConfig":
        """Return the model that answers with a vector, or with the scores of so many labels."""
        return replace(self, num_labels=num_labels)


type ModelConfig = DecoderConfig | EncoderConfig
