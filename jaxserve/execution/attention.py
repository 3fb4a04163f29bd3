"""Select and check the attention backend for a model."""

from dataclasses import dataclass, replace

from jaxserve.api.caches import KeyValuePages
from jaxserve.errors import ConfigError, KernelError
from jaxserve.models import ModelConfig
from pallas_kernels import Unsupported, paged_attention
from pallas_kernels.dispatch import Choice
from pallas_kernels.paged_attention import AttentionConfig, CacheSpec
from pallas_kernels.targets import Target

REFERENCE = "reference"
# Not checked at startup: portable code that the tests cover.
_NEED_NO_CHECK = (REFERENCE, "cpu")


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Attention backend, configurations and target of a model.

    configs: the distinct attention configurations among the layers, as one of `devices` sees them.
    """

    configs: tuple[AttentionConfig, ...]
    choice: Choice
    target: Target
    devices: int = 1

    @property
    def backend(self) -> str:
        """Name of the backend that computes every layer."""
        return self.choice.backend

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.configs[0].page_size

    @property
    def dtype(self) -> str:
        """Dtype of queries and outputs."""
        return self.configs[0].dtype

    def cache_spec(self, pages: KeyValuePages, num_pages: int) -> CacheSpec:
        """Describe one layer's cache, across all devices."""
        devices = 1 if pages.is_replicated else self.devices
        config = next(
            config
            for config in self.configs
            if KeyValuePages(config.kv_heads * devices, config.head_dim, config.value_dim) == pages
        )
        spec = paged_attention.cache_spec(
            config, num_pages=num_pages, devices=devices, backend=self.backend
        )
        if not pages.is_replicated:
            return spec
        # An axis that no sharding rule names.
        return replace(spec, axes=tuple("" if word == "kv_heads" else word for word in spec.axes))

    def workspace_bytes(self, *, num_tokens: int, num_sequences: int, max_query_length: int) -> int:
        """Estimate the size of one layer's temporaries in bytes, on one device."""
        return max(
            paged_attention.workspace_bytes(
                config,
                self.target,
                num_tokens=num_tokens,
                num_sequences=num_sequences,
                max_query_length=max_query_length,
                backend=self.backend,
            )
            for config in self.configs
        )


def check_attention(plan: AttentionPlan) -> None:
    """Compare the backend with the reference on a small case of each config.

    Raises KernelError if the results differ.
    """
    if plan.backend in _NEED_NO_CHECK:
        return
    for config in plan.configs:
        try:
            paged_attention.self_check(config, backend=plan.backend, target=plan.target)
        except paged_attention.WrongResult as error:
            raise KernelError(
                f"{str(error).capitalize()}. Use --attention-backend {REFERENCE}, which is slow,"
                " and report this with the versions of JAX and of the driver"
            ) from error


def plan_attention(
    model: ModelConfig,
    *,
    dtype: str,
    cache_dtype: str,
    page_size: int,
    target: Target,
    devices: int = 1,
    backend: str | None = None,
) -> AttentionPlan:
    """Select the attention backend for `model`, with its heads sharded over `devices`.

    backend: the backend to use, None for the best supported one. Raises ConfigError if no backend
    supports the model, if it has no attention, or if the heads do not divide by `devices`.
    """
    mixers = dict.fromkeys(layer.mixer for layer in model.layers)
    for mixer in mixers:
        undivided = mixer.divides(devices)
        if undivided is not None:
            raise ConfigError(
                f"tensor_parallel_size must divide the model's {undivided}, got {devices}"
            )
    asked = (
        mixer.attention(devices=devices, page_size=page_size, dtype=dtype, cache_dtype=cache_dtype)
        for mixer in mixers
    )
    configs = tuple(dict.fromkeys(config for config in asked if config is not None))
    if not configs:
        raise ConfigError("a model must have at least one layer of attention to be served, got 0")
    if backend is not None and backend not in paged_attention.BACKENDS:
        raise ConfigError(
            f"attention_backend must be one of {', '.join(paged_attention.BACKENDS)},"
            f" got {backend!r}"
        )
    try:
        choice = paged_attention.choose(*configs, target=target, backend=backend)
    except Unsupported as error:
        raise ConfigError(f"This model's attention cannot run on {target.name}: {error}") from error
    return AttentionPlan(configs=configs, choice=choice, target=target, devices=devices)
