"""Configuration of an engine's scheduler and cache, complete and frozen."""

from dataclasses import dataclass
from math import inf, sqrt

from jaxserve.api.caches import CacheGroup, PagedGroup
from jaxserve.errors import ConfigError

POLICIES = ("fcfs", "priority")
DEFAULT_MAX_LOGPROBS = 20
DEFAULT_MAX_QUEUED_REQUESTS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Size of the pages and pools, and the cache groups.

    num_pages: number of pages of each pool, including the null page. page_size: tokens per page.
    groups: see `api/caches.py`.
    """

    num_pages: tuple[int, ...]
    page_size: int
    groups: tuple[CacheGroup, ...]
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        for num_pages in self.num_pages:
            if num_pages < 2:
                raise ConfigError(
                    f"num_pages must be at least 2 (page 0 is padding), got {num_pages}"
                )
        _check_positive("page_size", self.page_size)

    @property
    def max_concurrency(self) -> float:
        """Number of sequences of maximum length whose pages fit at once."""
        needed = [
            sum(group.max_pages for group in self.groups if group.pool == pool)
            for pool in range(len(self.num_pages))
        ]
        # Page 0 is padding.
        return min(
            (total - 1) / count
            for total, count in zip(self.num_pages, needed, strict=True)
            if count
        )

    @staticmethod
    def paged(
        *, num_pages: int, page_size: int, enable_prefix_caching: bool = True
    ) -> "CacheConfig":
        """Return the configuration for a model whose layers all keep every token."""
        return CacheConfig(
            num_pages=(num_pages,),
            page_size=page_size,
            groups=(PagedGroup(max_pages=num_pages - 1),),
            enable_prefix_caching=enable_prefix_caching,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkModel:
    """Cost model of a step, as the scheduler needs it.

    The unit is the time of one token's matrix products in a large step.

    free_tokens: tokens that can be computed in the time of reading the weights, which every step
    takes. prefill_attention and decode_attention: cost of attention per token and token of its
    context, in a prompt chunk (limited by compute) and in a decode (limited by memory bandwidth).
    sampling: additional cost of a row that samples a token, because its logits are computed.
    """

    free_tokens: int = 1
    prefill_attention: float = 0.0
    decode_attention: float = 0.0
    sampling: float = 0.0

    def attention(self, start: int, num_tokens: int) -> float:
        """Return the attention cost of the prompt tokens [start, start + num_tokens)."""
        return self.prefill_attention * num_tokens * (start + num_tokens / 2)

    def tokens_within(self, start: int, attention: float) -> float:
        """Return how many prompt tokens, from position `start`, have this attention cost."""
        if self.prefill_attention == 0:
            return inf
        # Rounding can make the rest of a budget negative.
        pairs = max(attention, 0.0) / self.prefill_attention
        return sqrt(start * start + 2 * pairs) - start


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits and policy of the scheduler; see EngineOptions for the meanings.

    work: cost model of a step. step_sizes: numbers of tokens that steps with prompts are padded
    to, ascending; empty if they are not padded. pools: whether the engine runs pooling requests
    only. whole_prompts: whether a prompt must be computed in one step.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_decode_slowdown: float = inf
    max_queued_requests: int = DEFAULT_MAX_QUEUED_REQUESTS
    policy: str = "fcfs"
    async_scheduling: bool = True
    work: WorkModel = WorkModel()
    step_sizes: tuple[int, ...] = ()
    pools: bool = False
    whole_prompts: bool = False

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(f"policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")
        if not self.max_decode_slowdown > 1:
            raise ConfigError(
                f"max_decode_slowdown must be a number above 1, got {self.max_decode_slowdown!r}"
            )
        for name in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_queued_requests",
        ):
            _check_positive(name, getattr(self, name))
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens must be at least max_num_seqs ({self.max_num_seqs}),"
                f" got {self.max_num_batched_tokens}: every running sequence may need a token"
            )
        if self.whole_prompts and self.max_num_batched_tokens < self.max_model_len:
            raise ConfigError(
                f"max_num_batched_tokens must be at least max_model_len ({self.max_model_len}),"
                f" got {self.max_num_batched_tokens}: this model reads a prompt in one step"
            )


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
