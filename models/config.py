"""Descriptions of models: sizes, and of each layer its parts and how they are joined.

Descriptions are frozen and hashable, so that they can be static arguments of jit. Each names the
module that computes it, and reports what its layer costs, so that planning knows no formulas.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from jaxserve.api.caches import LayerCache, Paged, Shared, Window
from jaxserve.layers.attention import PACKED_QUERIES
from jaxserve.layers.rope import Rope
from jaxserve.models.work import LayerWork
from jaxserve.quantization.matrix import matrices
from pallas_kernels.paged_attention import AttentionConfig, AttentionSpec

# Makes a normalisation: called with epsilon and, by its axis word, the width (`embed=64`).
type Norm = Callable[..., Any]

# Prefixes of tensors that encoders are saved with and that embeddings and scores do not need: the
# heads of other tasks, and the positions' own numbers.
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


class Mixer(Protocol):
    """Description of the part of a layer that mixes the tokens of a sequence."""

    @property
    def module(self) -> Callable[[Any, Any], Any]:
        """Module that computes it, called with the model's description and this one."""
        ...

    @property
    def sliding_window(self) -> int | None:
        """Tokens that a query attends to, itself included; None is all before it."""
        ...

    @property
    def rope(self) -> Rope | None:
        """Rotary positions; None for a mixer without."""
        ...

    @property
    def cache(self) -> LayerCache | Shared:
        """What the layer keeps between steps."""
        ...

    @property
    def stored(self) -> "Mixer":
        """What a checkpoint has of it, before it was fitted."""
        ...

    def fitted(self, devices: int) -> "Mixer":
        """Return it with copies of what there is too little of for so many devices."""
        ...

    def divides(self, devices: int) -> str | None:
        """Return what cannot be divided among so many devices, None if all can."""
        ...

    def attention(
        self, *, devices: int, page_size: int, dtype: str, cache_dtype: str
    ) -> AttentionConfig | None:
        """Return what one device asks of paged attention; None for a mixer without."""
        ...

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """Return bytes of temporaries per token on one device, those of the kernel excluded."""
        ...

    def pair_flops(self, *, devices: int) -> int:
        """Return FLOPs on one device for each pair of a query and a key that it sees."""
        ...

    def key_bytes(self, *, devices: int, itemsize: int) -> int:
        """Return bytes that one device keeps of each token."""
        ...


class FeedForward(Protocol):
    """Description of the part of a layer that transforms each token by itself."""

    @property
    def module(self) -> Callable[[Any, Any], Any]:
        """Module that computes it, called with the model's description and this one."""
        ...

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """Return bytes of temporaries per token on one device."""
        ...


