"""Hugging Face checkpoint tensors of Llama-like and BERT-like families."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from jaxserve.models.config import DecoderConfig, EncoderConfig, GroupedQuery, ModelConfig
from jaxserve.models.params import weight_specs
from jaxserve.quantization.layout import Path
from jaxserve.quantization.matrix import WeightSpec


class Part(NamedTuple):
    """Range of a parameter's axis that a tensor fills."""

    axis: str
    start: int
    size: int


class Cut(NamedTuple):
    """Range of a stored dimension to read.

    The axes of dimension `dim`, except the first `outer` ones, occupy `total` elements from
    `start`: rows of a fused projection, or rows of each head in one.
    """

    start: int
    total: int
    dim: int = 0
    outer: int = 0


# Parameter axis stored in another order: names and sizes of its factors, outermost first.
type Splits = tuple[tuple[str, tuple[tuple[str, int], ...]], ...]


@dataclass(frozen=True, slots=True)
class HfTensor:
    """Checkpoint tensor: its name, and the parameter axes of each dimension.

    A dimension may contain several axes, flattened: o_proj.weight is [(embed), (heads, head_dim)].
    parts: range that it fills in a parameter made of several tensors. cut: range to read, None for
    all of it. splits: parameter axes whose factors `dims` lists in another order. Several
    parameters may read one tensor.
    """

    name: str
    dims: tuple[tuple[str, ...], ...]
    parts: tuple[Part, ...] = ()
    cut: Cut | None = None
    splits: Splits = ()

    def sizes(self, spec: WeightSpec) -> dict[str, int]:
        """Return the length in this tensor of each axis of its parameter, and of their factors."""
        pieces = {word: size for _, pieces in self.splits for word, size in pieces}
        return spec.sizes | {part.axis: part.size for part in self.parts} | pieces


class Stored(NamedTuple):
    """Entry of a table of checkpoint tensors.

    name: `{experts}` in it is replaced by each index of that axis. dims: dimensions separated by
    commas, axes of a dimension by blanks. cut, splits: see HfTensor.
    """

    name: str
    dims: str
    cut: Cut | None = None
    splits: Splits = ()


# Tensors of each parameter.
type Parts = Mapping[str, Sequence[tuple[str, str] | Stored]]

# Length of each tensor along a joined axis.
type Widths = Mapping[str, Sequence[int]]

