"""From options to a plan: everything about an engine that is known before anything is loaded."""

import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxserve.config import KV_CACHE_DTYPES, CacheConfig, EngineOptions, SchedulerConfig
from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.execution.attention import REFERENCE, plan_attention
from jaxserve.execution.cost import StepCosts
from jaxserve.execution.executables import ExecutableFolder, Key, executable_key
from jaxserve.execution.linear import LinearPlan, plan_linear
from jaxserve.execution.logits_processors import LogitsProcessors
from jaxserve.execution.memory import (
    CPU_CACHE_BYTES,
    MemoryPlan,
    plan_memory,
    tree_bytes,
    usable_bytes,
    workspace_bytes,
)
from jaxserve.execution.programs import ProgramSet, described_state
from jaxserve.execution.shapes import ShapeTable
from jaxserve.execution.step import SamplingSettings, StepContext
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.generation import GenerationDefaults
from jaxserve.loading.pooling import default_max_length, read_pooling
from jaxserve.loading.weights import with_own_head
from jaxserve.models import (
    DecoderConfig,
    ModelConfig,
    Params,
    abstract_params,
    read_config,
    stretched_rope,
)
from jaxserve.pooling import PoolingModel, PoolingType
from jaxserve.sharding import make_mesh, named_sharding, partition_spec
from jaxserve.startup import Startup
from pallas_kernels.paged_attention import CacheSpec
from pallas_kernels.targets import CPU, Target, current_target, find_target
from pallas_kernels.topology import TopologyError, absent_devices