@dataclass(frozen=True, kw_only=True)
class GroupedQuery:
    """Attention in which each key-value head serves heads / kv_heads query heads.

    scale: factor of the scores. sliding_window, soft_cap: see AttentionSpec. sinks: whether each
    head has a sink. rope: None where queries and keys are not rotated. qk_norm: whether queries and
    keys are normalised per head, before rotation. is_causal: False lets a token see later ones.
    kv_copies: `kv_heads` for each one that the checkpoint has.
    """

    module: Callable[[Any, "GroupedQuery"], Any]
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    sliding_window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    is_causal: bool = True
    kv_copies: int = 1

    @property
    def stored(self) -> "GroupedQuery":
        """See Mixer."""
        return replace(self, kv_heads=self.kv_heads // self.kv_copies, kv_copies=1)

    def fitted(self, devices: int) -> "GroupedQuery":
        """See Mixer: every device attends with a key-value head of its own."""
        copies = max(devices // self.kv_heads, 1) if devices % self.kv_heads == 0 else 1
        kv_heads, kv_copies = self.kv_heads * copies, self.kv_copies * copies
        return replace(self, kv_heads=kv_heads, kv_copies=kv_copies)

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads

    @property
    def spec(self) -> AttentionSpec:
        """What the layer asks of attention, without the arrays."""
        return AttentionSpec(
            scale=self.scale, sliding_window=self.sliding_window, soft_cap=self.soft_cap
        )

    @property
    def cache(self) -> LayerCache:
        """See Mixer."""
        if self.sliding_window is None:
            return Paged(kv_heads=self.kv_heads, head_dim=self.head_dim)
        return Window(kv_heads=self.kv_heads, head_dim=self.head_dim, window=self.sliding_window)

    def divides(self, devices: int) -> str | None:
        """See Mixer."""
        for word, count in (("heads", self.heads), ("kv_heads", self.kv_heads)):
            if count % devices:
                return f"{word} ({count})"
        return None

    def attention(
        self, *, devices: int, page_size: int, dtype: str, cache_dtype: str
    ) -> AttentionConfig:
        """See Mixer."""
        return AttentionConfig(
            heads=self.heads // devices,
            kv_heads=self.kv_heads // devices,
            head_dim=self.head_dim,
            page_size=page_size,
            dtype=dtype,
            cache_dtype=cache_dtype,
            sliding_window=self.sliding_window,
            soft_cap=self.soft_cap,
            sinks=self.sinks,
        )

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """See Mixer: queries, keys and values, and the scores of attention without a kernel."""
        heads = (self.heads + 2 * self.kv_heads) // devices
        # Scores and weights, float32.
        scores = 0 if self.is_causal else 8 * PACKED_QUERIES * self.heads // devices
        return heads * self.head_dim * itemsize + scores

    def pair_flops(self, *, devices: int) -> int:
        """See Mixer."""
        return 4 * (self.heads // devices) * self.head_dim

    def key_bytes(self, *, devices: int, itemsize: int) -> int:
        """See Mixer."""
        return 2 * (self.kv_heads // devices) * self.head_dim * itemsize


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A feed-forward that every token passes; ffw is its width."""

    module: Callable[[Any, "Dense"], Any]
    ffw: int
    bias: bool = False

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """See FeedForward: a gate, what it gates, and their product."""
        return 3 * (self.ffw // devices) * itemsize


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """One layer: its parts, and how they are joined to the stream.

    block: module that joins them, called with the model's description and this one. pre_norm:
    whether mixer and feed-forward read the normalised stream. post_norm: whether their results are
    normalised. residual_multiplier: factor of the results as they are added to the stream.
    """

    block: Callable[[Any, "LayerConfig"], Any]
    mixer: Mixer
    feed_forward: FeedForward
    pre_norm: bool = True
    post_norm: bool = False
    residual_multiplier: float = 1.0

    def work(self, params: Any, *, devices: int, cache_itemsize: int) -> LayerWork:
        """Count the FLOPs and bytes of the layer on one device.

        params: its parameters, or abstract ones, with shardings. cache_itemsize: bytes of a number
        in the cache. Every token meets every matrix, once.
        """
        return LayerWork(
            token_flops=2 * sum(matrix.num_weights for matrix in matrices(params)),
            pair_flops=self.mixer.pair_flops(devices=devices),
            key_bytes=self.mixer.key_bytes(devices=devices, itemsize=cache_itemsize),
            sliding_window=self.mixer.sliding_window,
            state_bytes=self.mixer.cache.state_bytes // devices,
        )

    def workspace_bytes(
        self, num_tokens: int, *, attending: int, devices: int, itemsize: int
    ) -> int:
        """Estimate the temporaries of a step of so many tokens on one device.

        attending: bytes of the attention kernel. The two parts run one after the other.
        """
        mixer = self.mixer.row_bytes(devices=devices, itemsize=itemsize)
        feed_forward = self.feed_forward.row_bytes(devices=devices, itemsize=itemsize)
        return max(num_tokens * mixer + attending, num_tokens * feed_forward)


@dataclass(frozen=True, kw_only=True)
class _ModelConfig:
    """Fields of decoders and encoders alike.

    embed: width of the stream. norm: normalisations in the layers. architecture: module that
    computes the model: `Decoder`, `Encoder` or a family's own. vocab_padding: rows of the embedding
    and the head behind the vocabulary.
    """

    model_type: str
    vocab_size: int
    embed: int
    norm: Norm
    norm_eps: float
    layers: tuple[LayerConfig, ...]
    architecture: Callable[[Any], Any]
    vocab_padding: int = 0

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(_ModelConfig):
    """Everything that shapes a decoder's parameters and its forward pass.

    final_norm: normalisation before the head.
    embedding_multiplier, logit_multiplier: factors of the embeddings and of the logits.
    logit_soft_cap: a logit l becomes logit_soft_cap * tanh(l / logit_soft_cap). num_labels: labels
    scored by a head in place of the language model's; 0 is no head at all.
    """

    final_norm: Norm
    max_position: int
    tied_embeddings: bool
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    logit_soft_cap: float | None = None
    num_labels: int | None = None

    is_causal: ClassVar[bool] = True

    @property
    def caches(self) -> tuple[LayerCache | Shared, ...]:
        """What each layer keeps between steps."""
        return tuple(layer.mixer.cache for layer in self.layers)

    @property
    def head(self) -> str | None:
        """Parameter that logits are computed with; None for a model without."""
        if self.num_labels is not None:
            return None
        return "embedding" if self.tied_embeddings else "lm_head"

    @property
    def spare_tensors(self) -> tuple[str, ...]:
        """Prefixes of tensors that a checkpoint may have and this model does not need."""
        if self.num_labels is None:
            return ("lm_head.",) if self.tied_embeddings else ()
        return ("lm_head.",) if self.num_labels else ("lm_head.", "score.")

    def pooled(self, num_labels: int) -> "DecoderConfig":
        """Return the model that answers with a vector, or with the scores of so many labels."""
        return replace(self, num_labels=num_labels, tied_embeddings=False)

    @property
    def num_token_ids(self) -> int:
        """Upper limit of the token ids of a prompt."""
        return self.vocab_size

    @property
    def rope(self) -> Rope | None:
        """Rotary positions of the layers that see farthest; None for a model without."""
        mixers = [layer.mixer for layer in self.layers if layer.mixer.rope is not None]
        farthest = [mixer for mixer in mixers if mixer.sliding_window is None] or mixers
        return farthest[0].rope if farthest else None

    @property
    def longest_context(self) -> int:
        """Tokens that a sequence may have: `max_position`, stretched by the RoPE's factor."""
        rope = self.rope
        return self.max_position if rope is None else rope.longest_context(self.max_position)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(_ModelConfig):
    """Everything that shapes an encoder of the BERT families; see DecoderConfig.

    num_positions: rows of the table of positions, of which a text begins at `first_position`.
    num_segments: kinds of text that token ids tell apart, see `encoder.py`. num_labels: labels that
    its head scores; 0 is no head.
    """

    num_positions: int
    first_position: int
    num_segments: int
    num_labels: int

    # What those who plan for a decoder ask of it.
    is_causal: ClassVar[bool] = False
    caches: ClassVar[tuple[LayerCache, ...]] = ()
    tied_embeddings: ClassVar[bool] = False
    head: ClassVar[str | None] = None
    spare_tensors: ClassVar[tuple[str, ...]] = _SPARE

    @property
    def max_position(self) -> int:
        """Tokens that a text may have."""
        return self.num_positions - self.first_position

    @property
    def longest_context(self) -> int:
        """The same: positions cannot be stretched."""
        return self.max_position

    @property
    def num_token_ids(self) -> int:
        """Upper limit of the token ids of a text."""
        return self.vocab_size * self.num_segments

    def pooled(self, num_labels: int) -> "EncoderConfig":
        """Return the model that answers with a vector, or with the scores of so many labels."""
        return replace(self, num_labels=num_labels)


type ModelConfig = DecoderConfig | EncoderConfig
