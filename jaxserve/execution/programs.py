"""Definition and compilation of the programs that run on the device."""

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxserve.execution.batch import packed_deferred_size, packed_size
from jaxserve.execution.caches import KVCache, allocate_caches, describe_caches
from jaxserve.execution.context import StepContext
from jaxserve.execution.heads.pool import PoolOutput, PoolState, abstract_pool_state
from jaxserve.execution.heads.sample import StepOutput
from jaxserve.execution.shapes import DeferredSampleShape, ShapeTable, StepShape
from jaxserve.execution.state import SlotState, abstract_state, assign_slot
from jaxserve.execution.step import sample_deferred as sample_deferred_tree
from jaxserve.execution.step import step as step_of_tree
from jaxserve.models import ModelConfig, Params


class Helper(StrEnum):
    """Programs besides the steps: allocate cache and state; write one slot's state."""

    ALLOCATE = "allocate"
    ASSIGN = "assign"


type Program = StepShape | DeferredSampleShape | Helper

# Slot state on the device, and output for the host: of a generating and of a pooling engine.
type State[Leaf] = SlotState[Leaf] | PoolState[Leaf]
type Output = StepOutput | PoolOutput

# XLA options by platform. XLA would merge the query, key and value matmuls by concatenating their
# weights in every step: 50 MB per layer of an 8B model, read and written.
_OPTIONS = {"gpu": {"xla_gpu_dot_merger_threshold_mb": 0}}


def name_of(program: Program) -> str:
    """Return the name of a program for tables and files."""
    return program.value if isinstance(program, Helper) else program.name


def first_programs(shapes: ShapeTable) -> list[Program]:
    """Return the programs required for serving, those that compile longest first."""
    first: list[Program] = [shapes.shapes[0], Helper.ALLOCATE]
    return first if shapes.pools else [*first, Helper.ASSIGN]


def all_programs(shapes: ShapeTable) -> list[Program]:
    """Return all programs of an engine with these shapes, in order of compilation."""
    # One program for deferred sampling is enough to serve every grammar request.
    return [*first_programs(shapes), *shapes.deferred[:1], *shapes.shapes[1:], *shapes.deferred[1:]]


def described_state(
    model: ModelConfig, *, pools: bool, num_slots: int, dtype: DTypeLike, extra_size: int = 0
) -> State[jax.ShapeDtypeStruct]:
    """Describe the slot state of an engine, including slot 0, before it exists.

    dtype: dtype of the hidden states that the head reads.
    """
    if pools:
        return abstract_pool_state(num_slots=num_slots, embed=model.embed)
    return abstract_state(
        num_slots=num_slots,
        vocab_size=model.vocab_size,
        embed=model.embed,
        dtype=dtype,
        extra_size=extra_size,
    )


class ProgramSet:
    """Programs of an engine, and the arrays that they keep on its devices.

    num_pages: pages of each pool of the layout. cache and state: trees of jax.ShapeDtypeStruct with
    shardings. A step takes both by donation and returns them. Deferred sampling and ASSIGN do the
    same with the state. Steps and deferred sampling take the leaves of the parameters as a tuple.
    """

    def __init__(self, context: StepContext, *, num_pages: tuple[int, ...], num_slots: int) -> None:
        self._mesh = mesh = context.mesh
        self._vocab_size = context.model.vocab_size
        self._replicated = replicated = NamedSharding(mesh, PartitionSpec())
        self.cache = describe_caches(
            context.caches, context.attention, context.sharding, num_pages=num_pages
        )
        self.state: State[jax.ShapeDtypeStruct] = jax.tree.map(
            lambda leaf: self._described(leaf.shape, leaf.dtype),
            described_state(
                context.model,
                pools=context.pooling is not None,
                num_slots=num_slots,
                extra_size=context.sampling.processors.row_size,
                dtype=context.attention.dtype,
            ),
        )
        kept = (self.cache, self.state)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, kept)
        self._step = jax.jit(
            partial(step, context=context),
            static_argnames=("tree", "shape"),
            donate_argnames=("cache", "state"),
            out_shardings=(replicated, *shardings),
        )
        self._sample_deferred = jax.jit(
            partial(sample_deferred, context=context),
            static_argnames=("tree", "shape"),
            donate_argnames="state",
            out_shardings=(replicated, shardings[1]),
        )
        self._assign_slot = jax.jit(assign_slot, donate_argnums=0, out_shardings=shardings[1])
        self._allocate = jax.jit(
            partial(_allocate, self.cache, self.state, context), out_shardings=shardings
        )

    def compile(
        self, params: Params, program: Program, *, options: Mapping[str, Any] | None = None
    ) -> jax.stages.Compiled:
        """Compile a program without running it; `params` may be abstract.

        options: XLA debug options by name, in addition to those of all programs. Call the result
        without static arguments; it dispatches as fast as a jitted function.
        """
        device = self._mesh.devices.flat[0]
        # TPU kernels read the chip's kind from the current mesh, GPU kernels from the default
        # device.
        with jax.set_mesh(self._mesh), jax.default_device(device):
            return self._lower(params, program).compile(
                compiler_options={**_OPTIONS.get(device.platform, {}), **(options or {})}
            )

    def _lower(self, params: Params, program: Program) -> jax.stages.Lowered:
        match program:
            case StepShape():
                leaves, tree = jax.tree.flatten(params)
                return self._step.lower(
                    tuple(leaves),
                    self.cache,
                    self.state,
                    self._described((packed_size(program),), jnp.int32),
                    tree=tree,
                    shape=program,
                )
            case DeferredSampleShape():
                leaves, tree = jax.tree.flatten(params)
                size = packed_deferred_size(program, vocab_size=self._vocab_size)
                packed = self._described((size,), jnp.int32)
                return self._sample_deferred.lower(
                    tuple(leaves), self.state, packed, tree=tree, shape=program
                )
            case Helper.ASSIGN:
                memory = jax.tree.map(
                    lambda leaf: self._described(leaf.shape[1:], leaf.dtype), self.state
                )
                return self._assign_slot.lower(self.state, self._described((), jnp.int32), memory)
            case Helper.ALLOCATE:
                return self._allocate.lower()

    def _described(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """Describe a replicated array."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._replicated)


def step(
    leaves: tuple[jax.Array, ...],
    cache: KVCache,
    state: State[jax.Array],
    packed: jax.Array,
    *,
    tree: Any,
    shape: StepShape,
    context: StepContext,
) -> tuple[Output, KVCache, State[jax.Array]]:
    """Call `step.step` with flattened parameters.

    JAX flattens its arguments in every call, which is slow for a nested tree; see
    benchmarks/dispatch.py.
    """
    params: Params = jax.tree.unflatten(tree, leaves)
    return step_of_tree(params, cache, state, packed, shape=shape, context=context)


def sample_deferred(
    leaves: tuple[jax.Array, ...],
    state: SlotState[jax.Array],
    packed: jax.Array,
    *,
    tree: Any,
    shape: DeferredSampleShape,
    context: StepContext,
) -> tuple[StepOutput, SlotState[jax.Array]]:
    """Call `step.sample_deferred` with flattened parameters, as for a step."""
    params: Params = jax.tree.unflatten(tree, leaves)
    return sample_deferred_tree(params, state, packed, shape=shape, context=context)


def _allocate(
    cache: tuple[Any, ...], state: State[jax.ShapeDtypeStruct], context: StepContext
) -> tuple[KVCache, State[jax.Array]]:
    """Allocate an empty cache and a state of zeros."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    return allocate_caches(cache, context), zeros
