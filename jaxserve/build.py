"""From a plan to a running engine: the one place where runner and engine meet."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
from tqdm import tqdm

from jaxserve.engine.engine import Engine
from jaxserve.engine.scheduler import Scheduler
from jaxserve.errors import CheckpointError, ConfigError, MemoryPlanError
from jaxserve.execution.attention import check_attention
from jaxserve.execution.compilation import CompilationCounter, use_compilation_cache
from jaxserve.execution.programs import Program, all_programs
from jaxserve.execution.runner import ModelRunner
from jaxserve.execution.shapes import StepShape
from jaxserve.loading.generation import GenerationDefaults
from jaxserve.loading.tokenizer import Tokenizer
from jaxserve.loading.weights import load_params
from jaxserve.metrics import EngineMetrics
from jaxserve.models import random_params
from jaxserve.planning import EnginePlan
from jaxserve.request import MAX_EOS_IDS

logger = logging.getLogger(__name__)


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
    assert not plan.is_absent, "planned for hardware that is not there"
    options = plan.options
    if options.compilation_cache:
        use_compilation_cache()
    compilations = CompilationCounter()
    for line in plan.lines():
        report(line)
    checkpoint = plan.checkpoint
    is_dummy = options.load_format == "dummy"
    # Asked before the tokenizer, which takes longer to find missing.
    if not is_dummy and not checkpoint.tensors:
        raise CheckpointError(f"{plan.name} holds no weights")
    tokenizer = Tokenizer.load(
        Path(options.tokenizer) if options.tokenizer is not None else checkpoint.folder,
        chat_template=read_template(options.chat_template),
    )
    eos_ids = {*tokenizer.eos_ids, *checkpoint.generation.eos_token_ids}
    if len(eos_ids) > MAX_EOS_IDS:
        raise CheckpointError(
            f"{plan.name} has {len(eos_ids)} end-of-sequence tokens; jaxserve supports"
            f" {MAX_EOS_IDS}"
        )
    check_attention(plan.context.attention)
    model, mesh = plan.model, plan.context.mesh
    with _explaining_out_of_memory():
        runner = ModelRunner(
            random_params(model, seed=options.seed, dtype=plan.dtype, mesh=mesh)
            if is_dummy
            else load_params(checkpoint, model, dtype=plan.dtype, mesh=mesh),
            context=plan.context,
            cache_spec=plan.cache_spec,
            shapes=plan.shapes,
            num_slots=plan.num_slots,
            pages_per_sequence=plan.cache.pages_for(plan.scheduler.max_model_len),
            executables=_load_executables(plan, report),
        )
        num_programs = runner.warm_up(_compile_bar)
    compilations.mark()
    report(
        f"{num_programs} programs ready; compiling or fetching took {compilations.seconds:.1f} s"
    )
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


def _load_executables(
    plan: EnginePlan, report: Callable[[str], None]
) -> dict[Program, jax.stages.Compiled]:
    """Load what there is of a plan's programs; what is missing will be compiled."""
    if plan.executables is None:
        if plan.misfit is not None:
            report(
                f"the programs in {plan.options.executables} are not for this engine, so it"
                f" compiles its own: {plan.misfit}"
            )
        return {}
    start_s = time.perf_counter()
    programs = all_programs(plan.shapes)
    loaded: dict[Program, jax.stages.Compiled] = {}
    for program in programs:
        try:
            compiled = plan.executables.load(program, plan.context.mesh)
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).partition("\n")[0]
            report(f"the programs in {plan.options.executables} do not load here: {reason}")
            break
        if compiled is not None:
            loaded[program] = compiled
    elapsed_s = time.perf_counter() - start_s
    report(f"{len(loaded)} of {len(programs)} programs loaded in {elapsed_s:.1f} s")
    return loaded


def read_template(chat_template: str | None) -> str | None:
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
