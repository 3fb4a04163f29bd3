"""Mixture of experts: a router selects the feed-forwards that compute each token."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxserve.layers.activation import SWIGLU, Gated, Ungated
from jaxserve.layers.experts import expert_feed_forward
from jaxserve.layers.linear import einsum
from jaxserve.layers.routing import Routing
from jaxserve.models.config import Dense, ModelConfig
from jaxserve.models.declare import matrix, normal, spec_of, zeros
from jaxserve.models.forward import ForwardContext
from jaxserve.models.work import ExpertWork
from jaxserve.quantization.matrix import matrices


@dataclass(frozen=True, kw_only=True)
class MixtureOfExperts:
    """Feed-forward of experts selected per token (Shazeer et al., 2017, arXiv:1701.06538).

    ffw: inner width of each expert. embed: width of the residual stream. is_gated: experts have a
    gate, which the activation takes. bias: experts have biases. shared: feed-forward of every
    token, added to the experts. shared_gate: multiply its output by a sigmoid gate. latent: width
    of a projection of the residual stream that the experts read and write; None for the stream
    itself. expert_devices: devices that have different experts; each computes all of their `ffw`.
    """

    routing: Routing
    embed: int
    ffw: int
    activation: Gated | Ungated = SWIGLU
    is_gated: bool = True
    bias: bool = False
    shared: Dense | None = None
    shared_gate: bool = False
    latent: int | None = None
    expert_devices: int = 1

    @property
    def module(self) -> Callable[[Any, Any], Any]:
        """See FeedForward."""
        return MoE

    def fitted(self, expert_devices: int) -> "MixtureOfExperts":
        """See FeedForward."""
        return replace(self, expert_devices=expert_devices)

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """See FeedForward: each expert's input, gate, up projection, their product, and output."""
        of_ffw = 3 * (self.ffw * self.expert_devices // devices)
        widths = 2 * (self.latent or self.embed) + of_ffw
        shared = self.shared.row_bytes(devices=devices, itemsize=itemsize) if self.shared else 0
        # Logits and scores of the router are float32.
        return self.routing.top_k * widths * itemsize + 8 * self.routing.num_experts + shared

    def experts(self, params: Any) -> ExpertWork:
        """See FeedForward."""
        own = params["experts"]
        stacks = matrices([own[name] for name in ("gate", "up", "down") if name in own])
        return ExpertWork(
            num_experts=self.routing.num_experts,
            top_k=self.routing.top_k,
            num_weights=sum(stack.num_weights for stack in stacks),
            num_bytes=sum(stack.num_bytes for stack in stacks),
        )


class MoE(nnx.Module):
    """Router, routed experts and shared expert; see MixtureOfExperts."""

    def __init__(self, config: ModelConfig, feed_forward: MixtureOfExperts) -> None:
        """Declare the parts."""
        self.router = Router(config, feed_forward.routing)
        self.experts = Experts(config, feed_forward)
        shared = feed_forward.shared
        self.shared: Any = None if shared is None else shared.module(config, shared)
        self.shared_gate = normal(embed=config.embed) if feed_forward.shared_gate else None
        d, latent = config.embed, feed_forward.latent
        self.latent_in = matrix("embed", embed=d, latent=latent) if latent else None
        self.latent_out = matrix("latent", latent=latent, embed=d) if latent else None

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], context: ForwardContext[Cache]
    ) -> Float[Array, "tokens embed"]:
        """Return the update of the residual stream."""
        experts, weights = self.router(x, context.under("router"))
        own = x
        if self.latent_in is not None:
            own = einsum("td,dl->tl", x, self.latent_in[...], context.rows)
        out = self.experts(own, experts, weights, context)
        if self.latent_out is not None:
            out = einsum("tl,ld->td", out, self.latent_out[...], context.rows)
        if self.shared is None:
            return out
        shared = self.shared(x, context.under("shared"))
        if self.shared_gate is not None:
            logits = jnp.einsum("td,d->t", x, self.shared_gate[...])
            shared *= jax.nn.sigmoid(logits)[:, None]
        total: Array = out + shared
        return total


class Router(nnx.Module):
    """Linear router in float32; see Routing."""

    def __init__(self, config: ModelConfig, routing: Routing) -> None:
        """Declare the projection, and the biases if the family has them."""
        self.routing = routing
        num_experts = routing.num_experts
        self.weight = normal(embed=config.embed, experts=num_experts)
        self.bias = zeros(experts=num_experts) if routing.bias else None
        has_correction = routing.correction_bias
        # Its differences are small next to the scores.
        self.correction_bias = zeros("float32", experts=num_experts) if has_correction else None

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], context: ForwardContext[Cache]
    ) -> tuple[Int[Array, "tokens top_k"], Float[Array, "tokens top_k"]]:
        """Return the experts of each token, best first, and their weights."""
        with jax.named_scope("router"):
            logits = einsum("td,de->te", x, self.weight[...], context.rows, dtype=jnp.float32)
            if self.bias is not None:
                logits += self.bias[...].astype(jnp.float32)
            logits = context.tap("logits", logits)
            correction = None if self.correction_bias is None else self.correction_bias[...]
            experts, weights = self.routing(logits, correction)
            return context.tap("experts", experts), context.tap("weights", weights)


class Experts(nnx.Module):
    """Stacked feed-forwards, of which each token passes through a few."""

    def __init__(self, config: ModelConfig, feed_forward: MixtureOfExperts) -> None:
        """Declare the stacks, and biases if the family has them."""
        self.activation = feed_forward.activation
        e, f = feed_forward.routing.num_experts, feed_forward.ffw
        d, is_gated = feed_forward.latent or config.embed, feed_forward.is_gated

        def inner() -> nnx.Param[Array]:
            return matrix("embed", stacked="experts", experts=e, embed=d, ffw=f)

        # Apart, because the grouped kernel of TPUs takes matrices of one output axis as they are.
        self.gate = inner() if is_gated else None
        self.up = inner()
        self.down = matrix("ffw", stacked="experts", experts=e, ffw=f, embed=d)
        bias = feed_forward.bias
        self.gate_bias = zeros(experts=e, ffw=f) if bias and is_gated else None
        self.up_bias = zeros(experts=e, ffw=f) if bias else None
        self.down_bias = zeros(experts=e, embed=d) if bias else None

    def __call__[Cache](
        self,
        x: Float[Array, "tokens embed"],
        experts: Int[Array, "tokens top_k"],
        weights: Float[Array, "tokens top_k"],
        context: ForwardContext[Cache],
    ) -> Float[Array, "tokens embed"]:
        """Return the weighted sum of the experts' outputs; zeros for padding without a bias."""
        optional = {"gate": self.gate, "gate_bias": self.gate_bias, "up_bias": self.up_bias}
        own = {"up": self.up, "down": self.down}
        own |= {name: param for name, param in optional.items() if param is not None}
        with jax.named_scope("experts"):
            num_rows = context.rows.num_rows
            is_live = True if num_rows is None else jnp.arange(x.shape[0])[:, None] < num_rows
            out = expert_feed_forward(
                x,
                jnp.where(is_live, experts, spec_of(self.down).sizes["experts"]),
                weights,
                {name: param[...] for name, param in own.items()},
                {name: spec_of(param) for name, param in own.items()},
                activation=self.activation,
            )
            if self.down_bias is None:
                return out
            biases = self.down_bias[...][experts]
            return out + jnp.einsum("tk,tkd->td", weights, biases).astype(out.dtype)
