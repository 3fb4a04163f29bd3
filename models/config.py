"""Model descriptions: sizes, and the parts of each layer.

Descriptions are frozen and hashable, so that they can be static arguments of jit. Each names the
module that computes it and reports its cost, so that planning needs no model-specific formulas.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from jaxserve.api.caches import CacheSpec, Paged, Window
from jaxserve.layers.attention import PACKED_QUERIES
from jaxserve.layers.rope import Rope, TemperatureScaling
from jaxserve.models.parts import FeedForward, Mixer
from jaxserve.models.work import LayerWork
from jaxserve.quantization.matrix import matrices
from pallas_kernels.paged_attention import AttentionConfig, AttentionSpec

# Factory of a norm, called with epsilon and the axis name and width (`embed=64`).
type Norm = Callable[..., Any]

# Prefixes of encoder tensors to ignore: heads of other tasks, and position ids.
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
class GroupedQuery:
    """Attention in which each key-value head serves heads / kv_heads query heads.

    scale: factor of the scores. sliding_window, soft_cap: see AttentionSpec. sinks: each head has
    an attention sink. rope: None if queries and keys are not rotated. temperature: growth of
    queries with their position. qk_norm: normalize queries and keys before rotation, each head by
    itself, or with joint_qk_norm all heads together. output_gate: multiply the output of each head
    by the sigmoid of a gate, which is projected with its queries. is_causal: False lets tokens
    attend to later ones. kv_copies: replicas of each KV head of the checkpoint, included in
    `kv_heads`.
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
    joint_qk_norm: bool = False
    temperature: TemperatureScaling | None = None
    output_gate: bool = False
    is_causal: bool = True
    kv_copies: int = 1

    @property
    def stored(self) -> "GroupedQuery":
        """See Mixer."""
        return replace(self, kv_heads=self.kv_heads // self.kv_copies, kv_copies=1)

    def fitted(self, devices: int) -> "GroupedQuery":
        """See Mixer: replicate KV heads until every device has one."""
        copies = max(devices // self.kv_heads, 1) if devices % self.kv_heads == 0 else 1
        kv_heads, kv_copies = self.kv_heads * copies, self.kv_copies * copies
        return replace(self, kv_heads=kv_heads, kv_copies=kv_copies)

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads

    @property
    def spec(self) -> AttentionSpec:
        """Attention parameters of the layer, without arrays."""
        return AttentionSpec(
            scale=self.scale, sliding_window=self.sliding_window, soft_cap=self.soft_cap
        )

    @property
    def cache(self) -> CacheSpec:
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
        """See Mixer: queries, keys and values, and an encoder's attention scores."""
        queries = self.heads * (2 if self.output_gate else 1)
        heads = (queries + 2 * self.kv_heads) // devices
        # Float32 scores and weights.
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
    """Feed-forward applied to every token.

    ffw: inner width. activation: name in ACTIVATIONS of `layers/activation.py`; other modules may
    ignore it.
    """

    module: Callable[[Any, "Dense"], Any]
    ffw: int
    bias: bool = False
    activation: str = "silu"

    def fitted(self, expert_devices: int) -> "Dense":
        """See FeedForward."""
        del expert_devices
        return self

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """See FeedForward: gate, up projection and their product."""
        return 3 * (self.ffw // devices) * itemsize

    def experts(self, params: Any) -> None:
        """See FeedForward."""


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Description of one layer.

    block: module to create, called with the model's description and this one. pre_norm: normalize
    the inputs of mixer and feed-forward. post_norm: normalize their outputs. takes_normalized:
    the stream is normalized already where it enters the layer, so that its mixer needs no norm.
    residual_multiplier: factor of the outputs before they are added to the residual stream.
    """

    block: Callable[[Any, "LayerConfig"], Any]
    mixer: Mixer
    feed_forward: FeedForward
    pre_norm: bool = True
    post_norm: bool = False
    takes_normalized: bool = False
    residual_multiplier: float = 1.0

    def work(self, params: Any, *, devices: int, cache_itemsize: int) -> LayerWork:
        """Return the FLOPs and bytes of the layer on one device.

        params: parameters or abstract parameters, with shardings. cache_itemsize: bytes per element
        of the cache. Every token is multiplied by every matrix once, except those of other experts.
        """
        experts = self.feed_forward.experts(params.get("mlp"))
        idle = 0 if experts is None else round(experts.num_weights * experts.idle_share)
        return LayerWork(
            token_flops=2 * (sum(matrix.num_weights for matrix in matrices(params)) - idle),
            pair_flops=self.mixer.pair_flops(devices=devices),
            key_bytes=self.mixer.key_bytes(devices=devices, itemsize=cache_itemsize),
            sliding_window=self.mixer.sliding_window,
            state_bytes=self.mixer.cache.state_bytes // devices,
            experts=experts,
        )

    def workspace_bytes(
        self, num_tokens: int, *, num_sequences: int, attending: int, devices: int, itemsize: int
    ) -> int:
        """Estimate the bytes of temporaries for `num_tokens` tokens on one device.

        attending: bytes of the attention kernel. Mixer and feed-forward run one after the other, so
        the result is their maximum.
        """
        mixer = self.mixer.row_bytes(devices=devices, itemsize=itemsize)
        # The states before and after the step.
        attending += 2 * num_sequences * self.mixer.cache.state_bytes // devices
        feed_forward = self.feed_forward.row_bytes(devices=devices, itemsize=itemsize)
        return max(num_tokens * mixer + attending, num_tokens * feed_forward)


@dataclass(frozen=True, kw_only=True)
class _ModelConfig:
    """Fields of decoders and encoders.

    embed: width of the residual stream. norm: norms in the layers. architecture: module that
    computes the model: `Decoder`, `Encoder` or a family's own. vocab_padding: rows added to the
    embedding and the head after the vocabulary.
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
class Projection:
    """Linear layer on pooled vectors: a Dense module of sentence-transformers.

    folder: prefix of its tensor names. width: length of its results. activation: name in
    ACTIVATIONS, or None.
    """

    folder: str
    width: int
    bias: bool = True
    activation: str | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(_ModelConfig):
    """Description of a decoder.

    final_norm: norm before the head. embedding_multiplier, logit_multiplier: factors of embeddings
    and logits. logit_soft_cap: replaces a logit l by logit_soft_cap * tanh(l / logit_soft_cap).
    num_labels: labels of a classification head instead of the language model head; 0 means no head.
    label_tokens: tokens whose rows of the language model head are the classification head.
    is_causal: False if tokens attend to later ones, in models of embeddings. projections: layers
    that pooled vectors pass through, in models of embeddings. num_positions: rows of a table of
    learned positions; 0 means none. embedding_norm: normalize embeddings. skipped_tensors: prefixes
    of checkpoint tensors of parts that this model lacks, such as a vision tower; loading logs them.
    """

    final_norm: Norm
    max_position: int
    tied_embeddings: bool
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    logit_soft_cap: float | None = None
    num_labels: int | None = None
    label_tokens: tuple[int, ...] = ()
    projections: tuple[Projection, ...] = ()
    num_positions: int = 0
    embedding_norm: bool = False
    skipped_tensors: tuple[str, ...] = ()

    is_causal: bool = True

    @property
    def caches(self) -> tuple[CacheSpec, ...]:
        """Kind of cache of each layer; empty for models that read whole texts only."""
        if not self.is_causal:
            return ()
        return tuple(layer.mixer.cache for layer in self.layers)

    @property
    def has_head(self) -> bool:
        """Whether pooled vectors pass through a head."""
        return bool(self.num_labels or self.projections)

    @property
    def head(self) -> str | None:
        """Name of the parameter that computes logits; None if the model has none."""
        if self.num_labels is not None:
            return None
        return "embedding" if self.tied_embeddings else "lm_head"

    @property
    def spare_tensors(self) -> tuple[str, ...]:
        """Prefixes of checkpoint tensors to ignore."""
        if self.num_labels is None:
            heads: tuple[str, ...] = ("lm_head.weight",) if self.tied_embeddings else ()
        else:
            heads = ("lm_head.",) if self.num_labels else ("lm_head.", "score.")
        return heads + self.skipped_tensors

    def pooled(self, num_labels: int) -> "DecoderConfig":
        """Return the pooling model with `num_labels` labels; 0 means embeddings."""
        return replace(self, num_labels=num_labels)

    def untied(self) -> Self:
        """Return the model with a head of its own."""
        return replace(self, tied_embeddings=False)

    @property
    def num_token_ids(self) -> int:
        """Exclusive upper bound of prompt token ids."""
        return self.vocab_size

    @property
    def rope(self) -> Rope | None:
        """Rotary embedding of the layers with the longest window; None without any."""
        mixers = [layer.mixer for layer in self.layers if layer.mixer.rope is not None]
        farthest = [mixer for mixer in mixers if mixer.sliding_window is None] or mixers
        return farthest[0].rope if farthest else None

    @property
    def longest_context(self) -> int:
        """Maximum sequence length: `max_position`, extended by the RoPE's factor."""
        rope = self.rope
        return self.max_position if rope is None else rope.longest_context(self.max_position)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(_ModelConfig):
    """Description of an encoder of the BERT families; see DecoderConfig.

    num_positions: rows of the position table. first_position: row of a text's first token.
    num_segments: segments encoded in token ids, see `encoder.py`. num_labels: labels of the
    classification head; 0 means no head.
    """

    num_positions: int
    first_position: int
    num_segments: int
    num_labels: int

    # Attributes that planning reads from any model.
    is_causal: ClassVar[bool] = False
    caches: ClassVar[tuple[CacheSpec, ...]] = ()
    rope: ClassVar[Rope | None] = None
    tied_embeddings: ClassVar[bool] = False
    head: ClassVar[str | None] = None
    spare_tensors: ClassVar[tuple[str, ...]] = _SPARE
    skipped_tensors: ClassVar[tuple[str, ...]] = ()

    @property
    def has_head(self) -> bool:
        """Whether pooled vectors pass through a head."""
        return self.num_labels > 0

    @property
    def max_position(self) -> int:
        """Maximum number of tokens of a text."""
        return self.num_positions - self.first_position

    @property
    def longest_context(self) -> int:
        """Same as `max_position`: learned positions cannot be extended."""
        return self.max_position

    @property
    def num_token_ids(self) -> int:
        """Exclusive upper bound of token ids."""
        return self.vocab_size * self.num_segments

    def pooled(self, num_labels: int) -> "EncoderConfig":
        """Return the pooling model with `num_labels` labels; 0 means embeddings."""
        return replace(self, num_labels=num_labels)

    def untied(self) -> Self:
        """Return the same model: its head never was the embedding."""
        return self


type ModelConfig = DecoderConfig | EncoderConfig
