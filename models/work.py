"""Cost terms of a layer; planning sums them over the layers of a model."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExpertWork:
    """Experts of one layer on one device, and the share of them that tokens use.

    top_k: experts of each token. num_weights, num_bytes: weights of all experts.
    """

    num_experts: int
    top_k: int
    num_weights: int
    num_bytes: int

    @property
    def idle_share(self) -> float:
        """Share of the experts that a token does not use."""
        return 1 - self.top_k / self.num_experts


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """FLOPs and bytes of one layer on one device.

    token_flops: per token. pair_flops: per attended pair of a query and a key. key_bytes: stored
    per token, and read per attended key. sliding_window: keys that a query attends to, itself
    included; None means all. state_bytes: recurrent state of a sequence, read and written by every
    step. experts: None for a feed-forward without experts.
    """

    token_flops: int
    pair_flops: int
    key_bytes: int
    sliding_window: int | None
    state_bytes: int = 0
    experts: ExpertWork | None = None