EMBEDDED_MODEL = "jaxserve-tiny"
EMBEDDED_FOLDER = Path(__file__).parent / "assets" / EMBEDDED_MODEL


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


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """Everything about an engine that is known before a byte of weights is loaded.

    generation: what requests get that name no value of their own. pooling: how the model pools,
    None if it generates. executables: the folder whose programs fit
    this plan, if one does; misfit: why the folder that was asked for does not. is_absent: planned
    for hardware that is not there, and cannot be built. startup: where the time went so far.
    """

    options: EngineOptions
    name: str
    checkpoint: Checkpoint
    model: ModelConfig
    dtype: str
    linear: LinearPlan
    context: StepContext
    cache_spec: CacheSpec
    shapes: ShapeTable
    scheduler: SchedulerConfig
    cache: CacheConfig
    memory: MemoryPlan
    generation: GenerationDefaults
    pooling: PoolingModel | None = None
    executables: ExecutableFolder | None = None
    misfit: str | None = None
    is_absent: bool = False
    startup: Startup = field(default_factory=Startup, compare=False)

    @property
    def num_slots(self) -> int:
        """Rows of the slot state: one per sequence, and the rubbish slot."""
        return self.scheduler.max_num_seqs + 1

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is."""
        own = self.options.tokenizer
        return Path(own) if own is not None else self.checkpoint.folder

    @property
    def key(self) -> Key:
        """Everything that the compiled programs of this engine depend on."""
        return executable_key(
            self.context,
            self.cache_spec,
            num_pages=self.memory.num_pages,
            num_slots=self.num_slots,
            quantization=self.options.quantization,
            packed=self.linear.packed,
        )

    def abstract_params(self) -> Params:
        """Describe the parameters that the programs take: shapes, dtypes and shardings."""
        return abstract_params(
            self.model,
            dtype=self.dtype,
            mesh=self.context.mesh,
            quantization=self.options.quantization,
            packed=self.linear.packed,
        )

    @property
    def programs(self) -> ProgramSet:
        """The programs of this engine, to be compiled."""
        return ProgramSet(self.context, cache_spec=self.cache_spec, num_slots=self.num_slots)

    def with_num_pages(self, num_pages: int) -> "EnginePlan":
        """Return this plan with another number of KV pages."""
        return replace(
            self,
            memory=replace(self.memory, num_pages=num_pages),
            cache=replace(self.cache, num_pages=num_pages),
            cache_spec=self.context.attention.cache_spec(num_pages),
        )

    def lines(self) -> list[str]:
        """Return a description for people, a line each."""
        model, devices = self.model, self.context.mesh.devices
        kind = devices.flat[0].device_kind
        kept = self.linear.packed or self.options.quantization or self.dtype
        weights = self.dtype if kept == self.dtype else f"{kept} for {self.dtype}"
        return [
            (
                f"{self.name}: {model.model_type}, {model.num_layers} layers, {weights}, context"
                f" {self.scheduler.max_model_len}, on {devices.size} x {kind}"
            ),
            *self.memory.lines(),
            (
                f"a step computes up to {self.scheduler.max_num_batched_tokens} tokens of"
                f" {self.scheduler.max_num_seqs} sequences"
            ),
        ]


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
    # Before JAX starts: the share of a GPU that its pool takes.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(options.memory_fraction))
    with startup.stage("devices"):
        mesh, hardware, is_absent = _find_hardware(target, options.tensor_parallel_size)
    with startup.stage("plan"):
        plan = _plan(
            options, checkpoint, model, mesh, hardware, pooling=pooling, is_absent=is_absent
        )
    return replace(plan, startup=startup)


def _plan(
    options: EngineOptions,
    checkpoint: Checkpoint,
    model: ModelConfig,
    mesh: Mesh,
    hardware: Target,
    *,
    pooling: PoolingModel | None,
    is_absent: bool,
) -> EnginePlan:
    device = mesh.devices.flat[0]
    defaults = _CPU if device.platform == "cpu" else _ACCELERATOR
    # bfloat16 is emulated on most CPUs, and many times slower there.
    wanted = "float32" if device.platform == "cpu" else checkpoint.dtype
    dtype = wanted if options.dtype == "auto" else options.dtype

    max_model_len = options.max_model_len or min(
        default_max_length(checkpoint) or model.longest_context, model.longest_context
    )
    if max_model_len > model.longest_context:
        raise ConfigError(_too_long(model, max_model_len))
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
    pages_per_sequence = -(-max_model_len // page_size)
    limits = {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "pages": pages_per_sequence,
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
        target=hardware,
        devices=options.tensor_parallel_size,
        backend=options.attention_backend if model.is_causal else REFERENCE,
    )
    linear = plan_linear(
        dtype=dtype,
        stored_dtype=checkpoint.dtype,
        quantization=options.quantization,
        mesh=mesh,
        target=hardware,
        backend=options.linear_backend,
    )
    params = abstract_params(
        model, dtype=dtype, mesh=mesh, quantization=options.quantization, packed=linear.packed
    )
    page = attention.cache_spec(1)
    page_sharding = named_sharding(page.axes, page.shape, mesh)
    useful_pages, cache_bytes = None, options.kv_cache_memory_bytes
    if device.platform == "cpu":
        # Twice what the running sequences can fill: the rest keeps prefixes.
        useful_pages = 2 * scheduler.max_num_seqs * pages_per_sequence + 1
        cache_bytes = cache_bytes or CPU_CACHE_BYTES
    memory = plan_memory(
        limit=usable_bytes(
            list(mesh.devices.flat),
            options.memory_fraction,
            memory_bytes=hardware.memory_bytes if is_absent else None,
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
        page=model.num_caches
        * tree_bytes(jax.ShapeDtypeStruct(page.shape, page.dtype, sharding=page_sharding)),
        page_size=page_size,
        pages_per_sequence=pages_per_sequence,
        cache_bytes=None if cache_bytes is None else cache_bytes // options.tensor_parallel_size,
        num_pages=options.num_pages if model.is_causal else scheduler.max_num_seqs + 1,
        useful_pages=useful_pages,
    )
    cache_spec = attention.cache_spec(memory.num_pages)
    scheduler = replace(
        scheduler,
        work=StepCosts(model, params=params, attention=attention).work(
            flops_per_byte=hardware.flops / hardware.bandwidth
            if hardware.bandwidth
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
        context=StepContext(
            model=model,
            mesh=mesh,
            cache_sharding=partition_spec(cache_spec.axes, cache_spec.shape, mesh),
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
        cache_spec=cache_spec,
        shapes=shapes,
        scheduler=scheduler,
        cache=CacheConfig(
            num_pages=memory.num_pages,
            page_size=page_size,
            # Other vectors than the last need every hidden state of a prompt.
            enable_prefix_caching=options.enable_prefix_caching
            and (pooling is None or pooling.type is PoolingType.LAST),
        ),
        memory=memory,
        generation=GenerationDefaults.read(
            checkpoint.folder,
            checkpoint.hf_config,
            source=options.generation_config,
            overrides=options.override_generation_config,
        ),
        is_absent=is_absent,
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


def _find_hardware(name: str | None, num_devices: int) -> tuple[Mesh, Target, bool]:
    """Return devices to plan for, what they are, and whether they are absent."""
    if name is not None and jax.config.jax_platforms is None:
        # Nobody needs the hardware of this machine now, and looking for some takes time.
        jax.config.update("jax_platforms", "cpu")
    if name is None or name == CPU.name:
        mesh = make_mesh(num_devices)
        return mesh, current_target(), False
    try:
        target = find_target(name)
        return make_mesh(num_devices, devices=absent_devices(target, num_devices)), target, True
    except (ValueError, TopologyError) as error:
        raise ConfigError(str(error)) from error


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
