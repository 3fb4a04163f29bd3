"""Interfaces of the two parts of a layer's description, and parts that layers may lack."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from jaxserve.api.caches import CacheSpec, Uncached
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
    def cache(self) -> CacheSpec:
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

    def fitted(self, expert_devices: int) -> "FeedForward":
        """Return the feed-forward with its experts, if any, distributed over devices."""
        ...

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """Return bytes of temporaries per token on one device."""
        ...

    def experts(self, params: Any) -> ExpertWork | None:
        """Return the work of routed experts with these (abstract) parameters; None without any."""
        ...


class WithoutAttention:
    """Base of mixers that do not attend to earlier tokens, such as recurrences; see Mixer."""

    sliding_window: ClassVar[None] = None
    rope: ClassVar[None] = None

    @property
    def stored(self) -> Self:
        """See Mixer."""
        return self

    def fitted(self, devices: int) -> Self:
        """See Mixer. States are divided, never replicated."""
        del devices
        return self

    def attention(self, **_device: object) -> None:
        """See Mixer."""

    def pair_flops(self, *, devices: int) -> int:
        """See Mixer."""
        del devices
        return 0

    def key_bytes(self, *, devices: int, itemsize: int) -> int:
        """See Mixer."""
        del devices, itemsize
        return 0


@dataclass(frozen=True)
class NoMixer(WithoutAttention):
    """Mixer of a layer that is a feed-forward only. Its block creates no module of it."""

    cache: ClassVar[Uncached] = Uncached()

    def module(self, config: Any, mixer: Any) -> None:
        """See Mixer."""

    def divides(self, devices: int) -> None:
        """See Mixer."""

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """See Mixer."""
        del devices, itemsize
        return 0


@dataclass(frozen=True)
class NoFeedForward:
    """Feed-forward of a layer that is a mixer only. Its block creates no module of it."""

    def module(self, config: Any, feed_forward: Any) -> None:
        """See FeedForward."""

    def fitted(self, expert_devices: int) -> "NoFeedForward":
        """See FeedForward."""
        del expert_devices
        return self

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """See FeedForward."""
        del devices, itemsize
        return 0

    def experts(self, params: Any) -> None:
        """See FeedForward."""
