"""Feed-forward modules."""

from flax import nnx
from jaxtyping import Array, Float

from jaxserve.layers.activation import ACTIVATIONS, Glu
from jaxserve.layers.linear import einsum
from jaxserve.models.attention import plus
from jaxserve.models.config import Dense, ModelConfig
from jaxserve.models.declare import matrix, zeros
from jaxserve.models.forward import ForwardContext


class MLP(nnx.Module):
    """Gated MLP: down(activation(gate(x)) * up(x)) (Shazeer, 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, feed_forward: Dense) -> None:
        """Declare the projections, and biases if the family has them."""
        d, f, bias = config.embed, feed_forward.ffw, feed_forward.bias
        self.activation = Glu(feed_forward.activation)
        self.gate_up = matrix("embed", embed=d, gate_up=2, ffw=f)
        self.down = matrix("ffw", ffw=f, embed=d)
        self.gate_up_bias = zeros(gate_up=2, ffw=f) if bias else None
        self.down_bias = zeros(embed=d) if bias else None

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], context: ForwardContext[Cache]
    ) -> Float[Array, "tokens embed"]:
        """Return the update of the residual stream."""
        rows = context.rows
        gate_up = plus(einsum("td,dpf->tpf", x, self.gate_up[...], rows), self.gate_up_bias)
        active = context.tap("active", self.activation(gate_up[:, 0], gate_up[:, 1]))
        return plus(einsum("tf,fd->td", active, self.down[...], rows), self.down_bias)


class UngatedMLP(nnx.Module):
    """MLP without a gate: down(activation(up(x)))."""

    def __init__(self, config: ModelConfig, feed_forward: Dense) -> None:
        """Declare the projections, and biases if the family has them."""
        d, f, bias = config.embed, feed_forward.ffw, feed_forward.bias
        self.activation = feed_forward.activation
        self.up = matrix("embed", embed=d, ffw=f)
        self.down = matrix("ffw", ffw=f, embed=d)
        self.up_bias = zeros(ffw=f) if bias else None
        self.down_bias = zeros(embed=d) if bias else None

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], context: ForwardContext[Cache]
    ) -> Float[Array, "tokens embed"]:
        """Return the update of the residual stream."""
        wide = plus(einsum("td,df->tf", x, self.up[...], context.rows), self.up_bias)
        active = context.tap("active", ACTIVATIONS[self.activation](wide))
        return plus(einsum("tf,fd->td", active, self.down[...], context.rows), self.down_bias)
