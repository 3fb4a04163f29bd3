"""Keys and tensors that families with mixtures of experts share."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from jaxserve.errors import CheckpointError
from jaxserve.layers.routing import Routing
from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.moe import MixtureOfExperts
from jaxserve.models.weights import LAYER, Cut, Parts, Stored


def read_routing(
    reader: HfConfig, *, num_experts: str, top_k: str = "num_experts_per_tok", **fixed: Any
) -> Routing:
    """Read the sizes of a router. fixed: other fields of Routing.

    num_experts, top_k: the family's keys. transformers may write `num_local_experts` instead of the
    first.
    """
    keys = [key for key in (num_experts, "num_local_experts") if reader.has(key)] or [num_experts]
    count, chosen = reader.integer(keys[0]), reader.integer(top_k)
    if chosen > count:
        raise CheckpointError(f"{top_k} must be at most {keys[0]} ({count}), got {chosen}")
    routing = Routing(num_experts=count, top_k=chosen, **fixed)
    if count % routing.groups or routing.top_groups > routing.groups:
        raise CheckpointError(
            f"n_group must divide {keys[0]} ({count}) and be at least topk_group"
            f" ({routing.top_groups}), got {routing.groups}"
        )
    eligible = count // routing.groups * routing.top_groups
    if routing.groups > 1 and chosen > eligible:
        raise CheckpointError(
            f"{top_k} must be at most the {eligible} experts of topk_group groups, got {chosen}"
        )
    return routing


def with_experts(
    config: DecoderConfig, experts: MixtureOfExperts, *, dense_layers: Collection[int] = ()
) -> DecoderConfig:
    """Return the model with experts in all layers but `dense_layers`."""
    layers = tuple(
        layer if i in dense_layers else replace(layer, feed_forward=experts)
        for i, layer in enumerate(config.layers)
    )
    return replace(config, layers=layers)


def expert_tensors(
    prefix: str = "mlp.", *, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> Parts:
    """Return the checkpoint tensors of a router and of experts stored one by one."""
    expert = f"{prefix}experts.{{experts}}."
    return {
        "mlp.router.weight": [(f"{prefix}gate.weight", "experts, embed")],
        "mlp.experts.gate": [(f"{expert}{gate}.weight", "ffw, embed")],
        "mlp.experts.up": [(f"{expert}{up}.weight", "ffw, embed")],
        "mlp.experts.down": [(f"{expert}{down}.weight", "embed, ffw")],
    }


def stacked_tensors(config: DecoderConfig, prefix: str = "mlp.") -> Parts:
    """Return the checkpoint tensors of experts stored as stacks, gate and up projection joined."""
    parts = [layer.feed_forward for layer in config.layers]
    ffw = next((part.ffw for part in parts if isinstance(part, MixtureOfExperts)), 0)
    stack = (f"{prefix}experts.gate_up_proj", "experts, ffw, embed")
    return {
        "mlp.experts.gate": [Stored(*stack, cut=Cut(0, 2 * ffw, dim=1))],
        "mlp.experts.up": [Stored(*stack, cut=Cut(ffw, 2 * ffw, dim=1))],
        "mlp.experts.down": [(f"{prefix}experts.down_proj", "experts, embed, ffw")],
    }


def shared_tensors(prefix: str = "mlp.shared_experts.") -> Parts:
    """Return the checkpoint tensors of a shared expert."""
    return {
        path.replace("mlp.", "mlp.shared."): [
            (name.replace("mlp.", prefix), dims) for name, dims, *_ in LAYER[path]
        ]
        for path in ("mlp.gate_up", "mlp.down", "mlp.gate_up_bias", "mlp.down_bias")
    }
