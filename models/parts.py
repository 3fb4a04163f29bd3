"""Interfaces of the two parts of a layer's description."""

from collections.abc import Callable
from typing import Any, Protocol

from jaxserve.api.caches import LayerCache, Shared
from jaxserve.layers.rope import Rope
from jaxserve.models.work import ExpertWork
from pallas_kernels.paged_attention import AttentionConfig


class Mixer(Protocol):
    """Description of the part of a layer that mixes the tokens of a sequence."""

    @property
    def module(self) -> Callable[[Any, Any], Any]:
        """Module to create, called with the model's description and this one."""
        ...

    @property
    def sliding_window(self) -> int | None:
        """Tokens that a query attends to, itself included; None means all earlier ones."""
        ...

    @property
    def rope(self) -> Rope | None:
        """Rotary embedding; None if the mixer has none."""
        ...

    @property
    def cache(self) -> LayerCache | Shared:
        """Kind of cache that the layer uses."""
        ...

    @property
    def stored(self) -> "Mixer":
        """The mixer as stored in a checkpoint, before `fitted`."""
        ...

    def fitted(self, devices: int) -> "Mixer":
        """Return the mixer with KV heads replicated as needed for `devices`."""
        ...

    def divides(self, devices: int) -> str | None:
        """Return the size that does not divide by `devices`, None if all divide."""
        ...

    def attention(
        self, *, devices: int, page_size: int, dtype: str, cache_dtype: str
    ) -> AttentionConfig | None:
        """Return the paged attention config of one device; None if the mixer has none."""
        ...

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """Return bytes of temporaries per token on one device, without the kernel's."""
        ...

    def pair_flops(self, *, devices: int) -> int:
        """Return FLOPs on one device per attended pair of a query and a key."""
        ...

    def key_bytes(self, *, devices: int, itemsize: int) -> int:
        """Return cache bytes per token on one device."""
        ...


class FeedForward(Protocol):
    """Description of the part of a layer that transforms each token separately."""

    @property
    def module(self) -> Callable[[Any, Any], Any]:
        """Module to create, called with the model's description and this one."""
        ...

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """Return bytes of temporaries per token on one device."""
        ...

    def experts(self, params: Any) -> ExpertWork | None:
        """Return the work of routed experts with these (abstract) parameters; None without any."""
        ...
