"""Errors of planning and building an engine that cannot work."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxserve.api.request import Request
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.build import _explaining_out_of_memory, build
from jaxserve.config.engine import EngineOptions
from jaxserve.errors import CheckpointError, ConfigError, MemoryPlanError
from jaxserve.planning.planner import EMBEDDED_FOLDER, plan_engine

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "dtype": "float32",
}


def folder(path: Path, **fields: Any) -> str:
    (path / "config.json").write_text(json.dumps({**CONFIG, **fields}), "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("settings", "longest"),
    [
        ({"type": "linear", "factor": 2.0}, 128),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "default"}, 64),
    ],
)
def test_the_context_is_the_one_that_rope_reaches(
    tmp_path: Path, settings: dict[str, object], longest: int
) -> None:
    model = folder(tmp_path, rope_scaling=settings)
    plan = plan_engine(EngineOptions(model=model))
    assert plan.scheduler.max_model_len == plan.context.rope_length == longest
    assert plan_engine(EngineOptions(model=model, max_model_len=32)).context.rope_length == 32


def test_a_longer_context_is_refused_with_an_override_that_reaches_it(tmp_path: Path) -> None:
    model = folder(tmp_path)
    with pytest.raises(ConfigError, match=r"model's own context \(64\), got 200") as caught:
        plan_engine(EngineOptions(model=model, max_model_len=200))
    advised = re.search("--hf-overrides '(.*)'", str(caught.value))
    assert advised is not None
    options = EngineOptions(model=model, max_model_len=200, hf_overrides=json.loads(advised[1]))
    assert plan_engine(options).scheduler.max_model_len == 200


def test_an_error_in_an_overridden_configuration_tells_of_the_override(tmp_path: Path) -> None:
    options = EngineOptions(model=folder(tmp_path), hf_overrides={"vocab_size": 0})
    with pytest.raises(CheckpointError, match=r"""vocab_size = 0.*--hf-overrides '\{"vocab_size"""):
        plan_engine(options)


def test_virtual_devices_share_the_memory_of_their_host(tmp_path: Path) -> None:
    model = folder(tmp_path)
    alone, halves = (
        plan_engine(EngineOptions(model=model, tensor_parallel_size=size)).memory.limit
        for size in (1, 2)
    )
    assert 0.4 < halves / alone < 0.6  # what is free changes from one moment to the next


def test_an_unknown_attention_backend_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"attention_backend must be one of .*, got 'x'"):
        plan_engine(EngineOptions(model=folder(tmp_path), attention_backend="x"))


def test_weights_are_drawn_at_random_for_a_model_that_has_none(tmp_path: Path) -> None:
    options = EngineOptions(
        model=folder(tmp_path, vocab_size=2048),
        tokenizer=str(EMBEDDED_FOLDER),
        max_num_seqs=1,
        max_num_batched_tokens=2,
        compilation_cache=False,
    )
    with pytest.raises(CheckpointError, match="not run, unless --load-format is dummy"):
        build(plan_engine(options))
    engine = build(plan_engine(replace(options, load_format="dummy"))).engine
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    engine.add(Request(id="", prompt_ids=(1, 2), params=params))
    token_ids = []
    while engine.has_work:
        token_ids += [token for batch in engine.step().values() for token in batch.token_ids]
    assert len(token_ids) == 3


def test_a_backend_that_llguidance_stands_in_for_is_reported(tmp_path: Path) -> None:
    options = EngineOptions(
        model=folder(tmp_path, vocab_size=2048),
        tokenizer=str(EMBEDDED_FOLDER),
        load_format="dummy",
        warm_up="none",
        structured_outputs_config={"backend": "xgrammar"},
    )
    lines: list[str] = []
    build(plan_engine(options), report=lines.append)
    assert any("backend=xgrammar has no effect" in line for line in lines)
    with pytest.raises(ConfigError, match="xgrammar, outlines, lm-format-enforcer, got 'regexes'"):
        replace(options, structured_outputs_config={"backend": "regexes"})


def test_running_out_of_memory_says_what_to_change() -> None:
    wanted = pytest.raises(MemoryPlanError, match="Lower --gpu-memory-utilization")
    with wanted, _explaining_out_of_memory():
        jnp.zeros(1 << 50, jnp.uint8).block_until_ready()


def test_other_errors_of_the_device_stay_what_they_are() -> None:
    wanted = pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL")
    with wanted, _explaining_out_of_memory():
        raise jax.errors.JaxRuntimeError("INTERNAL: lost")
