"""Causal depthwise convolution over packed sequences, continued from step to step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxserve.layers.recurrent import States


def causal_conv(
    x: Float[Array, "tokens *channels"],
    weight: Float[Array, "*channels taps"],
    tail: Float[Array, "sequences earlier *channels"],
    states: States,
) -> tuple[Float[Array, "tokens *channels"], Float[Array, "sequences earlier *channels"]]:
    """Convolve each channel of each sequence with its own taps; the last tap meets the token.

    tail: the taps - 1 inputs before this step, the oldest first; zeros for new sequences. Returns
    the float32 results, and the tail after this step.
    """
    taps = jnp.moveaxis(weight.astype(jnp.float32), -1, 0)
    x = x.astype(jnp.float32)
    num_earlier = tail.shape[1]
    with jax.named_scope("causal_conv"):
        if x.shape[0] == tail.shape[0]:  # one token of each sequence
            window = jnp.concatenate([tail, x[:, None]], axis=1)
            return (window * taps).sum(axis=1), window[:, 1:]
        starts = states.query_starts
        first, lengths = starts[:-1], jnp.diff(starts)
        first_of_row = jnp.take(first, states.row_sequences, mode="clip")
        offsets = (jnp.arange(x.shape[0]) - first_of_row).reshape(-1, *[1] * (x.ndim - 1))
        out = x * taps[-1]
        for lag in range(1, num_earlier + 1):
            earlier = jnp.where(offsets >= lag, jnp.roll(x, lag, axis=0), 0)
            out += earlier * taps[-1 - lag]
        for offset in range(num_earlier):
            # Earlier inputs that the token at this offset of each sequence sees.
            seen = (tail[:, offset:] * taps[: num_earlier - offset]).sum(axis=1)
            rows = jnp.where(offset < lengths, first + offset, x.shape[0])
            out = out.at[rows].add(seen, mode="drop")
        # Positions of the new tail in (tail, inputs of this step).
        kept = lengths[:, None] + jnp.arange(num_earlier)
        from_step = jnp.take(x, first[:, None] + kept - num_earlier, axis=0, mode="clip")
        index = jnp.minimum(kept, num_earlier - 1).reshape(*kept.shape, *[1] * (x.ndim - 1))
        from_tail = jnp.take_along_axis(tail, index, axis=1)
        is_new = (kept >= num_earlier).reshape(index.shape)
        return out, jnp.where(is_new, from_step, from_tail)