_TOP: Parts = {
    "embedding": [("model.embed_tokens.weight", "vocab, embed")],
    "final_norm.weight": [("model.norm.weight", "embed")],
    "final_norm.bias": [("model.norm.bias", "embed")],
    "lm_head": [("lm_head.weight", "vocab, embed")],
    "score": [("score.weight", "labels, embed")],
}
LAYER: Parts = {
    "attention_norm.weight": [("input_layernorm.weight", "embed")],
    "attention_norm.bias": [("input_layernorm.bias", "embed")],
    "attention.qkv": [
        ("self_attn.q_proj.weight", "kv_heads qkv head_dim, embed"),
        ("self_attn.k_proj.weight", "kv_heads qkv head_dim, embed"),
        ("self_attn.v_proj.weight", "kv_heads qkv head_dim, embed"),
    ],
    "attention.o": [("self_attn.o_proj.weight", "embed, heads head_dim")],
    "attention.qkv_bias": [
        ("self_attn.q_proj.bias", "kv_heads qkv head_dim"),
        ("self_attn.k_proj.bias", "kv_heads qkv head_dim"),
        ("self_attn.v_proj.bias", "kv_heads qkv head_dim"),
    ],
    "attention.o_bias": [("self_attn.o_proj.bias", "embed")],
    "attention.q_norm.weight": [("self_attn.q_norm.weight", "head_dim")],
    "attention.k_norm.weight": [("self_attn.k_norm.weight", "head_dim")],
    "mlp_norm.weight": [("post_attention_layernorm.weight", "embed")],
    "mlp_norm.bias": [("post_attention_layernorm.bias", "embed")],
    "mlp.gate_up": [
        ("mlp.gate_proj.weight", "gate_up ffw, embed"),
        ("mlp.up_proj.weight", "gate_up ffw, embed"),
    ],
    "mlp.down": [("mlp.down_proj.weight", "embed, ffw")],
    "mlp.gate_up_bias": [
        ("mlp.gate_proj.bias", "gate_up ffw"),
        ("mlp.up_proj.bias", "gate_up ffw"),
    ],
    "mlp.down_bias": [("mlp.down_proj.bias", "embed")],
}
# Norms of layers that also normalize the outputs of attention and MLP, as in OLMo 2 and Gemma 2.
POST_NORMS: Parts = {
    "attention_post_norm.weight": [("post_attention_layernorm.weight", "embed")],
    "mlp_norm.weight": [("pre_feedforward_layernorm.weight", "embed")],
    "mlp_post_norm.weight": [("post_feedforward_layernorm.weight", "embed")],
}
# Norms of all queries and of all keys of a token, as in OLMo 2 and MiniMax-M2.
JOINT_QK_NORMS: Parts = {
    "attention.q_norm.weight": [("self_attn.q_norm.weight", "heads head_dim")],
    "attention.k_norm.weight": [("self_attn.k_norm.weight", "kv_heads head_dim")],
}
_ENCODER_TOP = {
    "embedding": ("embeddings.word_embeddings.weight", "vocab, embed"),
    "positions": ("embeddings.position_embeddings.weight", "positions, embed"),
    "segments": ("embeddings.token_type_embeddings.weight", "segments, embed"),
    "embedding_norm.weight": ("embeddings.LayerNorm.weight", "embed"),
    "embedding_norm.bias": ("embeddings.LayerNorm.bias", "embed"),
}
_ENCODER_LAYER: Parts = {
    "attention.qkv": [
        ("attention.self.query.weight", "kv_heads qkv head_dim, embed"),
        ("attention.self.key.weight", "kv_heads qkv head_dim, embed"),
        ("attention.self.value.weight", "kv_heads qkv head_dim, embed"),
    ],
    "attention.qkv_bias": [
        ("attention.self.query.bias", "kv_heads qkv head_dim"),
        ("attention.self.key.bias", "kv_heads qkv head_dim"),
        ("attention.self.value.bias", "kv_heads qkv head_dim"),
    ],
    "attention.o": [("attention.output.dense.weight", "embed, heads head_dim")],
    "attention.o_bias": [("attention.output.dense.bias", "embed")],
    "attention_norm.weight": [("attention.output.LayerNorm.weight", "embed")],
    "attention_norm.bias": [("attention.output.LayerNorm.bias", "embed")],
    "mlp.up": [("intermediate.dense.weight", "ffw, embed")],
    "mlp.up_bias": [("intermediate.dense.bias", "ffw")],
    "mlp.down": [("output.dense.weight", "embed, ffw")],
    "mlp.down_bias": [("output.dense.bias", "embed")],
    "mlp_norm.weight": [("output.LayerNorm.weight", "embed")],
    "mlp_norm.bias": [("output.LayerNorm.bias", "embed")],
}


