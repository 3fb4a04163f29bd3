"""The plan of an engine, as resolved by `planner.py` before anything is loaded."""

from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from jaxserve.api.engine_config import CacheConfig, SchedulerConfig
from jaxserve.api.pooling import PoolingModel
from jaxserve.config.engine import EngineOptions
from jaxserve.execution.context import StepContext
from jaxserve.execution.executables import ExecutableFolder, Key, executable_key
from jaxserve.execution.linear import LinearPlan
from jaxserve.execution.memory import MemoryPlan
from jaxserve.execution.programs import ProgramSet
from jaxserve.execution.shapes import ShapeTable
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.models import ModelConfig, Params, abstract_params
from jaxserve.observability.startup import Startup
from jaxserve.quantization import WeightLayout


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """Plan of an engine, complete before any weight is loaded.

    generation: sampling defaults of requests. pooling: None if the model generates text.
    full_context: requested tokens of context if it was capped to fit in memory, else None.
    executables: folder with matching programs, or None. misfit: why the requested folder does not
    match. is_absent: planned for absent hardware, so it cannot be built. startup: timing so far.
    """

    options: EngineOptions
    name: str
    checkpoint: Checkpoint
    model: ModelConfig
    dtype: str
    linear: LinearPlan
    layout: WeightLayout
    context: StepContext
    shapes: ShapeTable
    scheduler: SchedulerConfig
    cache: CacheConfig
    memory: MemoryPlan
    generation: GenerationDefaults
    pooling: PoolingModel | None = None
    full_context: int | None = None
    executables: ExecutableFolder | None = None
    misfit: str | None = None
    is_absent: bool = False
    startup: Startup = field(default_factory=Startup, compare=False)

    @property
    def num_slots(self) -> int:
        """Rows of the slot state: one per sequence, and the null slot."""
        return self.scheduler.max_num_seqs + 1

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer."""
        own = self.options.tokenizer
        return Path(own) if own is not None else self.checkpoint.folder

    @property
    def key(self) -> Key:
        """Key of the compiled programs: everything that they depend on."""
        return executable_key(
            self.context,
            num_pages=self.cache.num_pages,
            num_slots=self.num_slots,
            quantization=self._quantization,
            packed=self.linear.packed,
        )

    @property
    def _quantization(self) -> str | None:
        """How weights are quantized, with a digest of the methods of a checkpoint's matrices."""
        settings = self.checkpoint.quantization
        if settings is None:
            return self.options.quantization
        methods = sorted(f"{path} {method}" for path, method in self.layout.exceptions.items())
        digest = sha256("\n".join(methods).encode()).hexdigest()[:16]
        return f"{settings.get('quant_method')} {digest}"

    def abstract_params(self) -> Params:
        """Return shapes, dtypes and shardings of the parameters of the programs."""
        return abstract_params(self.model, self.layout)

    @property
    def programs(self) -> ProgramSet:
        """Programs of this engine, not compiled yet."""
        return ProgramSet(self.context, num_pages=self.cache.num_pages, num_slots=self.num_slots)

    def with_num_pages(self, num_pages: int) -> "EnginePlan":
        """Return this plan with another number of KV pages."""
        pools = self.context.caches.num_pages(num_pages, num_states=self.memory.num_states)
        return replace(
            self,
            memory=replace(self.memory, num_pages=num_pages),
            cache=replace(self.cache, num_pages=pools),
        )

    def lines(self) -> list[str]:
        """Return a description as lines of text."""
        model, devices = self.model, self.context.mesh.devices
        kind = devices.flat[0].device_kind
        kept = self.linear.packed or self.options.quantization or self.dtype
        if self.checkpoint.quantization is not None:
            kept = f"quantized ({self.checkpoint.quantization.get('quant_method')})"
        weights = self.dtype if kept == self.dtype else f"{kept} for {self.dtype}"
        return [
            (
                f"{self.name}: {model.model_type}, {model.num_layers} layers, {weights}, context"
                f" {self.scheduler.max_model_len}, on {devices.size} x {kind}"
            ),
            *([] if self.full_context is None else [capped_line(self)]),
            *self.memory.lines(),
            (
                f"each step computes up to {self.scheduler.max_num_batched_tokens} tokens of"
                f" {self.scheduler.max_num_seqs} sequences"
            ),
        ]


def capped_line(plan: EnginePlan) -> str:
    """Return why a plan's context is shorter than the model's."""
    return (
        f"max_model_len is capped at {plan.scheduler.max_model_len} of {plan.full_context} tokens:"
        " the KV cache of a longer sequence does not fit in memory (--max-model-len sets it)"
    )
