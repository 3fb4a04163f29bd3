"""How the weights of a model are kept: a layout for all of them, a method for each matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxserve.parallel.sharding import ShardingPlan
from jaxserve.quantization import packed
from jaxserve.quantization.matrix import Matrix, WeightSpec

# Names of floating-point types in safetensors.
FLOAT_DTYPES = frozenset({"F32", "BF16", "F16"})


@dataclass(frozen=True, slots=True)
class Component:
    """A tensor that a checkpoint stores of a matrix: its name, its shape, its possible dtypes."""

    name: str
    shape: tuple[int, ...]
    dtypes: frozenset[str] = FLOAT_DTYPES


class Method(Protocol):
    """A way to store and to keep a matrix. Hashable; `quantization/<method>.py` has one each.

    Loading goes through it in three steps: `components` are read from the files; `unpack` turns
    those of one stored tensor into tensors whose dimensions are its own, which the loader slices,
    permutes and joins; `from_tensors` makes the matrix of the joined ones.
    """

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        """Return what a checkpoint stores of a tensor that would be `name` of `shape`."""
        ...

    def unpack(self, stored: Mapping[str, Array], layout: "WeightLayout") -> Mapping[str, Array]:
        """Turn components, by their keys, into tensors with the dimensions of the whole one.

        A dimension that products sum over may be shorter (one scale for a group) or 1.
        """
        ...

    def describe(self, spec: WeightSpec, layout: "WeightLayout") -> Any:
        """Describe the matrix before it exists: a Matrix, or an array, of ShapeDtypeStructs."""
        ...

    def from_tensors(
        self, tensors: Mapping[str, Array], spec: WeightSpec, layout: "WeightLayout"
    ) -> Any:
        """Return the matrix that `describe` describes, on its devices.

        tensors: what `unpack` returned, in the axes of `spec`; axes of a shortened dimension stay
        flattened.
        """
        ...


@dataclass(frozen=True)
class Arrays:
    """Weights as floating-point arrays, packed where the layout says so."""

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        """Return the tensor itself."""
        return {"weight": Component(name, tuple(shape))}

    def unpack(self, stored: Mapping[str, Array], layout: "WeightLayout") -> Mapping[str, Array]:
        """Cast to the dtype of the layout."""
        return {"weight": stored["weight"].astype(layout.dtype)}

    def describe(self, spec: WeightSpec, layout: "WeightLayout") -> Any:
        """Describe an array or a packed matrix."""
        if not self._packs(spec, layout):
            return layout.array(spec.axes, spec.shape)
        return packed.describe(
            spec, kind=str(layout.packed), dtype=layout.dtype, sharding=layout.sharding
        )

    def from_tensors(
        self, tensors: Mapping[str, Array], spec: WeightSpec, layout: "WeightLayout"
    ) -> Any:
        """Return the array itself, or pack it."""
        weight = tensors["weight"]
        if not self._packs(spec, layout):
            return weight
        values = weight.astype(layout.packed)
        return packed.pack(values, spec, dtype=layout.dtype, sharding=layout.sharding)

    def _packs(self, spec: WeightSpec, layout: "WeightLayout") -> bool:
        return bool(spec.summed) and layout.packed in packed.FLOATS


ARRAYS = Arrays()

# A parameter's place: attribute names and layer numbers from the model down.
type Path = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class WeightLayout:
    """How the parameters of a model are kept.

    dtype: of arrays, and of what quantized matrices stand for. sharding: None for JAX's default
    device. packed: what packed matrices hold (`packed_linear.KINDS`), which needs one CPU; None for
    no packing. method: of all matrices but `exceptions`, by their paths.
    """

    dtype: str = "float32"
    sharding: ShardingPlan | None = None
    packed: str | None = None
    method: Method = ARRAYS
    exceptions: Mapping[Path, Method] = field(default_factory=dict, compare=False)

    @property
    def plain(self) -> "WeightLayout":
        """The same with every matrix as an array."""
        return replace(self, method=ARRAYS, packed=None, exceptions={})

    def array(
        self, axes: Sequence[str], shape: Sequence[int], dtype: DTypeLike | None = None
    ) -> jax.ShapeDtypeStruct:
        """Describe an array whose dimensions hold `axes`; a dimension may hold several words.

        Raises ConfigError if it cannot be sharded.
        """
        words = [axis.partition(" ")[0] for axis in axes]  # the outermost is the one that is split
        sharding = None if self.sharding is None else self.sharding.sharding(words, shape)
        return jax.ShapeDtypeStruct(
            tuple(shape), jnp.dtype(self.dtype if dtype is None else dtype), sharding=sharding
        )

    def method_of(self, path: Path, spec: WeightSpec) -> Method:
        """Return the method of a parameter; vectors are arrays."""
        return self.exceptions.get(path, self.method) if spec.summed else ARRAYS

    def describe(self, path: Path, spec: WeightSpec) -> Matrix | jax.ShapeDtypeStruct:
        """Describe a parameter before it exists."""
        described: Matrix | jax.ShapeDtypeStruct
        described = self.method_of(path, spec).describe(spec, self)
        return described


def shardings_of(described: Any) -> Any:
    """Return the shardings of a tree of described arrays, for `jax.jit(out_shardings=...)`."""
    return jax.tree.map(lambda leaf: leaf.sharding, described)
