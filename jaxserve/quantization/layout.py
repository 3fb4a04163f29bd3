"""Weight layout of a model, and the quantization method of each matrix."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array
from numpy.typing import NDArray

from jaxserve.parallel.sharding import ShardingPlan
from jaxserve.quantization import packed
from jaxserve.quantization.matrix import Matrix, WeightSpec

# Names of floating-point types in safetensors.
FLOAT_DTYPES = frozenset({"F32", "BF16", "F16"})


@dataclass(frozen=True, slots=True)
class Component:
    """Tensor that a checkpoint stores for a matrix: its name, shape and allowed dtypes.

    parse: converts the stored array to the component on the host, for tensors that hold text.
    """

    name: str
    shape: tuple[int, ...]
    dtypes: frozenset[str] = FLOAT_DTYPES
    parse: Callable[[NDArray[Any]], NDArray[Any]] | None = None


class Method(Protocol):
    """Quantization method. Hashable; one per `quantization/<method>.py`.

    Loading has three steps. `components` lists the tensors to read from the files. `unpack`
    converts those of one stored tensor to tensors with its dimensions, which the loader slices,
    permutes and joins. `from_tensors` creates the matrix from the joined ones.
    """

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        """Return what a checkpoint stores for a tensor with this name and shape."""
        ...

    def unused_names(self, name: str) -> Sequence[str]:
        """Return the tensors that a checkpoint may store beside this one, and that are not read."""
        ...

    def unpack(self, stored: Mapping[str, Array], layout: "WeightLayout") -> Mapping[str, Array]:
        """Convert components, by key, to tensors with the dimensions of the whole tensor.

        A contracted dimension may be shorter (one scale per group) or 1.
        """
        ...

    def describe(self, spec: WeightSpec, layout: "WeightLayout") -> Any:
        """Describe the matrix before it exists: a Matrix or array of ShapeDtypeStructs."""
        ...

    def from_tensors(
        self, tensors: Mapping[str, Array], spec: WeightSpec, layout: "WeightLayout"
    ) -> Any:
        """Return the matrix that `describe` describes, on its devices.

        tensors: results of `unpack`, with the axes of `spec`; axes of a shortened dimension stay
        flattened.
        """
        ...


@dataclass(frozen=True)
class Arrays:
    """Weights as floating-point arrays, packed if the layout says so."""

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        """Return the tensor itself."""
        return {"weight": Component(name, tuple(shape))}

    def unused_names(self, name: str) -> Sequence[str]:
        """Return no names."""
        del name
        return ()

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

# Path of a parameter: attribute names and layer numbers, starting at the model.
type Path = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class WeightLayout:
    """Dtype, sharding, packing and quantization of a model's parameters.

    dtype: of arrays, and of dequantized values. sharding: None for JAX's default device. packed:
    dtype of packed matrices (`packed_linear.KINDS`), which need a single CPU device; None for no
    packing. method: method of all matrices. exceptions: other methods, by path.
    """

    dtype: str = "float32"
    sharding: ShardingPlan | None = None
    packed: str | None = None
    method: Method = ARRAYS
    exceptions: Mapping[Path, Method] = field(default_factory=dict, compare=False)

    @property
    def plain(self) -> "WeightLayout":
        """The same layout with every matrix as an array."""
        return replace(self, method=ARRAYS, packed=None, exceptions={})

    def array(
        self, axes: Sequence[str], shape: Sequence[int], dtype: DTypeLike | None = None
    ) -> jax.ShapeDtypeStruct:
        """Describe an array with `axes`; an axis may be several words, flattened.

        Raises ConfigError if it cannot be sharded.
        """
        words = [axis.partition(" ")[0] for axis in axes]  # only the outermost is sharded
        sharding = None if self.sharding is None else self.sharding.sharding(words, shape)
        return jax.ShapeDtypeStruct(
            tuple(shape), jnp.dtype(self.dtype if dtype is None else dtype), sharding=sharding
        )

    def of(self, spec: WeightSpec) -> "WeightLayout":
        """Return the layout with the dtype of a parameter that has its own."""
        return self if spec.dtype is None else replace(self, dtype=spec.dtype)

    def method_of(self, path: Path, spec: WeightSpec) -> Method:
        """Return the method of a parameter; those without summed axes are always arrays."""
        return self.exceptions.get(path, self.method) if spec.summed else ARRAYS

    def describe(self, path: Path, spec: WeightSpec) -> Matrix | jax.ShapeDtypeStruct:
        """Describe a parameter before it exists."""
        described: Matrix | jax.ShapeDtypeStruct
        described = self.method_of(path, spec).describe(spec, self.of(spec))
        return described


def shardings_of(described: Any) -> Any:
    """Return the shardings of a tree of described arrays, for `jax.jit(out_shardings=...)`."""
    return jax.tree.map(lambda leaf: leaf.sharding, described)