def llama_tensors(
    config: DecoderConfig,
    *,
    more: Parts | None = None,
    top: Parts | None = None,
    widths: Widths | None = None,
    layers: str = "model.layers",
) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter of a decoder.

    more, top: parameters of layers and of the model that a family stores differently from Llama, by
    path. widths: for other axes along which tensors are joined, the length of each tensor. layers:
    prefix of the layers' tensor names.
    """
    projections: dict[str, list[tuple[str, str]]] = {}
    for i, each in enumerate(config.projections):
        linear = f"{each.folder}.linear"
        projections[f"projections.{i}.weight"] = [(f"{linear}.weight", "projected, pooled")]
        projections[f"projections.{i}.bias"] = [(f"{linear}.bias", "projected")]
    tables = ({**_TOP, **(top or {}), **projections}, {**LAYER, **(more or {})})
    return _tensors(config, *tables, layers=layers, widths=widths)


def label_rows(config: DecoderConfig, head: HfTensor) -> tuple[HfTensor, ...]:
    """Return the tensors of a classification head made of rows of the language model head."""
    return tuple(
        replace(
            head,
            dims=(("labels",), ("embed",)),
            parts=(Part("labels", index, 1),),
            cut=Cut(token_id, config.vocab_size),
        )
        for index, token_id in enumerate(config.label_tokens)
    )


def interleaved_qkv(config: DecoderConfig) -> Parts:
    """Return queries and keys whose stored heads have the dimensions of a rotated pair in a row."""
    mixer = config.layers[0].mixer
    assert isinstance(mixer, GroupedQuery)
    splits = (("head_dim", (("half", 2), ("pair", mixer.head_dim // 2))),)

    def stored(kind: str, dims: str) -> list[Stored]:
        paired = dims.replace("head_dim", "pair half")
        return [
            Stored(f"self_attn.q_proj.{kind}", paired, splits=splits),
            Stored(f"self_attn.k_proj.{kind}", paired, splits=splits),
            Stored(f"self_attn.v_proj.{kind}", dims),
        ]

    return {
        "attention.qkv": stored("weight", "kv_heads qkv head_dim, embed"),
        "attention.qkv_bias": stored("bias", "kv_heads qkv head_dim"),
    }


def encoder_tensors(
    config: EncoderConfig, *, base: str, dense: str, score: str
) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter of an encoder.

    base: prefix of its tensor names. dense, score: names of the head's two layers.
    """
    top: Parts = {
        **{path: [(f"{base}.{name}", dims)] for path, (name, dims) in _ENCODER_TOP.items()},
        "dense": [(f"{dense}.weight", "pooled, embed")],
        "dense_bias": [(f"{dense}.bias", "pooled")],
        "score": [(f"{score}.weight", "labels, pooled")],
        "score_bias": [(f"{score}.bias", "labels")],
    }
    return _tensors(config, top, _ENCODER_LAYER, layers=f"{base}.encoder.layer")


def _tensors(
    config: ModelConfig, top: Parts, inner: Parts, *, layers: str, widths: Widths | None = None
) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter that `config` declares.

    top, inner: tensors of the model and of a layer. layers: prefix of the layers' tensor names.
    """
    tensors: dict[Path, tuple[HfTensor, ...]] = {}
    for path, spec in weight_specs(config).items():
        match path:
            case ("layers", layer, *rest):
                stored, prefix = inner[_dotted(rest)], f"{layers}.{layer}."
            case _:
                stored, prefix = top[_dotted(path)], ""
        # Queries, keys and values per KV head; gate and up projections.
        own = {"qkv": (spec.sizes.get("qkv", 0) - 2, 1, 1), "gate_up": (1, 1)}
        tensors[path] = tuple(_placed(stored, spec, {**own, **(widths or {})}, prefix))
    return tensors


def _placed(
    stored: Sequence[tuple[str, str] | Stored],
    spec: WeightSpec,
    widths: Widths,
    prefix: str,
) -> Iterator[HfTensor]:
    """Yield the tensors of a parameter, each with the range that it fills.

    Tensors are concatenated along the axis that has `widths`.
    """
    joined = next((word for word in spec.axes if word in widths and len(stored) > 1), None)
    start = 0
    for i, (name, dims, cut, splits) in enumerate(Stored(*each) for each in stored):
        parts: tuple[Part, ...] = ()
        if joined is not None:
            size = widths[joined][i]
            parts = (Part(joined, start, size),)
            start += size
        tensor = HfTensor(
            prefix + name, tuple(tuple(dim.split()) for dim in dims.split(",")), parts, cut, splits
        )
        stacked = next((word for word in spec.axes if f"{{{word}}}" in name), None)
        if stacked is None:
            yield tensor
            continue
        for index in range(spec.sizes[stacked]):
            yield replace(
                tensor,
                name=tensor.name.replace(f"{{{stacked}}}", str(index)),
                parts=(*parts, Part(stacked, index, 1)),
            )


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(map(str, path))
