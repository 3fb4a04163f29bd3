"""Device kernels for inference with JAX: each op has a plain-JAX reference and faster backends.

from pallas_kernels import paged_attention

cache = jnp.zeros(*paged_attention.cache_spec(...).shape_and_dtype)
out, cache = paged_attention.attend(q, k, v, cache, batch, scale=head_dim**-0.5)
"""

from pallas_kernels import paged_attention as paged_attention
from pallas_kernels.dispatch import Unsupported as Unsupported

__all__ = ["Unsupported", "paged_attention"]
