"""From options to a plan: everything about an engine that is known before anything is loaded."""

import json
import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from jaxserve.api.caches import CacheSizes, plan_layout
from jaxserve.api.engine_config import CacheConfig, SchedulerConfig
from jaxserve.api.pooling import PoolingModel, PoolingType
from jaxserve.config.engine import KV_CACHE_DTYPES, EngineOptions
from jaxserve.errors import CheckpointError, ConfigError, JaxserveError, MemoryPlanError
from jaxserve.execution.attention import REFERENCE, plan_attention
from jaxserve.execution.context import SamplingSettings, StepContext
from jaxserve.execution.cost import StepCosts
from jaxserve.execution.executables import ExecutableFolder
from jaxserve.execution.host_memory import free_bytes
from jaxserve.execution.linear import plan_linear
from jaxserve.execution.logits_processors import LogitsProcessors
from jaxserve.execution.memory import (
    CPU_CACHE_BYTES,
    ContextMemoryError,
    page_sizes,
    plan_memory,
    tree_bytes,
    workspace_bytes,
)
from jaxserve.execution.programs import described_state
from jaxserve.execution.shapes import ShapeTable
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.weights import with_own_head
from jaxserve.models import (
    DecoderConfig,
    ModelConfig,
    abstract_params,
    fitted,
    read_config,
    stretched_rope,
)
from jaxserve.observability.startup import Startup
from jaxserve.parallel.sharding import ShardingPlan
from jaxserve.planning.engine_plan import EnginePlan, capped_line
from jaxserve.planning.hardware import Hardware, find_hardware
from jaxserve.planning.pooling import default_max_length, read_pooling
from jaxserve.planning.remedies import remedies
from jaxserve.quantization import WeightLayout, find_method

logger = logging.getLogger(__name__)

# Pages of tokens between two checkpoints of a recurrent state, beside the one at a prompt's end.
CHECKPOINT_INTERVAL = 16
# States of recurrent layers for each slot: the sequence's own, and checkpoints of prefixes.
STATES_PER_SLOT = 4

EMBEDDED_MODEL = "jaxserve-tiny"
EMBEDDED_FOLDER = Path(__file__).parents[1] / "assets" / EMBEDDED_MODEL


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What is chosen for a kind of device where the user says nothing (docs/scheduling.md).

    flops_per_byte: what it computes in the time of reading a byte, where the target's speeds are
    unknown. attention_efficiency, int8_speed: see `StepCosts.work`.
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
class _Subject:
    """What is planned for, whatever the options: the model and what its files say.

    pool_fraction: the share of a GPU's memory that JAX's pool takes in this process. host_bytes:
    what the host has free; measured once, as it changes from one moment to the next.
    """

    checkpoint: Checkpoint
    model: ModelConfig
    pooling: PoolingModel | None
    generation: GenerationDefaults
    pool_fraction: float
    host_bytes: int


def plan_engine(options: EngineOptions, *, target: str | None = None) -> EnginePlan:
    """Resolve options against a checkpoint and the devices at hand; loads no weights.

    target: hardware by name, which need not be there (`pallas_kernels.targets`, or "cpu" for this
    machine's). Raises CheckpointError, ConfigError, and MemoryPlanError when it would not fit.
    """
    startup = Startup()
    startup.imported(time.perf_counter())
    with startup.stage("checkpoint"):  # found, or downloaded
        checkpoint = Checkpoint.open(
            options.model if options.model is not None else EMBEDDED_FOLDER,
            revision=options.revision,
            download_dir=options.download_dir,
            hf_overrides=options.hf_overrides,
        )
        model = _read_model(checkpoint, options)
        pooling = read_pooling(checkpoint, model, options)
        if pooling is not None:
            model = model.pooled(len(pooling.labels))
        generation = GenerationDefaults.read(
            checkpoint.folder,
            checkpoint.hf_config,
            source=options.generation_config,
            overrides=options.override_generation_config,
        )
    # Before JAX starts: the share of a GPU that its pool takes.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(options.memory_fraction))
    subject = _Subject(
        checkpoint,
        model,
        pooling,
        generation,
        pool_fraction=options.memory_fraction,
        host_bytes=free_bytes(),
    )
    with startup.stage("devices"):
        hardware = find_hardware(target, options.tensor_parallel_size)
    with startup.stage("plan"):
        try:
            plan = _plan_within_memory(options, subject, hardware)
        except MemoryPlanError as error:

            def fits(changed: EngineOptions) -> bool:
                try:
                    found = find_hardware(target, changed.tensor_parallel_size)
                    _plan_within_memory(changed, subject, found)
                except JaxserveError:
                    return False
                return True

            raise MemoryPlanError(f"{error}. {remedies(options, error, fits)}") from error
    if plan.full_context is not None:
        logger.warning("%s", capped_line(plan))
    return replace(plan, startup=startup)


