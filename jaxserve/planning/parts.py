"""The parts of an engine's plan, each resolved from the options, the model and the hardware."""

from dataclasses import dataclass, replace
from functools import cached_property

from jaxserve.api.caches import CacheLayout, CacheSizes, plan_layout
from jaxserve.api.engine_config import CacheConfig, SchedulerConfig
from jaxserve.api.pooling import PoolingModel, PoolingType
from jaxserve.config.engine import KV_CACHE_DTYPES, EngineOptions
from jaxserve.execution.attention import REFERENCE, AttentionPlan, plan_attention
from jaxserve.execution.context import SamplingSettings, StepContext
from jaxserve.execution.cost import StepCosts
from jaxserve.execution.heads.pool import pool_head
from jaxserve.execution.heads.sample import sample_head
from jaxserve.execution.linear import LinearPlan, plan_linear
from jaxserve.execution.logits_processors import LogitsProcessors
from jaxserve.execution.memory import (
    CPU_CACHE_BYTES,
    CacheLimits,
    FixedBytes,
    MemoryPlan,
    PageSizes,
    page_sizes,
    plan_memory,
    tree_bytes,
    workspace_bytes,
)
from jaxserve.execution.programs import described_state
from jaxserve.execution.shapes import ShapeTable
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.quantized import checkpoint_layout
from jaxserve.models import ModelConfig, Params, abstract_params, fitted
from jaxserve.parallel.sharding import ShardingPlan
from jaxserve.planning.hardware import Hardware
from jaxserve.quantization import WeightLayout, find_method

# Pages of tokens between two checkpoints of a recurrent state, beside the one at a prompt's end.
CHECKPOINT_INTERVAL = 16
# States of recurrent layers for each slot: the sequence's own, and checkpoints of prefixes.
STATES_PER_SLOT = 4


@dataclass(frozen=True, slots=True)
class _Defaults:
    """Defaults of a kind of device, for options that are not set (docs/scheduling.md).

    flops_per_byte: FLOPs in the time of reading one byte, for targets of unknown speed.
    attention_efficiency, int8_speed: see `StepCosts.work`.
    """

    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_decode_slowdown: float
    flops_per_byte: float
    attention_efficiency: float
    int8_speed: float


# On a CPU a step of 512 tokens of a small model takes about as long as a reader notices.
_CPU = _Defaults(
    page_size=16,
    max_num_seqs=32,
    max_num_batched_tokens=512,
    max_decode_slowdown=8.0,
    flops_per_byte=8.5,
    attention_efficiency=0.7,
    int8_speed=3.5,
)
_ACCELERATOR = _Defaults(
    page_size=64,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    max_decode_slowdown=2.0,
    flops_per_byte=200.0,
    attention_efficiency=0.8,
    int8_speed=1.0,
)


@dataclass(frozen=True, slots=True)
class Subject:
    """The model to plan for, and settings from its files.

    pool_fraction: share of a GPU's memory that JAX's pool takes in this process. host_bytes: free
    memory of the host, measured once because it changes from one moment to the next.
    """

    checkpoint: Checkpoint
    model: ModelConfig
    pooling: PoolingModel | None
    generation: GenerationDefaults
    pool_fraction: float
    host_bytes: int


