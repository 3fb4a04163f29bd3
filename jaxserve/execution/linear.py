"""Select the matmul backend for a model's weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jax.sharding import Mesh

from jaxserve.errors import ConfigError
from pallas_kernels import Unsupported, packed_linear
from pallas_kernels.dispatch import Choice, choose
from pallas_kernels.targets import Target

PACKED = "packed"
XLA = "xla"
BACKENDS = (PACKED, XLA)


@dataclass(frozen=True, kw_only=True)
class LinearPlan:
    """Matmul backend of a model.

    packed: dtype of packed weights (see `pallas_kernels.packed_linear`), None if they stay arrays.
    """

    choice: Choice
    packed: str | None


def plan_linear(
    *,
    dtype: str,
    stored_dtype: str,
    quantization: str | None,
    mesh: Mesh,
    target: Target,
    backend: str | None = None,
) -> LinearPlan:
    """Select the matmul backend for activations of `dtype` on the devices of `mesh`.

    stored_dtype: dtype of the checkpoint. Weights keep it where that is lossless, to reduce the
    bytes that a step reads. backend: the backend to use, None for the best supported one. Raises
    ConfigError if `backend` cannot be used.
    """
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(f"linear_backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    is_half = dtype == "float32" and stored_dtype == "bfloat16"
    kind = quantization or ("bfloat16" if is_half else dtype)
    checks: dict[str, Callable[[], None]] = {
        PACKED: partial(_check_packed, kind, mesh, target),
        XLA: lambda: None,
    }
    try:
        choice = choose("linear", checks, backend)
    except Unsupported as error:
        raise ConfigError(f"linear_backend {backend!r} cannot be used here: {error}") from error
    return LinearPlan(choice=choice, packed=kind if choice.backend == PACKED else None)


def _check_packed(kind: str, mesh: Mesh, target: Target) -> None:
    if mesh.size > 1:
        raise Unsupported(f"packed matrices need one device, got {mesh.size}")
    packed_linear.check(target, kind)
