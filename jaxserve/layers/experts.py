"""Feed-forward of routed experts: rows sorted by expert, multiplied, and summed per token."""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxserve.layers.activation import Gated, Ungated
from jaxserve.layers.linear import grouped
from jaxserve.parallel.sharding import ShardingPlan
from jaxserve.quantization.matrix import WeightSpec, partition


def expert_feed_forward(
    x: Float[Array, "tokens embed"],
    experts: Int[Array, "tokens top_k"],
    weights: Float[Array, "tokens top_k"],
    params: Mapping[str, Any],
    specs: Mapping[str, WeightSpec],
    *,
    activation: Gated | Ungated,
) -> Float[Array, "tokens embed"]:
    """Return the weighted sum of the outputs of each token's experts.

    experts: numbers of the experts; numbers out of range, such as those of padding, add nothing.
    params: `gate` and `up` [experts, embed, ffw], `down` [experts, ffw, embed], and optionally
    `gate_bias` and `up_bias` [experts, ffw]; no `gate` if the activation is ungated. specs: their
    axes. On the mesh of `jax.set_mesh`, each
    device computes its own experts and its own part of `ffw`.
    """
    num_experts = specs["down"].sizes["experts"]
    run = partial(_local, num_experts=num_experts, activation=activation)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(x, experts, weights, params)
    plan = ShardingPlan(cast(Mesh, mesh))  # abstract, which the specs do not need
    run = partial(
        _on_device,
        plan=plan,
        num_experts=num_experts // plan.num_shards("experts"),
        activation=activation,
    )
    whole = PartitionSpec()
    places = {name: partition(param, specs[name], plan) for name, param in params.items()}
    out: Array = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(whole, whole, whole, places),
        out_specs=whole,
        check_vma=False,
    )(x, experts, weights, params)
    return out


def _on_device(
    x: Array,
    experts: Array,
    weights: Array,
    params: Mapping[str, Any],
    *,
    plan: ShardingPlan,
    num_experts: int,
    activation: Gated | Ungated,
) -> Array:
    """Compute the share of one device, and add those of all."""
    own = plan.mesh_axes("experts")
    if own:
        experts = experts - lax.axis_index(own) * num_experts
    out = _local(x, experts, weights, params, num_experts=num_experts, activation=activation)
    axes = tuple(dict.fromkeys((*own, *plan.mesh_axes("ffw"))))
    return lax.psum(out, axes) if axes else out


def _local(
    x: Array,
    experts: Array,
    weights: Array,
    params: Mapping[str, Any],
    *,
    num_experts: int,
    activation: Gated | Ungated,
) -> Array:
    """Compute the experts from 0 to `num_experts`."""
    num_tokens, top_k = experts.shape
    flat = experts.reshape(-1)
    flat = jnp.where((flat >= 0) & (flat < num_experts), flat, num_experts)
    order = jnp.argsort(flat)
    sizes = jnp.sum(flat[:, None] == jnp.arange(num_experts), axis=0)
    rows, owners = x[order // top_k], flat[order]

    def project(name: str) -> Array:
        out = grouped(rows, params[name], sizes)
        bias = params.get(f"{name}_bias")
        return out if bias is None else out + jnp.take(bias, owners, axis=0, mode="clip")

    inner = activation(*(project(name) for name in ("gate", "up") if name in params))
    out = grouped(inner, params["down"], sizes)
    places = jnp.zeros_like(order).at[order].set(jnp.arange(order.size), unique_indices=True)
    of_tokens = out[places].reshape(num_tokens, top_k, -1)
    total = jnp.einsum("tk,tkd->td", weights, of_tokens, preferred_element_type=jnp.float32)
    return total.astype(x.dtype)
