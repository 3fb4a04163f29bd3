"""Attention over a paged KV cache: interface in api.py, reference in reference.py."""

from pallas_kernels.paged_attention.api import BACKENDS as BACKENDS
from pallas_kernels.paged_attention.api import CACHE_DTYPES as CACHE_DTYPES
from pallas_kernels.paged_attention.api import attend as attend
from pallas_kernels.paged_attention.api import cache_spec as cache_spec
from pallas_kernels.paged_attention.api import choose as choose
from pallas_kernels.paged_attention.api import empty_cache as empty_cache
from pallas_kernels.paged_attention.api import workspace_bytes as workspace_bytes
from pallas_kernels.paged_attention.batch import AttentionConfig as AttentionConfig
from pallas_kernels.paged_attention.batch import CacheSpec as CacheSpec
from pallas_kernels.paged_attention.batch import PagedBatch as PagedBatch
from pallas_kernels.paged_attention.batch import make_batch as make_batch
from pallas_kernels.paged_attention.spec import AttentionSpec as AttentionSpec
from pallas_kernels.paged_attention.trial import WrongResult as WrongResult
from pallas_kernels.paged_attention.trial import self_check as self_check

__all__ = [
    "BACKENDS",
    "CACHE_DTYPES",
    "AttentionConfig",
    "AttentionSpec",
    "CacheSpec",
    "PagedBatch",
    "WrongResult",
    "attend",
    "cache_spec",
    "choose",
    "empty_cache",
    "make_batch",
    "self_check",
    "workspace_bytes",
]