@dataclass(frozen=True)
class EngineParts:
    """The parts of one plan; each is computed when it is first read.

    max_model_len: tokens of prompt and answer together. Reading a part raises ConfigError for
    options that cannot work, and MemoryPlanError if the engine does not fit in memory.
    """

    options: EngineOptions
    subject: Subject
    hardware: Hardware
    max_model_len: int

    @cached_property
    def sharding(self) -> ShardingPlan:
        """Sharding of arrays over the mesh."""
        return ShardingPlan(self.hardware.mesh)

    @cached_property
    def model(self) -> ModelConfig:
        """The model fitted to the mesh: KV heads replicated, vocabulary padded."""
        return fitted(self.subject.model, self.sharding)

    @cached_property
    def dtype(self) -> str:
        """Dtype of activations, and of weights that are not quantized."""
        if self.options.dtype != "auto":
            return self.options.dtype
        # Most CPUs emulate bfloat16, which is many times slower.
        return "float32" if self._is_cpu else self.subject.checkpoint.dtype

    @cached_property
    def scheduler(self) -> SchedulerConfig:
        """Limits of the scheduler, and how it weighs the work of a step."""
        target, defaults = self.hardware.target, self._defaults
        return replace(
            self._limits,
            work=StepCosts(self.model, params=self._params, attention=self.attention).work(
                flops_per_byte=target.flops / target.bandwidth
                if target.bandwidth
                else defaults.flops_per_byte,
                attention_efficiency=defaults.attention_efficiency,
                product_speed=defaults.int8_speed if self.options.quantization == "int8" else 1.0,
            ),
            step_sizes=tuple(
                sorted({each.tokens for each in self.shapes.shapes if not each.is_decode})
            ),
        )

    @cached_property
    def caches(self) -> CacheLayout:
        """The cache groups of the layers, and the pools of pages that they share."""
        return plan_layout(
            self.model.caches,
            CacheSizes(
                page_size=self._page_size,
                max_model_len=self.max_model_len,
                # The scheduler plans a step while another one is computed.
                tokens_in_flight=2 * self._limits.max_num_batched_tokens,
                checkpoint_interval=CHECKPOINT_INTERVAL,
            ),
        )

    @cached_property
    def shapes(self) -> ShapeTable:
        """The shapes of steps that are compiled."""
        limits = {
            "max_num_seqs": self._limits.max_num_seqs,
            "max_num_batched_tokens": self._limits.max_num_batched_tokens,
            "pages": self.caches.num_columns,
        }
        if self.subject.pooling is None:
            return ShapeTable.plan(**limits, platform=self._platform)
        longest_row = 1 if self.model.is_causal else self.max_model_len
        return ShapeTable.plan_pooling(**limits, longest_row=longest_row)

    @cached_property
    def attention(self) -> AttentionPlan:
        """The attention backend and the page layout."""
        return plan_attention(
            self.model,
            dtype=self.dtype,
            cache_dtype=KV_CACHE_DTYPES[self.options.kv_cache_dtype] or self.dtype,
            page_size=self._page_size,
            target=self.hardware.target,
            devices=self.options.tensor_parallel_size,
            backend=self.options.attention_backend if self.model.is_causal else REFERENCE,
        )

    @cached_property
    def linear(self) -> LinearPlan:
        """The matmul backend."""
        return plan_linear(
            dtype=self.dtype,
            stored_dtype=self.subject.checkpoint.dtype,
            quantization=self.options.quantization,
            mesh=self.hardware.mesh,
            target=self.hardware.target,
            backend=self.options.linear_backend,
        )

    @cached_property
    def layout(self) -> WeightLayout:
        """Layout of the weights."""
        layout = WeightLayout(
            dtype=self.dtype,
            sharding=self.sharding,
            packed=self.linear.packed,
            method=find_method(self.options.quantization),
        )
        return checkpoint_layout(self.subject.checkpoint, self.model, layout)

    @cached_property
    def memory(self) -> MemoryPlan:
        """Bytes of each device for weights, state, workspace and cache pages."""
        options, pages = self.options, self._pages
        num_states = 1 + STATES_PER_SLOT * self._limits.max_num_seqs if pages.state else 0
        useful_pages, usual_bytes = None, None
        if self._is_cpu:
            # Twice what the running sequences can fill: the rest keeps prefixes.
            per_sequence = self.caches.max_pages(self.caches.main_pool)
            useful_pages = 2 * self._limits.max_num_seqs * per_sequence + 1
            usual_bytes = CPU_CACHE_BYTES // options.tensor_parallel_size
        cache_bytes = options.kv_cache_memory_bytes
        # A model that keeps no tokens has a page for each sequence all the same.
        num_pages = num_states or self._limits.max_num_seqs + 1
        return plan_memory(
            limit=self.hardware.usable_bytes(
                options,
                pool_fraction=self.subject.pool_fraction,
                host_bytes=self.subject.host_bytes,
            ),
            fixed=FixedBytes(
                weights=tree_bytes(self._params),
                state=tree_bytes(
                    described_state(
                        self.model,
                        pools=self.subject.pooling is not None,
                        num_slots=self._limits.max_num_seqs + 1,
                        dtype=self.dtype,
                        extra_size=self._processors.row_size,
                    )
                ),
                workspace=workspace_bytes(
                    self.model,
                    self.shapes.shapes,
                    attention=self.attention,
                    dtype=self.dtype,
                    max_logprobs=self._max_logprobs,
                ),
            ),
            pages=pages,
            page_size=self._page_size,
            layout=self.caches,
            num_states=num_states,
            cache=CacheLimits(
                num_pages=options.num_pages if pages.tokens else num_pages,
                num_bytes=None
                if cache_bytes is None
                else cache_bytes // options.tensor_parallel_size,
                usual_bytes=usual_bytes,
                useful_pages=useful_pages,
            ),
        )

    @cached_property
    def cache(self) -> CacheConfig:
        """The pages of each pool, and how the engine manages them."""
        pooling = self.subject.pooling
        return CacheConfig(
            num_pages=self.caches.num_pages(
                self.memory.num_pages, num_states=self.memory.num_states
            ),
            page_size=self._page_size,
            groups=self.caches.groups,
            # Other vectors than the last need every hidden state of a prompt.
            enable_prefix_caching=self.options.enable_prefix_caching
            and (pooling is None or pooling.type is PoolingType.LAST),
        )

    @cached_property
    def context(self) -> StepContext:
        """Static context in which the programs of a step are traced."""
        pooling = self.subject.pooling
        return StepContext(
            model=self.model,
            head=sample_head if pooling is None else pool_head,
            sharding=self.sharding,
            caches=self.caches,
            rope_length=self.max_model_len,
            sampling=SamplingSettings(
                max_logprobs=self._max_logprobs,
                logprobs_mode=self.options.logprobs_mode,
                processors=self._processors,
            ),
            attention=self.attention,
            pooling=None if pooling is None else pooling.type,
        )

    @property
    def _platform(self) -> str:
        platform: str = self.hardware.mesh.devices.flat[0].platform
        return platform

    @property
    def _is_cpu(self) -> bool:
        return self._platform == "cpu"

    @property
    def _defaults(self) -> _Defaults:
        return _CPU if self._is_cpu else _ACCELERATOR

    @property
    def _page_size(self) -> int:
        # An encoder keeps nothing between steps: each prompt has one page, which stays empty.
        if not self.model.is_causal:
            return self.max_model_len
        return self.options.page_size or self._defaults.page_size

    @cached_property
    def _limits(self) -> SchedulerConfig:
        """The scheduler's limits, without the work of steps."""
        options, defaults = self.options, self._defaults
        return SchedulerConfig(
            max_model_len=self.max_model_len,
            max_num_seqs=options.max_num_seqs or defaults.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens
            or max(
                defaults.max_num_batched_tokens,
                options.max_num_seqs or 0,
                0 if self.model.is_causal else self.max_model_len,
            ),
            max_decode_slowdown=options.max_decode_slowdown or defaults.max_decode_slowdown,
            max_queued_requests=options.max_queued_requests,
            policy=options.scheduling_policy,
            async_scheduling=options.async_scheduling,
            pools=self.subject.pooling is not None,
            whole_prompts=not self.model.is_causal,
        )

    @cached_property
    def _processors(self) -> LogitsProcessors:
        return LogitsProcessors.load(
            self.options.logits_processors, vocab_size=self.model.vocab_size
        )

    @property
    def _max_logprobs(self) -> int:
        if self.options.max_logprobs == -1:
            return self.model.vocab_size
        return min(self.options.max_logprobs, self.model.vocab_size)

    @cached_property
    def _params(self) -> Params:
        return abstract_params(self.model, self.layout)

    @cached_property
    def _pages(self) -> PageSizes:
        return page_sizes(self.caches, self.attention, self.sharding)
