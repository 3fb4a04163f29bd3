"""Descriptions of Gemma 4's model, attention and experts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxserve.api.caches import CacheSpec, Shared
from jaxserve.models.config import DecoderConfig, Dense, GroupedQuery
from jaxserve.models.moe import MixtureOfExperts

HIDDEN_ACT = "gelu_pytorch_tanh"


@dataclass(frozen=True, kw_only=True)
class Gemma4Query(GroupedQuery):
    """Grouped-query attention of Gemma 4.

    keys_are_values: values are the keys before their norm and rotation. shares: the layer whose
    keys and values this one uses; None if it has its own.
    """

    keys_are_values: bool = False
    shares: int | None = None

    @property
    def cache(self) -> CacheSpec:
        """See Mixer."""
        return super().cache if self.shares is None else Shared(self.shares)


@dataclass(frozen=True, kw_only=True)
class Gemma4Experts(MixtureOfExperts):
    """Experts beside a dense feed-forward, each with norms of its own.

    parallel: module that adds the two, called like any feed-forward.
    """

    dense: Dense
    parallel: Callable[[Any, "Gemma4Experts"], Any]

    @property
    def module(self) -> Callable[[Any, Any], Any]:
        """See FeedForward."""
        return self.parallel

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """See FeedForward."""
        dense = self.dense.row_bytes(devices=devices, itemsize=itemsize)
        return dense + super().row_bytes(devices=devices, itemsize=itemsize)


@dataclass(frozen=True, kw_only=True)
class Gemma4Config(DecoderConfig):
    """Description of a Gemma 4 decoder. input_width: width of each layer's input; 0 means none."""

    input_width: int
