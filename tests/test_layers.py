"""A file imports from its own layer and lower ones only, and host code never imports jax."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Lowest first; a new module or folder of jaxserve/ takes its place here.
LAYERS = (
    {"errors", "database", "api", "observability", "__version__"},
    {"pallas_kernels"},
    {"layers", "quantization", "parallel"},
    {"models"},
    {"loading", "execution", "tokenization"},
    {"engine", "grammar", "chat", "config", "access"},
    {"frontend", "client"},
    {"server"},
    {"processes"},
    {"planning", "build"},
    {"offline", "bench"},
    {"commands", "cli", "__main__", "__init__"},
)
LAYER_OF = {unit: layer for layer, units in enumerate(LAYERS) for unit in units}
# Strangers although their layers would allow it: kernels stand alone, the plan is all that the
# engine and the device code know of each other, and `LLM` needs no server.
STRANGERS = {("pallas_kernels", unit) for unit in LAYERS[0]} | {
    ("engine", "execution"),
    ("offline", "server"),
}
NO_JAX = LAYERS[0] | {
    "tokenization",
    "engine",
    "grammar",
    "chat",
    "config",
    "access",
    "frontend",
    "client",
    "server",
    "processes",
    "commands",
    "cli",
}


def modules() -> Iterator[tuple[str, Path]]:
    for folder, package in (
        ("jaxserve", "jaxserve"),
        ("models", "jaxserve.models"),
        ("pallas_kernels", "pallas_kernels"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *inner)), path


def unit_of(module: str) -> str:
    """Return the layer table's word for a module: `engine` for `jaxserve.engine.pages`."""
    package, *inner = module.split(".")
    return package if package == "pallas_kernels" else inner[0] if inner else "__init__"


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_a_layer() -> None:
    assert {unit_of(module) for module, _ in modules()} <= LAYER_OF.keys()


def test_imports_point_to_the_same_layer_or_a_lower_one() -> None:
    wrong = []
    for module, path in modules():
        unit = unit_of(module)
        for name in imports(path):
            if name.split(".")[0] not in {"jaxserve", "pallas_kernels"}:
                continue
            # A name taken from jaxserve itself belongs to the face at the top of the layers.
            other = unit_of(name) if unit_of(name) in LAYER_OF else "__init__"
            if LAYER_OF[other] > LAYER_OF[unit] or (unit, other) in STRANGERS:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_host_code_names_no_jax_even_inside_a_function() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for module, path in modules()
        if unit_of(module) in NO_JAX
        for name in imports(path)
        if name.split(".")[0] in {"jax", "jaxlib", "flax", "pallas_kernels"}
    ]
    assert wrong == []


def test_importing_host_code_does_not_load_jax() -> None:
    host = [
        module.removesuffix(".__init__")
        for module, _ in modules()
        if unit_of(module) in NO_JAX | {"__init__"}
    ]
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'jax' in sys.modules: sys.exit(f'importing {name} loads jax')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *host], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
