"""One model in the formats of many tools: weights are the oracle's, tokens those of the goldens."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.quantized import checkpoint_layout
from jaxserve.loading.weights import load_model, load_params
from jaxserve.models import DecoderConfig, Params, bind, config_from_hf, hf_tensors, weight_specs
from jaxserve.quantization import WeightLayout
from jaxserve.quantization.grouped import GroupedMatrix
from tests.data import DATA, needs_data, oracle, quantized

PREFIX = "babyllama-h256-"
# The oracle and function for each maker, by the beginning of the folder's name.
ORACLES = {
    "awq": ("oracle_gptq_awq", "dequant"),
    "bnb": ("oracle_other", "bnb"),
    "ct": ("oracle_ct", "dequant"),
    "fp8": ("oracle_other", "hf_fp8"),
    "gptq": ("oracle_gptq_awq", "dequant"),
    "gptqm": ("oracle_gptq_awq", "dequant"),
    "modelopt": ("oracle_other", "modelopt"),
}
FOLDERS = sorted(
    path.name.removeprefix(PREFIX)
    for path in DATA.glob(f"quantized/{PREFIX}*")
    if path.name.removeprefix(PREFIX).split("-")[0] in ORACLES
)
# XLA divides a scale within one unit in the last place.
ROUNDED = {"bnb-int8", "ct-nvfp4"}
LENGTH = 256
to_numbers = jax.jit(GroupedMatrix.dequantized)


def weights(name: str) -> dict[str, NDArray[np.float32]]:
    module, function = ORACLES[name.split("-", maxsplit=1)[0]]
    found = getattr(oracle(module), function)(str(quantized(PREFIX + name)))
    return {key.removesuffix(".weight"): value for key, value in found.items()}


def as_stored(whole: NDArray[Any], spec: Any, tensor: Any) -> NDArray[Any]:
    """Return the part of a parameter that a stored tensor has, in its dimensions."""
    at = tuple(
        next(
            (slice(p.start, p.start + p.size) for p in tensor.parts if p.axis == axis), slice(None)
        )
        for axis in spec.axes
    )
    words = [word for dim in tensor.dims for word in dim]
    part = whole[at].transpose([spec.axes.index(word) for word in words])
    sizes = tensor.sizes(spec)
    return part.reshape([int(np.prod([sizes[word] for word in dim])) for dim in tensor.dims])


def dequantized(
    config: DecoderConfig, params: Params, expected: Mapping[str, Any], *, is_rounded: bool
) -> Params:
    """Compare every quantized matrix with the oracle, and return the parameters as arrays."""
    specs, tensors = weight_specs(config), hf_tensors(config)
    compared = set()

    def convert(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, GroupedMatrix):
            return leaf
        key = tuple(part.key for part in path)
        whole = np.asarray(to_numbers(leaf)).reshape(specs[key].shape)
        for tensor in tensors[key]:
            module = tensor.name.removesuffix(".weight")
            found, wanted = as_stored(whole, specs[key], tensor), expected[module]
            if is_rounded:
                np.testing.assert_allclose(found, wanted, rtol=3e-7, atol=0, err_msg=module)
            else:
                np.testing.assert_array_equal(found, wanted, err_msg=module)
            compared.add(module)
        return jnp.asarray(whole)

    plain: Params = jax.tree_util.tree_map_with_path(
        convert, params, is_leaf=lambda leaf: isinstance(leaf, GroupedMatrix)
    )
    assert compared == expected.keys()
    return plain


@lru_cache(maxsize=1)
def forward(config: DecoderConfig) -> Any:
    return jax.jit(lambda params, ids: bind(config, params)(ids))


@needs_data
@pytest.mark.filterwarnings(  # the oracles leave it to the garbage collector to close files
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("name", FOLDERS)
def test_weights_and_tokens_are_those_that_the_format_means(name: str) -> None:
    checkpoint = Checkpoint.open(quantized(PREFIX + name))
    config = config_from_hf(checkpoint.hf_config)
    layout = checkpoint_layout(checkpoint, config, WeightLayout())
    params = load_params(checkpoint, config, layout)
    plain = dequantized(config, params, weights(name), is_rounded=name in ROUNDED)
    check_tokens(PREFIX + name, lambda ids: forward(config)(plain, ids), atol=1e-4)


def check_tokens(name: str, logits_of: Any, *, atol: float) -> None:
    """Compare greedy tokens where the golden has a margin, and the log-probabilities of all."""
    for case in json.loads((quantized(name) / "golden.json").read_text("utf-8"))["cases"]:
        prompt, generated = case["prompt_ids"], np.array(case["generated_ids"])
        ids = np.zeros(LENGTH, np.int32)
        ids[: len(prompt) + len(generated)] = [*prompt, *generated]
        logits = logits_of(jnp.array(ids))[len(prompt) - 1 :][: len(generated)]
        runner_up, best = np.sort(np.asarray(logits), axis=-1)[:, -2:].T
        is_clear = best - runner_up > 1e-3
        assert is_clear.mean() > 0.9
        found = np.argmax(logits, axis=-1)
        np.testing.assert_array_equal(found[is_clear], generated[is_clear])
        logprobs = jax.nn.log_softmax(logits)[np.arange(len(generated)), generated]
        np.testing.assert_allclose(logprobs, case["generated_logprobs"], rtol=0, atol=atol)


@needs_data
def test_products_with_experts_in_mxfp4_give_the_tokens_of_the_golden() -> None:
    name = "tiny-random-gpt-oss-mxfp4"
    check_tokens(name, jax.jit(load_model(quantized(name), dtype="float32")), atol=5e-4)
