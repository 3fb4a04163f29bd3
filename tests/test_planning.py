"""Memory plans hold, and following their advice succeeds, for many models and memory sizes."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from jaxserve.api.request import Request
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.build import build
from jaxserve.config.engine import EngineOptions
from jaxserve.config.flags import ENGINE_FLAGS, engine_options
from jaxserve.errors import MemoryPlanError
from jaxserve.execution.host_memory import free_bytes
from jaxserve.planning.engine_plan import EnginePlan
from jaxserve.planning.planner import EMBEDDED_FOLDER, plan_engine
from tests.goldens.checkpoints import encoder_config, tiny_config

GIB = 1 << 30
LLAMA_2_7B = tiny_config(
    "llama",
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=None,
    max_position_embeddings=4096,
)
BERT_BASE = encoder_config(
    "bert",
    vocab_size=30522,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=512,
)
CONFIGS = {"llama-2-7b": LLAMA_2_7B, "tiny": tiny_config("qwen3"), "bert-base": BERT_BASE}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_model_len": 4096},
    {"max_model_len": 40},
    {"kv_cache_memory_bytes": 4 * GIB},
    {"kv_cache_memory_bytes": 4 * GIB, "max_model_len": 4096},
    {"num_gpu_blocks_override": 100},
    {"num_gpu_blocks_override": 100, "max_model_len": 4096},
    {"gpu_memory_utilization": 0.5},
    {"block_size": 128, "quantization": "int8"},
    {"max_num_batched_tokens": 8192, "max_num_seqs": 256},
]
MIB = 1 << 20
MEMORIES = {
    "tiny": (MIB // 2, MIB, 3 * MIB // 2, 2 * MIB, 5 * MIB, 20 * MIB, 5 * GIB),
    "bert-base": (100 * MIB, 400 * MIB, 450 * MIB, 480 * MIB, 600 * MIB, 5 * GIB),
    "qwen3-0.6b": (GIB, 2 * GIB, 5 * GIB, 9 * GIB, 18 * GIB),
    "llama-2-7b": (GIB, 8 * GIB, 14 * GIB, 18 * GIB, 33 * GIB),
    "llama-3.1-8b": (9 * GIB, 18 * GIB, 33 * GIB, 100 * GIB),
}


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Leave so many bytes of the host's memory free."""

    def leave(num_bytes: int) -> None:
        monkeypatch.setattr("jaxserve.planning.planner.free_bytes", lambda: num_bytes)

    return leave


def write(path: Path, config: dict[str, Any]) -> str:
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    return str(path)


def check(plan: EnginePlan) -> None:
    """Assert what an engine relies on when it starts and runs one sequence of full length."""
    memory, cache = plan.memory, plan.cache
    assert memory.free >= 0
    assert cache.num_pages == (memory.num_pages,)
    assert (memory.num_pages - 1) * cache.page_size >= plan.scheduler.max_model_len
    is_capped = plan.full_context is not None
    assert is_capped == any("is capped at" in line for line in plan.lines())
    if is_capped:
        assert plan.options.max_model_len is None
        assert plan.scheduler.max_model_len < plan.full_context  # type: ignore[operator]


def advised(message: str) -> list[tuple[str, str | None]]:
    """Return the flags that a refusal advises, and their values: None for one to leave out."""
    advice = message.partition("Any one of these makes it fit: ")[2]
    return [
        (match[2].replace("-", "_"), None if match[1] else match[3])
        for match in re.finditer(r"(no )?--([a-z0-9-]+)(?: ([^ ,]+))?", advice)
    ]


