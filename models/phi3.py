"""Phi-3 and Phi-4: Llama with fused projections and LongRoPE (arXiv:2404.14219)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig, Dense, GroupedQuery
from jaxserve.models.hf_config import decoder_config
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.weights import Cut, HfTensor, Stored, llama_tensors
from jaxserve.quantization.layout import Path


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(_with_longrope(hf), defaults={"rms_norm_eps": 1e-5})
    windows = (reader.optional_integer("sliding_window"),) * reader.integer("num_hidden_layers")
    return decoder_config(reader, sliding_windows=windows, partial_rotary_factor=1.0)


def _with_longrope(hf: Mapping[str, object]) -> dict[str, object]:
    """Return a config with the present name of LongRoPE, which older files call su or yarn."""
    changed = dict(hf)
    for key in ("rope_parameters", "rope_scaling"):
        rope = hf.get(key)
        if isinstance(rope, dict):
            older = [name for name in ("type", "rope_type") if rope.get(name) in {"su", "yarn"}]
            changed[key] = {**rope, **dict.fromkeys(older, "longrope")}
    return changed


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    mixer, feed_forward = config.layers[0].mixer, config.layers[0].feed_forward
    assert isinstance(mixer, GroupedQuery)
    assert isinstance(feed_forward, Dense)
    queries, keys = mixer.heads * mixer.head_dim, mixer.kv_heads * mixer.head_dim
    total, ffw = queries + 2 * keys, feed_forward.ffw
    qkv = ("self_attn.qkv_proj.weight", "kv_heads qkv head_dim, embed")
    gate_up = ("mlp.gate_up_proj.weight", "gate_up ffw, embed")
    more = {
        "attention.qkv": [
            Stored(*qkv, Cut(start, total)) for start in (0, queries, queries + keys)
        ],
        "mlp.gate_up": [Stored(*gate_up, Cut(start, 2 * ffw)) for start in (0, ffw)],
    }
    return llama_tensors(config, more=more)
