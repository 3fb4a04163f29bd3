"""Routed experts: each token's own, on one device and on several, in every weight format."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from jaxserve.layers.activation import SWIGLU, ClampedSwiglu
from jaxserve.layers.experts import expert_feed_forward
from jaxserve.parallel.sharding import ShardingPlan
from jaxserve.quantization import WeightLayout, WeightSpec, find_method
from pallas_kernels import Unsupported, packed_linear
from pallas_kernels.targets import CPU

RNG = np.random.default_rng(11)
EXPERTS, EMBED, FFW, TOKENS, TOP_K = 6, 16, 12, 21, 2
SPECS = {
    **{
        name: WeightSpec(
            ("experts", "embed", "ffw"), (EXPERTS, EMBED, FFW), ("embed",), stacked=("experts",)
        )
        for name in ("gate", "up")
    },
    "down": WeightSpec(
        ("experts", "ffw", "embed"), (EXPERTS, FFW, EMBED), summed=("ffw",), stacked=("experts",)
    ),
    "gate_bias": WeightSpec(("experts", "ffw"), (EXPERTS, FFW)),
    "up_bias": WeightSpec(("experts", "ffw"), (EXPERTS, FFW)),
}
type Params = dict[str, Any]


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


PARAMS: Params = {name: normal(*spec.shape) for name, spec in SPECS.items()}
X, WEIGHTS = normal(TOKENS, EMBED), normal(TOKENS, TOP_K)
# One expert of each token is any, the other is 3; no token has expert 5.
CHOSEN = jnp.stack([jnp.asarray(RNG.integers(0, 3, TOKENS)), jnp.full(TOKENS, 3)], axis=1)


def one_by_one(params: Params, activation: Any) -> np.ndarray[Any, Any]:
    """The definition: token by token, expert by expert."""
    out = np.zeros((TOKENS, EMBED), np.float32)
    for token in range(TOKENS):
        for expert, weight in zip(CHOSEN[token], WEIGHTS[token], strict=True):
            wide = [X[token] @ params[name][expert] for name in ("gate", "up")]
            if "gate_bias" in params:
                wide = [wide[0] + params["gate_bias"][expert], wide[1] + params["up_bias"][expert]]
            out[token] += weight * (activation(*wide) @ params["down"][expert])
    return out


def run(params: Params, chosen: jax.Array = CHOSEN, activation: Any = SWIGLU) -> jax.Array:
    @jax.jit
    def forward(params: Params) -> jax.Array:
        return expert_feed_forward(X, chosen, WEIGHTS, params, SPECS, activation=activation)

    out: jax.Array = forward(params)
    return out


@pytest.mark.parametrize("activation", [SWIGLU, ClampedSwiglu(alpha=1.7, limit=2.0)])
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_are_those_of_each_tokens_experts(activation: Any, *, bias: bool) -> None:
    params = PARAMS if bias else {name: PARAMS[name] for name in ("gate", "up", "down")}
    expected = one_by_one(params, activation)
    np.testing.assert_allclose(run(params, activation=activation), expected, rtol=1e-4, atol=1e-4)


def test_padding_adds_nothing() -> None:
    out = run(PARAMS, CHOSEN.at[10:].set(EXPERTS))
    np.testing.assert_allclose(out[:10], run(PARAMS)[:10], rtol=1e-5, atol=1e-5)
    assert not np.any(out[10:])


def test_experts_without_tokens_are_not_read() -> None:
    spoiled = {name: param.at[5].set(jnp.nan) for name, param in PARAMS.items()}
    np.testing.assert_array_equal(run(spoiled), run(PARAMS))


@pytest.mark.parametrize("axes", [{"tensor": 2}, {"expert": 2}, {"expert": 2, "tensor": 2}])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_any_mesh_computes_what_one_device_does(
    axes: dict[str, int], quantization: str | None
) -> None:
    count = int(np.prod(list(axes.values())))
    mesh = Mesh(
        np.array(jax.devices()[:count]).reshape(*axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
    )
    layout = WeightLayout(sharding=ShardingPlan(mesh), method=find_method(quantization))

    def placed(name: str) -> Any:
        spec, method = SPECS[name], layout.method_of((name,), SPECS[name])
        place = layout.array(spec.axes, spec.shape).sharding
        return method.from_tensors({"weight": jax.device_put(PARAMS[name], place)}, spec, layout)

    with jax.set_mesh(mesh):
        out = run({name: placed(name) for name in SPECS})
    expected = one_by_one(PARAMS, SWIGLU)
    error = np.linalg.norm(out - expected) / np.linalg.norm(expected)
    assert error < (0.05 if quantization else 1e-6)


@pytest.mark.parametrize("kind", packed_linear.KINDS)
def test_packed_experts_compute_the_same(kind: str) -> None:
    try:
        packed_linear.check(CPU, kind)
    except Unsupported as reason:
        pytest.skip(f"packed matrices: {reason}")
    layout = WeightLayout(packed=kind, method=find_method("int8" if kind == "int8" else None))
    packed = {
        name: layout.method_of((name,), spec).from_tensors({"weight": PARAMS[name]}, spec, layout)
        for name, spec in SPECS.items()
    }
    out, expected = run(packed), one_by_one(PARAMS, SWIGLU)
    error = np.linalg.norm(out - expected) / np.linalg.norm(expected)
    assert error < {"float32": 1e-6, "bfloat16": 0.01, "int8": 0.05}[kind]