@pytest.mark.parametrize("name", MEMORIES)
def test_a_plan_holds_and_advice_that_is_followed_succeeds(
    tmp_path: Path, leave: Any, name: str
) -> None:
    model = write(tmp_path, CONFIGS[name]) if name in CONFIGS else name
    parsers = {flag.keyword: flag.parse for flag in ENGINE_FLAGS}
    num_plans = num_advised = 0
    for num_bytes, keywords in product(MEMORIES[name], OPTIONS):
        leave(num_bytes)
        longest = {"tiny": 128, "bert-base": 512}.get(name, 4096)
        if "max_model_len" in keywords:
            keywords = {**keywords, "max_model_len": min(keywords["max_model_len"], longest)}
        try:
            check(plan_engine(engine_options(model, keywords)))
            num_plans += 1
        except MemoryPlanError as error:
            for keyword, value in advised(str(error)):
                changed = {**keywords, keyword: value and parsers[keyword](value)}
                assert changed[keyword] != keywords.get(keyword)
                check(plan_engine(engine_options(model, changed)))
                num_advised += 1
    assert num_plans > 10
    assert num_advised > 10


def test_qwen3_at_its_own_context_fits_a_cpu_with_18_gib(leave: Any) -> None:
    leave(18 * GIB)
    plan = plan_engine(EngineOptions(model="qwen3-0.6b"))
    assert (plan.scheduler.max_model_len, plan.full_context) == (40960, None)


def test_llama_2_does_not_miss_its_context_by_the_null_page(tmp_path: Path, leave: Any) -> None:
    leave(64 * GIB)
    model = write(tmp_path, LLAMA_2_7B)
    for kv_cache_memory_bytes in (None, 4 * GIB):
        options = EngineOptions(model=model, kv_cache_memory_bytes=kv_cache_memory_bytes)
        plan = plan_engine(options)
        assert (plan.scheduler.max_model_len, plan.full_context) == (4096, None)


def test_a_context_that_does_not_fit_is_capped_with_a_warning_and_runs_to_its_end(
    tmp_path: Path, leave: Any, caplog: pytest.LogCaptureFixture
) -> None:
    leave(1_200_000)
    options = EngineOptions(
        model=write(
            tmp_path, tiny_config("llama", max_position_embeddings=100_000, num_hidden_layers=1)
        ),
        tokenizer=str(EMBEDDED_FOLDER),
        load_format="dummy",
        max_num_seqs=1,
        max_num_batched_tokens=64,
        compilation_cache=False,
        warm_up="none",
    )
    plan = plan_engine(options)
    check(plan)
    length = plan.scheduler.max_model_len
    assert f"max_model_len is capped at {length} of 100000 tokens" in caplog.text
    engine = build(plan).engine
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    engine.add(Request(id="", prompt_ids=(5,) * (length - 4), params=params))
    token_ids: list[int] = []
    while engine.has_work:
        for batch in engine.step().values():
            token_ids += batch.token_ids
    assert len(token_ids) == 4


def test_the_same_context_is_refused_where_it_was_asked_for(tmp_path: Path, leave: Any) -> None:
    leave(10_000_000)
    model = write(tmp_path, tiny_config("llama", max_position_embeddings=100_000))
    options = EngineOptions(model=model, max_model_len=100_000, max_num_seqs=1)
    with pytest.raises(MemoryPlanError, match=r"100000 tokens does not fit.*--max-model-len \d+"):
        plan_engine(options)


@pytest.mark.parametrize(
    ("version", "files"),
    [
        ("0::/pod", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu,memory:/pod",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
@pytest.mark.parametrize("place", ["", "pod"])
def test_a_container_has_what_its_limit_leaves(
    tmp_path: Path, version: str, files: tuple[str, str, str], place: str
) -> None:
    process = tmp_path / "cgroup"
    process.write_text(f"{version}\n", "utf-8")
    folder = tmp_path / ("" if version.startswith("0") else "memory") / place
    folder.mkdir(parents=True, exist_ok=True)
    limit, usage, inactive = files
    (folder / usage).write_text("700\n", "utf-8")
    (folder / "memory.stat").write_text(f"anon 600\n{inactive} 100\n", "utf-8")
    (folder / limit).write_text("1000\n", "utf-8")
    assert free_bytes(cgroups=tmp_path, process=process) == 400
    (folder / limit).write_text("max\n", "utf-8")
    assert free_bytes(cgroups=tmp_path, process=process) > 1_000_000
