"""From options to a running engine: the one place where runner and engine meet."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
from tqdm import tqdm

from jaxserve.config import KV_CACHE_DTYPES, CacheConfig, EngineOptions, SchedulerConfig
from jaxserve.engine.engine import Engine
from jaxserve.engine.scheduler import Scheduler
from jaxserve.errors import CheckpointError, ConfigError, MemoryPlanError
from jaxserve.execution.attention import check_attention, plan_attention
from jaxserve.execution.compilation import CompilationCounter, use_compilation_cache
from jaxserve.execution.memory import (
    CPU_CACHE_BYTES,
    MemoryPlan,
    plan_memory,
    tree_bytes,
    usable_bytes,
    workspace_bytes,
)
from jaxserve.execution.runner import ModelRunner
from jaxserve.execution.shapes import ShapeTable, StepShape
from jaxserve.execution.state import abstract_state
from jaxserve.execution.step import StepContext
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.generation import GenerationDefaults
from jaxserve.loading.tokenizer import Tokenizer
from jaxserve.loading.weights import load_params
from jaxserve.metrics import EngineMetrics
from jaxserve.models import DecoderConfig, abstract_params, config_from_hf
from jaxserve.request import MAX_EOS_IDS
from jaxserve.sharding import make_mesh, named_sharding, partition_spec
from pallas_kernels.paged_attention import CacheSpec
from pallas_kernels.targets import current_target

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = "jaxserve-tiny"
EMBEDDED_FOLDER = Path(__file__).parent / "assets" / EMBEDDED_MODEL


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What is chosen for a kind of device where the user says nothing."""

    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int


