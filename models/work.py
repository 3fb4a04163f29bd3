"""What a layer costs: the terms that planning adds up over the layers of a model."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """FLOPs and bytes of one layer on one device, by what they grow with.

    token_flops: for each token. pair_flops: for each pair of a query and a key that it sees.
    key_bytes: kept of each token, and read of each key that is seen. sliding_window: keys that a
    query sees, itself included; None is all before it. state_bytes: of the state of a sequence,
    which every step reads and writes.
    """

    token_flops: int
    pair_flops: int
    key_bytes: int
    sliding_window: int | None
    state_bytes: int = 0
