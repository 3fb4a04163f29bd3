"""The programs that run on the device, described and compiled: the one place that jits."""

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxserve.execution.batch import packed_draw_size, packed_size
from jaxserve.execution.caches import KVCache, allocate_caches, describe_caches
from jaxserve.execution.context import StepContext
from jaxserve.execution.heads.pool import PoolOutput, PoolState, abstract_pool_state
from jaxserve.execution.heads.sample import StepOutput
from jaxserve.execution.shapes import DrawShape, ShapeTable, StepShape
from jaxserve.execution.state import SlotState, abstract_state, remember
from jaxserve.execution.step import draw as draw_of_tree
from jaxserve.execution.step import step as step_of_tree
from jaxserve.models import ModelConfig, Params


class Helper(StrEnum):
    """The programs beside the steps: make cache and state; overwrite a slot's row of the state."""

    ALLOCATE = "allocate"
    REMEMBER = "remember"


type Program = StepShape | DrawShape | Helper

# What lies on the device between steps beside the cache, and what a step hands to the host: of an
# engine that generates, and of one that pools.
type State[Leaf] = SlotState[Leaf] | PoolState[Leaf]
type Output = StepOutput | PoolOutput

# By platform. XLA would join the products of queries, keys and values by copying their weights
# together in every step: 50 MB a layer of an 8B model, read and written.
_OPTIONS = {"gpu": {"xla_gpu_dot_merger_threshold_mb": 0}}


def name_of(program: Program) -> str:
    """Return a word for a program, good for a table and a file."""
    return program.value if isinstance(program, Helper) else program.name


def first_programs(shapes: ShapeTable) -> list[Program]:
    """Return what an engine with these shapes cannot serve without; the longest to make first."""
    first: list[Program] = [shapes.shapes[0], Helper.ALLOCATE]
    return first if shapes.pools else [*first, Helper.REMEMBER]


def all_programs(shapes: ShapeTable) -> list[Program]:
    """Return everything an engine with these shapes runs, in the order in which it is best made."""
    # One draw serves every request that asks for a grammar.
    return [*first_programs(shapes), *shapes.draws[:1], *shapes.shapes[1:], *shapes.draws[1:]]


def described_state(
    model: ModelConfig, *, pools: bool, num_slots: int, dtype: DTypeLike, extra_size: int = 0
) -> State[jax.ShapeDtypeStruct]:
    """Describe what an engine keeps of its slots, slot 0 included, before it exists.

    dtype: of what the model's head reads.
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
    """What an engine runs on its devices, and what it keeps on them, before either exists.

    num_pages: of each pool of the layout. cache and state: trees of jax.ShapeDtypeStruct, each with
    its sharding. A step takes both by
    donation and returns them where they were; so do draws and REMEMBER with the state. Of the
    parameters steps and draws take the leaves, as a tuple.
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
        self._draw = jax.jit(
            partial(draw, context=context),
            static_argnames=("tree", "shape"),
            donate_argnames="state",
            out_shardings=(replicated, shardings[1]),
        )
        self._remember = jax.jit(remember, donate_argnums=0, out_shardings=shardings[1])
        self._allocate = jax.jit(
            partial(_allocate, self.cache, self.state, context), out_shardings=shardings
        )

    def compile(
        self, params: Params, program: Program, *, options: Mapping[str, Any] | None = None
    ) -> jax.stages.Compiled:
        """Compile a program without running it; `params` may be abstract.

        options: XLA's debug options by name, beside those that all programs are compiled with. What
        comes back is called with the arguments alone, as fast as a jitted function.
        """
        device = self._mesh.devices.flat[0]
        # Kernels for TPUs ask the mesh at hand which chip they are for, those for GPUs the default
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
            case DrawShape():
                leaves, tree = jax.tree.flatten(params)
                size = packed_draw_size(program, vocab_size=self._vocab_size)
                packed = self._described((size,), jnp.int32)
                return self._draw.lower(tuple(leaves), self.state, packed, tree=tree, shape=program)
            case Helper.REMEMBER:
                memory = jax.tree.map(
                    lambda leaf: self._described(leaf.shape[1:], leaf.dtype), self.state
                )
                return self._remember.lower(self.state, self._described((), jnp.int32), memory)
            case Helper.ALLOCATE:
                return self._allocate.lower()

    def _described(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """Describe an array that every device holds."""
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
    """See `step.step`; the parameters are flat.

    JAX takes long to walk a tree in every call:
    benchmarks/dispatch.py tells how long.
    """
    params: Params = jax.tree.unflatten(tree, leaves)
    return step_of_tree(params, cache, state, packed, shape=shape, context=context)


def draw(
    leaves: tuple[jax.Array, ...],
    state: SlotState[jax.Array],
    packed: jax.Array,
    *,
    tree: Any,
    shape: DrawShape,
    context: StepContext,
) -> tuple[StepOutput, SlotState[jax.Array]]:
    """See `step.draw`; the parameters are flat, as for a step."""
    params: Params = jax.tree.unflatten(tree, leaves)
    return draw_of_tree(params, state, packed, shape=shape, context=context)


def _allocate(
    cache: tuple[Any, ...], state: State[jax.ShapeDtypeStruct], context: StepContext
) -> tuple[KVCache, State[jax.Array]]:
    """Make a cache that holds nothing yet, and a state of zeros."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    return allocate_caches(cache, context), zeros