# On a CPU a step of 512 tokens of a small model takes about as long as a reader notices.
_CPU = _Defaults(page_size=16, max_num_seqs=32, max_num_batched_tokens=512)
_ACCELERATOR = _Defaults(page_size=64, max_num_seqs=256, max_num_batched_tokens=8192)


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """Everything about an engine that is known before a byte of weights is loaded."""

    options: EngineOptions
    name: str
    checkpoint: Checkpoint
    model: DecoderConfig
    dtype: str
    context: StepContext
    cache_spec: CacheSpec
    shapes: ShapeTable
    scheduler: SchedulerConfig
    cache: CacheConfig
    memory: MemoryPlan

    def lines(self) -> list[str]:
        """Return a description for people, a line each."""
        model, devices = self.model, self.context.mesh.devices
        kind = devices.flat[0].device_kind
        return [
            (
                f"{self.name}: {model.model_type}, {model.num_layers} layers, {self.dtype}, context"
                f" {self.scheduler.max_model_len}, on {devices.size} x {kind}"
            ),
            *self.memory.lines(),
            (
                f"a step computes up to {self.scheduler.max_num_batched_tokens} tokens of"
                f" {self.scheduler.max_num_seqs} sequences"
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """An engine that is warm, and what its callers need to know of the model in it."""

    plan: EnginePlan
    engine: Engine
    runner: ModelRunner
    tokenizer: Tokenizer
    generation: GenerationDefaults
    compilations: CompilationCounter
    num_programs: int


def plan_engine(options: EngineOptions) -> EnginePlan:
    """Resolve options against a checkpoint and the devices at hand; loads no weights.

    Raises CheckpointError, ConfigError, and MemoryPlanError when it would not fit.
    """
    # Before JAX starts: the share of a GPU that its pool takes.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(options.memory_fraction))
    checkpoint = Checkpoint.open(
        options.model if options.model is not None else EMBEDDED_FOLDER,
        revision=options.revision,
        download_dir=options.download_dir,
    )
    model = config_from_hf(checkpoint.hf_config)
    mesh = make_mesh(options.tensor_parallel_size)
    device = mesh.devices.flat[0]
    defaults = _CPU if device.platform == "cpu" else _ACCELERATOR
    # bfloat16 is emulated on most CPUs, and many times slower there.
    wanted = "float32" if device.platform == "cpu" else checkpoint.dtype
    dtype = wanted if options.dtype == "auto" else options.dtype

    max_model_len = options.max_model_len or model.max_position
    if max_model_len > model.longest_context:
        raise ConfigError(
            f"max_model_len must be at most the model's own context ({model.longest_context}),"
            f" got {max_model_len}"
        )
    page_size = options.page_size or defaults.page_size
    scheduler = SchedulerConfig(
        max_model_len=max_model_len,
        max_num_seqs=options.max_num_seqs or defaults.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens
        or max(defaults.max_num_batched_tokens, options.max_num_seqs or 0),
        max_queued_requests=options.max_queued_requests,
        policy=options.scheduling_policy,
        async_scheduling=options.async_scheduling,
    )
    pages_per_sequence = -(-max_model_len // page_size)
    shapes = ShapeTable(
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        pages=pages_per_sequence,
        platform=device.platform,
    )

    attention = plan_attention(
        model,
        dtype=dtype,
        cache_dtype=KV_CACHE_DTYPES[options.kv_cache_dtype] or dtype,
        page_size=page_size,
        target=current_target(),
        devices=options.tensor_parallel_size,
        backend=options.attention_backend,
    )
    page = attention.cache_spec(1)
    page_sharding = named_sharding(page.axes, page.shape, mesh)
    useful_pages, cache_bytes = None, options.kv_cache_memory_bytes
    if device.platform == "cpu":
        # Twice what the running sequences can fill: the rest keeps prefixes.
        useful_pages = 2 * scheduler.max_num_seqs * pages_per_sequence + 1
        cache_bytes = cache_bytes or CPU_CACHE_BYTES
    memory = plan_memory(
        limit=usable_bytes(list(mesh.devices.flat), options.memory_fraction),
        weights=tree_bytes(abstract_params(model, dtype=dtype, mesh=mesh)),
        state=tree_bytes(
            abstract_state(num_slots=scheduler.max_num_seqs + 1, vocab_size=model.vocab_size)
        ),
        workspace=workspace_bytes(model, shapes.all(), attention=attention, dtype=dtype),
        page=model.num_layers
        * tree_bytes(jax.ShapeDtypeStruct(page.shape, page.dtype, sharding=page_sharding)),
        page_size=page_size,
        pages_per_sequence=pages_per_sequence,
        cache_bytes=None if cache_bytes is None else cache_bytes // options.tensor_parallel_size,
        num_pages=options.num_pages,
        useful_pages=useful_pages,
    )
    cache_spec = attention.cache_spec(memory.num_pages)
    name = options.model if options.model is not None else EMBEDDED_MODEL
    return EnginePlan(
        options=options,
        name=name,
        checkpoint=checkpoint,
        model=model,
        dtype=dtype,
        context=StepContext(
            model=model,
            mesh=mesh,
            cache_sharding=partition_spec(cache_spec.axes, cache_spec.shape, mesh),
            rope_length=max_model_len,
            branches=shapes.branches,
            attention=attention,
        ),
        cache_spec=cache_spec,
        shapes=shapes,
        scheduler=scheduler,
        cache=CacheConfig(
            num_pages=memory.num_pages,
            page_size=page_size,
            enable_prefix_caching=options.enable_prefix_caching,
        ),
        memory=memory,
    )


def build(
    plan: EnginePlan,
    *,
    metrics: EngineMetrics | None = None,
    report: Callable[[str], None] = logger.info,
) -> LoadedModel:
    """Load and warm up what was planned: return an engine whose next compilation would be a bug.

    report: told what happens, a line at a time; progress bars go to a terminal only. Raises
    CheckpointError for weights that do not match, KernelError for kernels that compute wrong
    numbers, and MemoryPlanError if the device has less memory left than was planned with.
    """
    options = plan.options
    if options.compilation_cache:
        use_compilation_cache()
    compilations = CompilationCounter()
    for line in plan.lines():
        report(line)
    checkpoint = plan.checkpoint
    tokenizer = Tokenizer.load(
        Path(options.tokenizer) if options.tokenizer is not None else checkpoint.folder,
        chat_template=_read_template(options.chat_template),
    )
    eos_ids = {*tokenizer.eos_ids, *checkpoint.generation.eos_token_ids}
    if len(eos_ids) > MAX_EOS_IDS:
        raise CheckpointError(
            f"{plan.name} has {len(eos_ids)} end-of-sequence tokens; jaxserve supports"
            f" {MAX_EOS_IDS}"
        )
    check_attention(plan.context.attention)
    with _explaining_out_of_memory():
        runner = ModelRunner(
            load_params(checkpoint, plan.model, dtype=plan.dtype, mesh=plan.context.mesh),
            context=plan.context,
            cache_spec=plan.cache_spec,
            shapes=plan.shapes,
            num_slots=plan.scheduler.max_num_seqs + 1,
            pages_per_sequence=plan.cache.pages_for(plan.scheduler.max_model_len),
        )
        num_programs = runner.warm_up(_compile_bar)
    compilations.mark()
    report(f"{num_programs} programs compiled or fetched in {compilations.seconds:.1f} s")
    generation = checkpoint.generation
    if options.generation_config != "auto":
        generation = GenerationDefaults(eos_token_ids=generation.eos_token_ids)
    engine = Engine(
        Scheduler(
            plan.scheduler,
            plan.cache,
            eos_ids=eos_ids,
            seed=options.seed,
        ),
        runner,
        vocab_size=plan.model.vocab_size,
        tokenizer=tokenizer.backend,
        metrics=metrics,
    )
    return LoadedModel(
        plan=plan,
        engine=engine,
        runner=runner,
        tokenizer=tokenizer,
        generation=generation,
        compilations=compilations,
        num_programs=num_programs,
    )


def _read_template(chat_template: str | None) -> str | None:
    """Return an operator's chat template: the text itself, or the file that holds it."""
    if chat_template is None or "{" in chat_template:
        return chat_template
    try:
        return Path(chat_template).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"chat_template must be a readable file, got {chat_template!r}"
        ) from error


@contextmanager
def _explaining_out_of_memory() -> Iterator[None]:
    """Say what to change when a device runs out of memory although the plan fitted."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryPlanError(
            "The device ran out of memory while the model was loaded and warmed up: something else"
            " uses it, or a step needs more than was estimated. Lower gpu_memory_utilization or"
            " max_num_batched_tokens"
        ) from error


def _compile_bar(shapes: Iterable[StepShape]) -> Iterator[StepShape]:
    listed = list(shapes)
    yield from tqdm(listed, desc="Compiling", unit="program", disable=None)
