"""The settings of an engine, complete and frozen: what its scheduler and its caches go by."""

from dataclasses import dataclass
from math import inf, sqrt

from jaxserve.api.caches import CacheGroup, PagedGroup
from jaxserve.errors import ConfigError

POLICIES = ("fcfs", "priority")
DEFAULT_MAX_LOGPROBS = 20
DEFAULT_MAX_QUEUED_REQUESTS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Pages of `page_size` tokens, and what sequences keep in them.

    num_pages: pages of each pool, the null page included. groups: see `api/caches.py`.
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

    @staticmethod
    def paged(
        *, num_pages: int, page_size: int, enable_prefix_caching: bool = True
    ) -> "CacheConfig":
        """Return the cache of a model whose layers all keep every token."""
        return CacheConfig(
            num_pages=(num_pages,),
            page_size=page_size,
            groups=(PagedGroup(max_pages=num_pages - 1),),
            enable_prefix_caching=enable_prefix_caching,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkModel:
    """What the tokens of a step take, as far as scheduling needs to know.

    The unit is the time of one token's matrix products in a large step. free_tokens: how many fit
    into the time of reading the weights, which every step takes. prefill_attention and
    decode_attention: what attention adds to a token for each token of its context, in a chunk of
    a prompt (limited by compute) and in a decode (limited by reading keys and values). sampling:
    what a row adds that draws a token, whose logits are one more product.
    """

    free_tokens: int = 1
    prefill_attention: float = 0.0
    decode_attention: float = 0.0
    sampling: float = 0.0

    def attention(self, start: int, num_tokens: int) -> float:
        """Return the work of attention of the tokens of a prompt at [start, start + num_tokens)."""
        return self.prefill_attention * num_tokens * (start + num_tokens / 2)

    def tokens_within(self, start: int, attention: float) -> float:
        """Return how many tokens of a prompt, from `start` on, take this work of attention."""
        if self.prefill_attention == 0:
            return inf
        # Below 0 by rounding, where a chunk took the very last of a budget.
        pairs = max(attention, 0.0) / self.prefill_attention
        return sqrt(start * start + 2 * pairs) - start


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits and policy of the scheduler; see EngineOptions for the meanings.

    work: how the costs of steps compare. step_sizes: tokens that steps with prompts are padded to,
    ascending; none if they are not. pools: whether requests get the vector of their prompt in
    place of tokens. whole_prompts: whether a prompt must be computed in one step.
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
