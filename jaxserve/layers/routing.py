"""Routing of tokens to the experts of a mixture."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How a token selects `top_k` of `num_experts` experts, and the weights of their outputs.

    scoring: function from logits to scores; with "softmax" over all experts and `renormalize` it is
    a softmax over the selected ones. bias: logits have a bias. renormalize: divide the selected
    scores by their sum, or by `least_sum` if that is greater. scaling_factor: factor of the
    weights.

    correction_bias: the selection adds a bias to the scores, the weights do not (Wang et al., 2024,
    arXiv:2408.15664). groups: experts are divided into this many groups, and only the `top_groups`
    best ones are eligible. A group's score is the sum of its `group_experts` best scores (DeepSeek,
    2024, arXiv:2412.19437).
    """

    num_experts: int
    top_k: int
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    bias: bool = False
    renormalize: bool = True
    least_sum: float = 1e-20
    scaling_factor: float = 1.0
    correction_bias: bool = False
    groups: int = 1
    top_groups: int = 1
    group_experts: int = 2

    def __call__(
        self,
        logits: Float[Array, "tokens experts"],
        correction_bias: Float[Array, " experts"] | None = None,
    ) -> tuple[Int[Array, "tokens top_k"], Float[Array, "tokens top_k"]]:
        """Return the selected experts of each token, best first, and float32 weights."""
        logits = logits.astype(jnp.float32)
        scores = jax.nn.sigmoid(logits) if self.scoring == "sigmoid" else jax.nn.softmax(logits)
        ranks = scores if correction_bias is None else scores + correction_bias
        if self.groups > 1:
            ranks = self._within_top_groups(ranks)
        experts = lax.top_k(ranks, self.top_k)[1]
        weights = jnp.take_along_axis(scores, experts, axis=-1)
        if self.renormalize:
            weights /= jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), self.least_sum)
        return experts, weights * self.scaling_factor

    def _within_top_groups(
        self, ranks: Float[Array, "tokens experts"]
    ) -> Float[Array, "tokens experts"]:
        """Return the ranks with those of other groups at -inf."""
        grouped = ranks.reshape(ranks.shape[0], self.groups, -1)
        of_groups = jnp.sum(lax.top_k(grouped, self.group_experts)[0], axis=-1)
        best = lax.top_k(of_groups, self.top_groups)[1]
        is_best = jnp.any(best[:, :, None] == jnp.arange(self.groups), axis=1)
        return jnp.where(is_best[:, :, None], grouped, -jnp.inf).reshape(ranks.shape)
