"""Selection of the matmul backend, and the format of weights."""

from typing import Any

import pytest

from jaxserve.errors import ConfigError
from jaxserve.execution.linear import LinearPlan, plan_linear
from jaxserve.parallel.sharding import make_mesh
from pallas_kernels.packed_linear import check
from pallas_kernels.targets import CPU, TARGETS, Target


def linear(
    dtype: str = "float32",
    stored_dtype: str = "float32",
    quantization: str | None = None,
    *,
    devices: int = 1,
    target: Target = CPU,
    backend: str | None = None,
) -> LinearPlan:
    return plan_linear(
        dtype=dtype,
        stored_dtype=stored_dtype,
        quantization=quantization,
        mesh=make_mesh(devices),
        target=target,
        backend=backend,
    )


@pytest.mark.parametrize(
    ("asked", "packed"),
    [
        ({}, "float32"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"quantization": "int8"}, "int8"),
        ({"quantization": "int8", "dtype": "float16"}, "int8"),
        # Nothing is lost, and a step reads half the bytes.
        ({"stored_dtype": "bfloat16"}, "bfloat16"),
        ({"stored_dtype": "float16"}, "float32"),
    ],
)
def test_a_cpu_multiplies_by_packed_matrices(asked: Any, packed: str) -> None:
    check(CPU, "float32")
    plan = linear(**asked)
    assert (plan.choice.backend, plan.packed) == ("packed", packed)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"dtype": "float16"}, "multiplies by float32, bfloat16, int8, not by float16"),
        ({"devices": 2}, "packed matrices need one device, got 2"),
        ({"target": TARGETS["h200"]}, "needs a CPU, got h200"),
    ],
)
def test_xla_multiplies_where_they_cannot_be_packed(asked: Any, reason: str) -> None:
    plan = linear(**asked)
    assert (plan.choice.backend, plan.packed) == ("xla", None)
    assert dict(plan.choice.refusals) == {"packed": reason}
    with pytest.raises(ConfigError, match=f"linear_backend 'packed' cannot be used.*{reason}"):
        linear(**asked, backend="packed")


def test_xla_multiplies_where_it_is_asked_to() -> None:
    assert linear(backend="xla").packed is None


def test_another_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="linear_backend must be one of packed, xla, got 'mkl'"):
        linear(backend="mkl")
