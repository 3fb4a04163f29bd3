"""Cost terms of a layer; planning sums them over the layers of a model."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """FLOPs and bytes of one layer on one device.

    token_flops: per token. pair_flops: per attended pair of a query and a key. key_bytes: stored
    per token, and read per attended key. sliding_window: keys that a query attends to, itself
    included; None means all. state_bytes: recurrent state of a sequence, read and written by every
    step.
    """

    token_flops: int
    pair_flops: int
    key_bytes: int
    sliding_window: int | None
    state_bytes: int = 0
