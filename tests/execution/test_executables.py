"""Programs in a folder: written for an engine, loaded by one, refused where they do not fit."""

import json
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxserve.build import LoadedModel, build
from jaxserve.config.engine import EngineOptions
from jaxserve.errors import ConfigError
from jaxserve.execution.compilation import use_compilation_cache
from jaxserve.execution.executables import MANIFEST, ExecutableFolder, ExecutableWriter
from jaxserve.execution.programs import Helper, all_programs, name_of
from jaxserve.frontend.text_engine import TextEngine
from jaxserve.planning.engine_plan import EnginePlan
from jaxserve.planning.planner import plan_engine
from jaxserve.planning.precompile import precompile
from tests.end_to_end.world import request, serve, write_one_layer

_COMPILE = "/jax/core/compile/backend_compile_duration"

# Programs that place weights.
LOADING = {"jit(arrange)", "jit(allocate)", "jit(write)"}


def plan_for(model: Path, executables: Path | None = None, **options: Any) -> EnginePlan:
    settings: dict[str, Any] = {
        "max_num_seqs": 2,
        "max_num_batched_tokens": 8,
        "max_model_len": 64,
        "compilation_cache": False,
        **options,
    }
    folder = None if executables is None else str(executables)
    return plan_engine(EngineOptions(model=str(model), executables=folder, **settings))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_one_layer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def written(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the programs of an engine of two devices."""
    folder = tmp_path_factory.mktemp("executables") / "new"
    plan = plan_for(model, tensor_parallel_size=2)
    assert all(report.fits for report in precompile(plan, context_len=32, out=folder))
    return folder


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    """The same, to be spoiled."""
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Collect the names of the functions that are compiled, with nothing kept from before.

    JAX tells of the whole process: what engines of other tests have under way is waited for.
    """
    found: list[str] = []
    for thread in threading.enumerate():
        if thread.name.startswith("jaxserve-programs-"):
            thread.join()
    jax.clear_caches()

    def listen(event: str, duration_secs: float, **details: str | int) -> None:
        if event == _COMPILE:
            found.append(str(details["fun_name"]))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def answer(loaded: LoadedModel) -> list[int]:
    """Return what greedy, adjusted and scored requests are answered, one after the other."""
    found: list[int] = []
    engine = TextEngine(loaded.engine, None)
    for params in ({}, {"repetition_penalty": 1.3, "logprobs": 2}, {"prompt_logprobs": 1}):
        answers = serve(engine, [request("a", (1, 5, 9, 20), max_tokens=12, **params)])
        found += answers["a", 0].token_ids
    return found


def test_an_engine_that_loads_its_programs_compiles_none_and_answers_alike(
    model: Path, written: Path
) -> None:
    with compilations() as compiled:
        lines: list[str] = []
        loaded = build(plan_for(model, written, tensor_parallel_size=2), report=lines.append)
        loaded_answer = answer(loaded)
        assert loaded.compilations.since_mark == 0
    # The programs with which the loader places weights are not the engine's.
    assert set(compiled) <= LOADING
    loaded.programs.finish()
    programs = all_programs(loaded.plan.shapes)
    assert sorted((each.name, each.origin) for each in loaded.startup.programs) == sorted(
        (name_of(program), "executables") for program in programs
    )
    # One of another engine is not taken: it says so once, compiles, and answers the same.
    lines = []
    other = plan_for(model, written, tensor_parallel_size=2, num_pages=9)
    with compilations() as compiled:
        rebuilt = build(other, report=lines.append)
        assert loaded_answer == answer(rebuilt)
        rebuilt.programs.finish()
    assert {"jit(step)", "jit(assign_slot)"} <= set(compiled)
    told = [line for line in lines if str(written) in line]
    assert len(told) == 1
    assert told[0].endswith("so it compiles its own: pages is 17 there and 9 here")


def test_a_program_that_is_not_in_the_folder_is_compiled(model: Path, copied: Path) -> None:
    manifest = json.loads((copied / MANIFEST).read_text("utf-8"))
    del manifest["programs"]["assign"]
    (copied / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with compilations() as compiled:
        build(plan_for(model, copied, tensor_parallel_size=2)).programs.finish()
    assert set(compiled) == LOADING | {"jit(assign_slot)"}


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({}, "tensor_parallel_size is 2 there and 1 here"),
        ({"tensor_parallel_size": 2, "max_num_seqs": 3}, "slots is 3 there and 4 here"),
        ({"tensor_parallel_size": 2, "max_model_len": 48}, "max_model_len is 64 there and 48 here"),
        ({"tensor_parallel_size": 2, "num_pages": 7}, "pages is 17 there and 7 here"),
        (
            {"tensor_parallel_size": 2, "dtype": "bfloat16"},
            "dtype is 'float32' there and 'bfloat16' here",
        ),
    ],
)
def test_programs_of_another_engine_are_not_taken_and_the_first_difference_is_told(
    model: Path, written: Path, options: dict[str, Any], difference: str
) -> None:
    plan = plan_for(model, written, **options)
    assert plan.executables is None
    assert plan.misfit == difference


