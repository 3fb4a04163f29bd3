"""Resolve options into an engine plan, before anything is loaded."""

import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from jaxserve.config.engine import EngineOptions
from jaxserve.errors import CheckpointError, ConfigError, JaxserveError, MemoryPlanError
from jaxserve.execution.executables import ExecutableFolder
from jaxserve.execution.host_memory import free_bytes
from jaxserve.execution.memory import (
    ContextMemoryError,
)
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.weights import with_own_head
from jaxserve.models import (
    ModelConfig,
    read_config,
    stretched_rope,
)
from jaxserve.observability.startup import Startup
from jaxserve.planning.engine_plan import EnginePlan, capped_line
from jaxserve.planning.hardware import Hardware, find_hardware
from jaxserve.planning.parts import EngineParts, Subject
from jaxserve.planning.pooling import default_max_length, read_pooling, with_projections
from jaxserve.planning.remedies import remedies
from jaxserve.planning.token_scores import TokenScores, read_token_scores, with_token_scores

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = "jaxserve-tiny"
EMBEDDED_FOLDER = Path(__file__).parents[1] / "assets" / EMBEDDED_MODEL


def plan_engine(options: EngineOptions, *, target: str | None = None) -> EnginePlan:
    """Resolve options for a checkpoint and devices. Loads no weights.

    target: name of hardware, which may be absent (`pallas_kernels.targets`, or "cpu" for this
    machine); by default the devices that JAX finds. Raises CheckpointError, ConfigError, and
    MemoryPlanError if the model does not fit.
    """
    startup = Startup()
    startup.imported(time.perf_counter())
    with startup.stage("checkpoint"):  # including the download
        checkpoint = Checkpoint.open(
            options.model if options.model is not None else EMBEDDED_FOLDER,
            revision=options.revision,
            download_dir=options.download_dir,
            hf_overrides=options.hf_overrides,
        )
        model = _read_model(checkpoint, options)
        scores = _read_scores(checkpoint, options)
        model = with_token_scores(model, scores)
        if scores is not None and options.chat_template is None:
            options = replace(options, chat_template=scores.template)
        pooling = read_pooling(checkpoint, model, options, scores)
        if pooling is not None:
            width = pooling.width if pooling.labels else 0
            model = with_projections(checkpoint, model.pooled(width))
        generation = GenerationDefaults.read(
            checkpoint.folder,
            checkpoint.hf_config,
            source=options.generation_config,
            overrides=options.override_generation_config,
        )
    # The share of a GPU that JAX's pool takes; must be set before JAX starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(options.memory_fraction))
    subject = Subject(
        checkpoint,
        model,
        pooling,
        generation,
        pool_fraction=options.memory_fraction,
        host_bytes=free_bytes(),
    )
    with startup.stage("devices"):
        hardware = _hardware(target, options)
    with startup.stage("plan"):
        try:
            plan = _plan_within_memory(options, subject, hardware)
        except MemoryPlanError as error:

            def fits(changed: EngineOptions) -> bool:
                try:
                    _plan_within_memory(changed, subject, _hardware(target, changed))
                except JaxserveError:
                    return False
                return True

            raise MemoryPlanError(f"{error}. {remedies(options, error, fits)}") from error
    if plan.full_context is not None:
        logger.warning("%s", capped_line(plan))
    return replace(plan, startup=startup)


def _hardware(target: str | None, options: EngineOptions) -> Hardware:
    return find_hardware(
        target, options.tensor_parallel_size, expert_parallel=options.enable_expert_parallel
    )


def _plan_within_memory(options: EngineOptions, subject: Subject, hardware: Hardware) -> EnginePlan:
    """Plan for the requested context, or by default for as much of the model's as fits."""
    model = subject.model
    own = min(
        default_max_length(subject.checkpoint) or model.longest_context, model.longest_context
    )
    wanted = options.max_model_len or own
    if wanted > own:
        raise ConfigError(_too_long(model, wanted))
    try:
        return _plan(EngineParts(options, subject, hardware, wanted))
    except ContextMemoryError as error:
        if options.max_model_len is not None or error.num_tokens < 1:
            raise
        plan = _plan(EngineParts(options, subject, hardware, error.num_tokens))
        return replace(plan, full_context=wanted)


def _plan(parts: EngineParts) -> EnginePlan:
    options = parts.options
    plan = EnginePlan(
        options=options,
        name=EMBEDDED_MODEL if options.model is None else options.model,
        checkpoint=parts.subject.checkpoint,
        model=parts.model,
        dtype=parts.dtype,
        linear=parts.linear,
        layout=parts.layout,
        context=parts.context,
        pooling=parts.subject.pooling,
        shapes=parts.shapes,
        scheduler=parts.scheduler,
        cache=parts.cache,
        memory=parts.memory,
        generation=parts.subject.generation,
        is_absent=parts.hardware.is_absent,
    )
    if options.executables is None:
        return plan
    return _with_executables(plan, ExecutableFolder.open(Path(options.executables)))


def _read_model(checkpoint: Checkpoint, options: EngineOptions) -> ModelConfig:
    """Return the model that the checkpoint's configuration and files describe."""
    try:
        model = read_config(checkpoint.hf_config)
    except CheckpointError as error:
        if not options.hf_overrides:
            raise
        overrides = json.dumps(dict(options.hf_overrides))
        raise CheckpointError(f"{error} (with --hf-overrides '{overrides}')") from error
    return model if options.load_format == "dummy" else with_own_head(checkpoint, model)


def _read_scores(checkpoint: Checkpoint, options: EngineOptions) -> TokenScores | None:
    """Return the tokens that score prompts, unless the model generates text or embeds it."""
    if options.runner == "generate" or options.convert == "embed":
        return None
    own = options.tokenizer
    return read_token_scores(checkpoint, checkpoint.folder if own is None else Path(own))


def _too_long(model: ModelConfig, max_model_len: int) -> str:
    """Return why a context is refused, and how to extend the model's."""
    reason = (
        f"max_model_len must be at most the model's own context ({model.longest_context}), got"
        f" {max_model_len}"
    )
    override = stretched_rope(model, max_model_len)
    if override is None:
        return reason
    return (
        f"{reason}. To extend the context, at some cost in quality, override the RoPE settings:"
        f" --hf-overrides '{json.dumps(override)}'"
    )


def _with_executables(plan: EnginePlan, folder: ExecutableFolder) -> EnginePlan:
    """Use the programs of a folder if they match the plan.

    They are compiled for one number of pages, which the plan adopts unless the user sets it: the
    free memory of a device varies between starts.
    """
    options, num_pages = plan.options, folder.key.get("pages")
    is_open = options.num_pages is None and options.kv_cache_memory_bytes is None
    if is_open and isinstance(num_pages, int) and 1 < num_pages <= plan.memory.num_pages:
        resized = plan.with_num_pages(num_pages)
        if folder.difference(resized.key) is None:
            return replace(resized, executables=folder)
    misfit = folder.difference(plan.key)
    return replace(plan, executables=folder if misfit is None else None, misfit=misfit)
