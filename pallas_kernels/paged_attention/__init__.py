"""Attention over a paged KV cache: contract in api.py, definition of correct in reference.py."""

from pallas_kernels.paged_attention.api import BACKENDS as BACKENDS
from pallas_kernels.paged_attention.api import attend as attend
from pallas_kernels.paged_attention.api import cache_spec as cache_spec
from pallas_kernels.paged_attention.api import workspace_bytes as workspace_bytes
from pallas_kernels.paged_attention.batch import CacheSpec as CacheSpec
from pallas_kernels.paged_attention.batch import PagedBatch as PagedBatch

__all__ = ["BACKENDS", "CacheSpec", "PagedBatch", "attend", "cache_spec", "workspace_bytes"]
