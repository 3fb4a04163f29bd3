"""Build an engine from its plan: parameters, runner, scheduler and tokenizer."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
from tqdm import tqdm

from jaxserve.api.model_limits import ModelLimits
from jaxserve.api.sampling_params import MAX_EOS_IDS
from jaxserve.config.structured_outputs import StructuredOutputsConfig
from jaxserve.engine.engine import Engine
from jaxserve.engine.scheduler import Scheduler
from jaxserve.errors import CheckpointError, ConfigError, MemoryPlanError
from jaxserve.execution.attention import check_attention
from jaxserve.execution.compilation import CompilationCounter, use_compilation_cache
from jaxserve.execution.host_memory import keep_freed
from jaxserve.execution.program_pool import ProgramPool
from jaxserve.execution.program_sources import ProgramSources
from jaxserve.execution.programs import Program, all_programs, first_programs
from jaxserve.execution.runner import ModelRunner
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.grammar import GrammarCompiler, MatcherPool, Vocabulary
from jaxserve.loading.weights import load_params
from jaxserve.models import Params, random_params
from jaxserve.observability.startup import Startup
from jaxserve.observability.stats import EngineMetrics
from jaxserve.planning.engine_plan import EnginePlan
from jaxserve.tokenization.end_tokens import read_end_ids
from jaxserve.tokenization.tokenizer import Tokenizer, load_backend

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A running engine and its model's properties.

    programs: its compiled programs; some may still be compiling. startup: times of the startup
    stages. vocabulary: the tokenizer's vocabulary for grammars.
    """

    plan: EnginePlan
    engine: Engine
    runner: ModelRunner
    generation: GenerationDefaults
    compilations: CompilationCounter
    programs: ProgramPool
    startup: Startup
    vocabulary: Vocabulary


def build(
    plan: EnginePlan,
    *,
    tokenizer: Callable[[], Tokenizer] | None = None,
    metrics: EngineMetrics | None = None,
    report: Callable[[str], None] = logger.info,
) -> LoadedModel:
    """Load and warm up a plan, and return an engine that needs no further compilations.

    Weights load while programs compile. The option `warm_up` says whether to wait for the first
    programs or for all. tokenizer: returns the plan's tokenizer, if it is loaded anyway. report:
    called with progress messages, one line each; progress bars are shown on a terminal only. Raises
    CheckpointError for weights that do not match, KernelError for kernels that compute wrong
    numbers, and MemoryPlanError if the device has less free memory than planned.
    """
    assert not plan.is_absent, "planned for hardware that is not there"
    options = plan.options
    startup = plan.startup
    if options.compilation_cache:
        use_compilation_cache()
    for line in plan.lines():
        report(line)
    if options.load_format != "dummy" and not plan.checkpoint.tensors:
        raise CheckpointError(f"{plan.name} holds no weights")
    compilations = CompilationCounter()
    programs = _make_programs(plan, compilations, startup, report)
    try:
        return _load(
            plan,
            programs,
            compilations,
            startup,
            tokenizer=tokenizer,
            metrics=metrics,
            report=report,
        )
    except BaseException:
        programs.close()
        raise


def build_with_tokenizer(
    plan: EnginePlan,
    *,
    metrics: EngineMetrics | None = None,
    report: Callable[[str], None] = logger.info,
) -> tuple[LoadedModel, Tokenizer]:
    """Build the engine, and load the tokenizer in parallel. Raises what both raise."""
    # Read it before loading anything, because it may be missing.
    template = read_template(plan.options.chat_template)

    def load_tokenizer() -> Tokenizer:
        with plan.startup.stage("tokenizer"):
            return Tokenizer.load(plan.tokenizer_folder, chat_template=template)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="jaxserve-tokenizer") as aside:
        tokenizer = aside.submit(load_tokenizer)
        loaded = build(plan, tokenizer=tokenizer.result, metrics=metrics, report=report)
        try:
            return loaded, tokenizer.result()
        except BaseException:
            loaded.programs.close()
            raise