def _plan_within_memory(
    options: EngineOptions, subject: _Subject, hardware: Hardware
) -> EnginePlan:
    """Plan for the context asked for or, where nobody asked for one, for as much as fits."""
    model = subject.model
    own = min(
        default_max_length(subject.checkpoint) or model.longest_context, model.longest_context
    )
    wanted = options.max_model_len or own
    if wanted > own:
        raise ConfigError(_too_long(model, wanted))
    try:
        return _plan(options, subject, hardware, max_model_len=wanted)
    except ContextMemoryError as error:
        if options.max_model_len is not None or error.num_tokens < 1:
            raise
        plan = _plan(options, subject, hardware, max_model_len=error.num_tokens)
        return replace(plan, full_context=wanted)


def _plan(
    options: EngineOptions, subject: _Subject, hardware: Hardware, *, max_model_len: int
) -> EnginePlan:
    checkpoint, pooling, mesh = subject.checkpoint, subject.pooling, hardware.mesh
    sharding = ShardingPlan(mesh)
    model = fitted(subject.model, sharding)
    device = mesh.devices.flat[0]
    defaults = _CPU if device.platform == "cpu" else _ACCELERATOR
    # bfloat16 is emulated on most CPUs, and many times slower there.
    wanted = "float32" if device.platform == "cpu" else checkpoint.dtype
    dtype = wanted if options.dtype == "auto" else options.dtype

    processors = LogitsProcessors.load(options.logits_processors, vocab_size=model.vocab_size)
    max_logprobs = model.vocab_size
    if options.max_logprobs != -1:
        max_logprobs = min(options.max_logprobs, max_logprobs)
    # An encoder keeps nothing between steps: each prompt has one page, in which nothing lies.
    page_size = options.page_size or defaults.page_size if model.is_causal else max_model_len
    scheduler = SchedulerConfig(
        max_model_len=max_model_len,
        max_num_seqs=options.max_num_seqs or defaults.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens
        or max(
            defaults.max_num_batched_tokens,
            options.max_num_seqs or 0,
            0 if model.is_causal else max_model_len,
        ),
        max_decode_slowdown=options.max_decode_slowdown or defaults.max_decode_slowdown,
        max_queued_requests=options.max_queued_requests,
        policy=options.scheduling_policy,
        async_scheduling=options.async_scheduling,
        pools=pooling is not None,
        whole_prompts=not model.is_causal,
    )
    cache_layout = plan_layout(
        model.caches,
        CacheSizes(
            page_size=page_size,
            max_model_len=max_model_len,
            # The scheduler plans a step while another one is computed.
            tokens_in_flight=2 * scheduler.max_num_batched_tokens,
            checkpoint_interval=CHECKPOINT_INTERVAL,
        ),
    )
    limits = {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "pages": cache_layout.num_columns,
    }
    if pooling is None:
        shapes = ShapeTable.plan(**limits, platform=device.platform)
    else:
        longest_row = 1 if model.is_causal else max_model_len
        shapes = ShapeTable.plan_pooling(**limits, longest_row=longest_row)

    attention = plan_attention(
        model,
        dtype=dtype,
        cache_dtype=KV_CACHE_DTYPES[options.kv_cache_dtype] or dtype,
        page_size=page_size,
        target=hardware.target,
        devices=options.tensor_parallel_size,
        backend=options.attention_backend if model.is_causal else REFERENCE,
    )
    linear = plan_linear(
        dtype=dtype,
        stored_dtype=checkpoint.dtype,
        quantization=options.quantization,
        mesh=mesh,
        target=hardware.target,
        backend=options.linear_backend,
    )
    layout = WeightLayout(
        dtype=dtype,
        sharding=sharding,
        packed=linear.packed,
        method=find_method(options.quantization),
    )
    params = abstract_params(model, layout)
    pages = page_sizes(cache_layout, attention, sharding)
    num_states = 1 + STATES_PER_SLOT * scheduler.max_num_seqs if pages.state else 0
    useful_pages, usual_bytes = None, None
    if device.platform == "cpu":
        # Twice what the running sequences can fill: the rest keeps prefixes.
        per_sequence = cache_layout.max_pages(cache_layout.main_pool)
        useful_pages = 2 * scheduler.max_num_seqs * per_sequence + 1
        usual_bytes = CPU_CACHE_BYTES // options.tensor_parallel_size
    cache_bytes = options.kv_cache_memory_bytes
    memory = plan_memory(
        limit=hardware.usable_bytes(
            options, pool_fraction=subject.pool_fraction, host_bytes=subject.host_bytes
        ),
        weights=tree_bytes(params),
        state=tree_bytes(
            described_state(
                model,
                pools=pooling is not None,
                num_slots=scheduler.max_num_seqs + 1,
                dtype=dtype,
                extra_size=processors.row_size,
            )
        ),
        workspace=workspace_bytes(
            model,
            shapes.shapes,
            attention=attention,
            dtype=dtype,
            max_logprobs=max_logprobs,
        ),
        page=pages.tokens,
        page_size=page_size,
        layout=cache_layout,
        recurrent=pages.state,
        num_states=num_states,
        cache_bytes=None if cache_bytes is None else cache_bytes // options.tensor_parallel_size,
        num_pages=options.num_pages if pages.tokens else num_states or scheduler.max_num_seqs + 1,
        usual_bytes=usual_bytes,
        useful_pages=useful_pages,
    )
    scheduler = replace(
        scheduler,
        work=StepCosts(model, params=params, attention=attention).work(
            flops_per_byte=hardware.target.flops / hardware.target.bandwidth
            if hardware.target.bandwidth
            else defaults.flops_per_byte,
            attention_efficiency=defaults.attention_efficiency,
            product_speed=defaults.int8_speed if options.quantization == "int8" else 1.0,
        ),
        step_sizes=tuple(sorted({each.tokens for each in shapes.shapes if not each.is_decode})),
    )
    name = options.model if options.model is not None else EMBEDDED_MODEL
    plan = EnginePlan(
        options=options,
        name=name,
        checkpoint=checkpoint,
        model=model,
        dtype=dtype,
        linear=linear,
        layout=layout,
        context=StepContext(
            model=model,
            sharding=sharding,
            caches=cache_layout,
            rope_length=max_model_len,
            sampling=SamplingSettings(
                max_logprobs=max_logprobs,
                logprobs_mode=options.logprobs_mode,
                processors=processors,
            ),
            branches=shapes.branches,
            attention=attention,
            pooling=None if pooling is None else pooling.type,
        ),
        pooling=pooling,
        shapes=shapes,
        scheduler=scheduler,
        cache=CacheConfig(
            num_pages=cache_layout.num_pages(memory.num_pages, num_states=memory.num_states),
            page_size=page_size,
            groups=cache_layout.groups,
            # Other vectors than the last need every hidden state of a prompt.
            enable_prefix_caching=options.enable_prefix_caching
            and (pooling is None or pooling.type is PoolingType.LAST),
        ),
        memory=memory,
        generation=subject.generation,
        is_absent=hardware.is_absent,
    )
    if options.executables is None:
        return plan
    return _with_executables(plan, ExecutableFolder.open(Path(options.executables)))