@pytest.mark.parametrize("name", ["jaxlib", "sources", "runtime", "device", "xla_flags"])
def test_programs_of_another_compiler_are_not_taken(model: Path, copied: Path, name: str) -> None:
    manifest = json.loads((copied / MANIFEST).read_text("utf-8"))
    manifest["key"][name] = "another"
    (copied / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    plan = plan_for(model, copied, tensor_parallel_size=2)
    assert plan.executables is None
    assert plan.misfit is not None
    assert plan.misfit.startswith(f"{name} is 'another' there and ")


def test_the_number_of_pages_is_taken_over_where_it_fits(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    plan = plan_for(model, num_pages=9)
    writer = ExecutableWriter(folder, plan.key)
    writer.close()
    taken = plan_for(model, folder)
    assert taken.executables is not None
    assert taken.cache.num_pages == (taken.memory.num_pages,) == (9,)
    # Not where the user decides, nor where memory does not suffice.
    assert plan_for(model, folder, num_pages=10).executables is None
    small = plan_for(model, folder, kv_cache_memory_bytes=7 * plan.memory.page)
    assert small.executables is None
    assert small.memory.num_pages == 8  # the null page comes on top


def test_a_changed_file_is_refused_before_it_is_opened(model: Path, copied: Path) -> None:
    opened = copied / "opened"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (opened,))

    (copied / "allocate.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ConfigError, match=r"allocate\.bin is not the file that its manifest"):
        build(plan_for(model, copied, tensor_parallel_size=2))
    assert not opened.exists()


@pytest.mark.parametrize("name", [".", MANIFEST, "allocate.bin"])
def test_what_everyone_may_write_is_refused(model: Path, copied: Path, name: str) -> None:
    (copied / name).chmod(0o777)
    with pytest.raises(ConfigError, match="is writable by everyone"):
        build(plan_for(model, copied, tensor_parallel_size=2))


def test_a_folder_without_a_manifest_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"manifest\.json does not exist"):
        plan_for(model, tmp_path)
    with pytest.raises(ConfigError, match=r"nowhere.* does not exist"):
        plan_for(model, tmp_path / "nowhere")
    for text in ("no JSON", "[]", "{}"):
        (tmp_path / MANIFEST).write_text(text, "utf-8")
        with pytest.raises(ConfigError, match="is not a manifest"):
            plan_for(model, tmp_path)


def test_a_manifest_leads_to_no_other_folder(model: Path, copied: Path) -> None:
    folder = ExecutableFolder.open(copied)
    entry = {"file": "../allocate.bin", "sha256": folder.programs["allocate"]["sha256"]}
    spoiled = ExecutableFolder(copied, folder.key, {"allocate": entry})
    mesh = plan_for(model, tensor_parallel_size=2).context.mesh
    # The file beside the manifest is taken instead.
    assert spoiled.load(Helper.ALLOCATE, mesh) is not None


def test_programs_are_written_to_a_new_folder_only(model: Path, written: Path) -> None:
    with pytest.raises(ConfigError, match="out must be an empty or a new folder"):
        ExecutableWriter(written, plan_for(model).key)


def test_a_program_that_jax_has_in_its_cache_is_written_whole(model: Path, tmp_path: Path) -> None:
    plan = plan_for(model)
    use_compilation_cache(tmp_path / "cache")
    try:
        plan.programs.compile({}, Helper.ALLOCATE)  # into the cache
        jax.clear_caches()
        for _ in precompile(plan, context_len=32, only=["allocate"], out=tmp_path / "new"):
            pass
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    folder = ExecutableFolder.open(tmp_path / "new")
    compiled = folder.load(Helper.ALLOCATE, plan.context.mesh)
    assert compiled is not None
    jax.block_until_ready(compiled())