def _load(
    plan: EnginePlan,
    programs: ProgramPool,
    compilations: CompilationCounter,
    startup: Startup,
    *,
    tokenizer: Callable[[], Tokenizer] | None,
    metrics: EngineMetrics | None,
    report: Callable[[str], None],
) -> LoadedModel:
    """Return an engine whose programs are compiling."""
    options = plan.options
    with _explaining_out_of_memory():
        with startup.stage("kernels"):
            check_attention(plan.context.attention)
        params = _load_params(plan, startup)
    eos_ids = _read_eos_ids(plan, startup)
    with _explaining_out_of_memory():
        runner = _start_runner(plan, params, programs, startup)
    # The tokenizer is loaded for the first request with a grammar.
    vocabulary = Vocabulary(
        partial(load_backend, plan.tokenizer_folder)
        if tokenizer is None
        else lambda: tokenizer().backend,
        vocab_size=plan.model.vocab_size,
        eos_ids=sorted(eos_ids),
    )
    structured = StructuredOutputsConfig.of(options.structured_outputs_config)
    if structured.note is not None:
        report(structured.note)
    engine = Engine(
        Scheduler(
            plan.scheduler,
            plan.cache,
            eos_ids=eos_ids,
            seed=options.seed,
        ),
        runner,
        ModelLimits(
            vocab_size=plan.model.num_token_ids,
            can_generate=plan.pooling is None or plan.pooling.can_generate,
            max_logprobs=plan.context.sampling.max_logprobs,
            check=plan.context.sampling.processors.check,
        ),
        matchers=MatcherPool(GrammarCompiler(vocabulary, defaults=structured)),
        metrics=metrics,
    )
    compilations.mark()
    programs.give_way()
    ready_s = startup.reached("ready")
    for line in startup.lines():
        report(line)
    report(
        f"ready {ready_s - startup.seconds['imports']:.1f} s after imports, with"
        f" {programs.num_made} of {len(all_programs(plan.shapes))} programs"
    )
    return LoadedModel(
        plan=plan,
        engine=engine,
        runner=runner,
        generation=plan.generation,
        compilations=compilations,
        programs=programs,
        startup=startup,
        vocabulary=vocabulary,
    )


def _read_eos_ids(plan: EnginePlan, startup: Startup) -> set[int]:
    """Return the tokens that end an answer, of the tokenizer and of the generation config."""
    with startup.stage("end tokens"):
        end_ids = read_end_ids(plan.tokenizer_folder)
    eos_ids = {*end_ids, *plan.generation.eos_token_ids}
    if len(eos_ids) > MAX_EOS_IDS:
        raise CheckpointError(
            f"{plan.name} has {len(eos_ids)} end-of-sequence tokens; jaxserve supports"
            f" {MAX_EOS_IDS}"
        )
    return eos_ids


def _start_runner(
    plan: EnginePlan, params: Params, programs: ProgramPool, startup: Startup
) -> ModelRunner:
    """Return a runner, with the programs compiled and run that `warm_up` asks for."""
    with startup.stage("programs"):  # the remaining programs
        wanted = {"background": first_programs, "full": all_programs}.get(plan.options.warm_up)
        # From the end: compile here what no other thread has started.
        for program in _compile_bar(reversed(wanted(plan.shapes)) if wanted else ()):
            programs.get(program)
    with startup.stage("KV pages"):
        runner = ModelRunner(
            params,
            context=plan.context,
            programs=programs,
            shapes=plan.shapes,
            num_slots=plan.num_slots,
        )
    if jax.default_backend() == "cpu":
        keep_freed(2 * plan.memory.workspace)  # the plan's is an estimate
    with startup.stage("warm-up"):
        if wanted is not None:
            runner.warm_up()
    return runner


def _make_programs(
    plan: EnginePlan,
    compilations: CompilationCounter,
    startup: Startup,
    report: Callable[[str], None],
) -> ProgramPool:
    """Start to compile a plan's programs, in order of usefulness."""
    if plan.misfit is not None:
        report(
            f"the programs in {plan.options.executables} are not for this engine, so it compiles"
            f" its own: {plan.misfit}"
        )
    sources = ProgramSources(
        plan.programs,
        plan.abstract_params(),
        mesh=plan.context.mesh,
        compilations=compilations,
        startup=startup,
        executables=plan.executables,
        report=report,
    )
    if plan.options.warm_up == "none":
        return ProgramPool(sources.make_unplanned)

    def finished() -> None:
        seconds = startup.reached("all programs")
        count = Counter(program.origin for program in startup.programs)
        origins = ", ".join(f"{number} {origin}" for origin, number in count.items())
        logger.info("all programs made after %.1f s (%s)", seconds, origins)

    return ProgramPool(sources.make, all_programs(plan.shapes), on_finish=finished)


def _load_params(plan: EnginePlan, startup: Startup) -> Params:
    options = plan.options
    num_bytes = 0 if options.load_format == "dummy" else plan.checkpoint.num_bytes
    with startup.stage("weights", num_bytes=num_bytes):
        if options.load_format == "dummy":
            return random_params(plan.model, plan.layout, seed=options.seed)
        return load_params(plan.checkpoint, plan.model, plan.layout)


def read_template(chat_template: str | None) -> str | None:
    """Return the operator's chat template, given as text or as the name of a file."""
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
    """Add advice to an error of a device that ran out of memory although the plan fitted."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryPlanError(
            "The device ran out of memory while the model was loaded and warmed up: something else"
            " uses it, or a step needs more than was estimated. Lower --gpu-memory-utilization or"
            " --max-num-batched-tokens"
        ) from error


def _compile_bar(programs: Iterable[Program]) -> Iterator[Program]:
    listed = list(programs)
    yield from tqdm(listed, desc="Compiling", unit="program", disable=None if listed else True)
