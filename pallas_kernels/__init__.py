"""Pallas kernels for inference, one folder per operation.

from pallas_kernels import paged_attention

spec = paged_attention.cache_spec(config, num_pages=1024, backend=backend)
cache = jnp.zeros(spec.shape, spec.dtype)
layer = paged_attention.AttentionSpec(scale=head_dim**-0.5)
out, cache = paged_attention.attend(q, k, v, cache, batch, layer)
"""

from pallas_kernels import paged_attention as paged_attention
from pallas_kernels.dispatch import Unsupported as Unsupported

__all__ = ["Unsupported", "paged_attention"]
