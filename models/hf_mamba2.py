"""Keys and tensors of Mamba2 mixers that families share."""

from collections.abc import Sequence

from jaxserve.errors import CheckpointError
from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import FULL
from jaxserve.models.mamba2 import Mamba2
from jaxserve.models.weights import Cut, Parts, Stored, Widths

MAMBA = "linear_attention"
# Older names of layer types.
_OLDER = {"mamba": MAMBA, "attention": FULL}


def read_kinds(
    reader: HfConfig, key: str, *, known: Sequence[str] = (MAMBA, FULL)
) -> tuple[str, ...] | None:
    """Return the type of each layer under their newer names, None if the key is absent."""
    words = reader.words(key)
    if words is None:
        return None
    kinds = tuple(_OLDER.get(word, word) for word in words)
    for kind, word in zip(kinds, words, strict=True):
        if kind not in known:
            raise CheckpointError(
                f"config.json has {key} with {word!r}; jaxserve supports {', '.join(known)}"
            )
    return kinds


def heads_of_groups(heads: int, groups: int, *, names: tuple[str, str]) -> int:
    """Return the heads of each group; raises CheckpointError naming the two keys."""
    if heads % groups:
        raise CheckpointError(
            f"{names[0]} must be a multiple of {names[1]}, got {heads} and {groups}"
        )
    return heads // groups


def mamba2_of(config: DecoderConfig) -> Mamba2 | None:
    """Return the description of the Mamba2 mixers of a model; None without any."""
    mixers = (layer.mixer for layer in config.layers)
    return next((mixer for mixer in mixers if isinstance(mixer, Mamba2)), None)


def mamba2_tensors(config: DecoderConfig, prefix: str) -> Parts:
    """Return the checkpoint tensors of a model's Mamba2 mixers; prefix: that of their names."""
    mixer = mamba2_of(config)
    if mixer is None:
        return {}
    heads, group = " ".join(mixer.head_axes), next(iter(mixer.group_axis))
    values = mixer.groups * mixer.heads * mixer.head_dim
    vectors = mixer.groups * mixer.state_dim
    conv = values + 2 * vectors
    total = values + conv + mixer.groups * mixer.heads

    def projected(kind: str, summed: str) -> Parts:
        """Return the parts of the input projection: gates, values, b, c and rates in this order."""
        name, suffix = f"{prefix}in_proj.{kind}", "_bias" if kind == "bias" else ""
        starts = [0, values, 2 * values, 2 * values + vectors, total - mixer.groups * mixer.heads]
        gate, value, b, c, rate = (Cut(start, total) for start in starts)
        rows = f"{heads} gate_value{summed}"
        return {
            f"attention.gate_value{suffix}": [Stored(name, rows, cut) for cut in (gate, value)],
            f"attention.bc{suffix}": [Stored(name, f"{group} bc{summed}", cut) for cut in (b, c)],
            f"attention.rate{suffix}": [Stored(name, f"{heads}{summed}", rate)],
        }

    def convolved(kind: str, taps: str) -> Parts:
        """Return the parts of the convolution: values, b and c in this order."""
        name, suffix = f"{prefix}conv1d.{kind}", "_bias" if kind == "bias" else ""
        return {
            f"attention.value_conv{suffix}": [
                Stored(name, f"{heads} head_dim{taps}", Cut(0, conv))
            ],
            f"attention.bc_conv{suffix}": [
                Stored(name, f"{group} bc{taps}", Cut(start, conv))
                for start in (values, values + vectors)
            ],
        }

    return {
        **projected("weight", ", embed"),
        **projected("bias", ""),
        **convolved("weight", ",,taps"),
        **convolved("bias", ""),
        "attention.log_speed": [(f"{prefix}A_log", heads)],
        "attention.step_bias": [(f"{prefix}dt_bias", heads)],
        "attention.skip": [(f"{prefix}D", heads)],
        "attention.norm_weight": [(f"{prefix}norm.weight", f"{heads} head_dim")],
        "attention.out": [(f"{prefix}out_proj.weight", f"embed, {heads} head_dim")],
        "attention.out_bias": [(f"{prefix}out_proj.bias", "embed")],
    }


def mamba2_widths(config: DecoderConfig) -> Widths:
    """Return the length of each tensor of a joined parameter of the Mamba2 mixers."""
    mixer = mamba2_of(config)
    if mixer is None:
        return {}
    return {"gate_value": (mixer.head_dim,) * 2, "bc": (mixer.state_dim,) * 2}
