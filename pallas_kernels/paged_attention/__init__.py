"""Attention over a paged KV cache: contract in api.py, definition of correct in reference.py."""

from pallas_kernels.paged_attention.api import BACKENDS as BACKENDS
from pallas_kernels.paged_attention.api import CACHE_DTYPES as CACHE_DTYPES
from pallas_kernels.paged_attention.api import attend as attend
from pallas_kernels.paged_attention.api import cache_spec as cache_spec
from pallas_kernels.paged_attention.api import choose as choose
from pallas_kernels.paged_attention.api import workspace_bytes as workspace_bytes
from pallas_kernels.paged_attention.batch import AttentionConfig as AttentionConfig
from pallas_kernels.paged_attention.batch import CacheSpec as CacheSpec
from pallas_kernels.paged_attention.batch import PagedBatch as PagedBatch

__all__ = [
    "BACKENDS",
    "CACHE_DTYPES",
    "AttentionConfig",
    "CacheSpec",
    "PagedBatch",
    "attend",
    "cache_spec",
    "choose",
    "workspace_bytes",
]