def _read_model(checkpoint: Checkpoint, options: EngineOptions) -> ModelConfig:
    """Return what the checkpoint's configuration and its files describe."""
    try:
        model = read_config(checkpoint.hf_config)
    except CheckpointError as error:
        if not options.hf_overrides:
            raise
        overrides = json.dumps(dict(options.hf_overrides))
        raise CheckpointError(f"{error} (with --hf-overrides '{overrides}')") from error
    if isinstance(model, DecoderConfig) and options.load_format != "dummy":
        return with_own_head(checkpoint, model)
    return model


def _too_long(model: ModelConfig, max_model_len: int) -> str:
    """Return why a context is refused, and how an operator may stretch the model's own."""
    reason = (
        f"max_model_len must be at most the model's own context ({model.longest_context}), got"
        f" {max_model_len}"
    )
    if not isinstance(model, DecoderConfig):
        return reason
    override = json.dumps(stretched_rope(model, max_model_len))
    return (
        f"{reason}. To stretch that context, at some cost in quality, override the model's"
        f" positions: --hf-overrides '{override}'"
    )


def _with_executables(plan: EnginePlan, folder: ExecutableFolder) -> EnginePlan:
    """Take the programs of a folder into a plan if they fit it.

    They fit one number of pages, which the plan takes over where the user leaves it open: what a
    device has free differs a little from one start to the next.
    """
    options, num_pages = plan.options, folder.key.get("pages")
    is_open = options.num_pages is None and options.kv_cache_memory_bytes is None
    if is_open and isinstance(num_pages, int) and 1 < num_pages <= plan.memory.num_pages:
        resized = plan.with_num_pages(num_pages)
        if folder.difference(resized.key) is None:
            return replace(resized, executables=folder)
    misfit = folder.difference(plan.key)
    return replace(plan, executables=folder if misfit is None else None, misfit=misfit)
