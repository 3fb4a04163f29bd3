"""Write the tables of the documents that are generated from the code: `make docs`.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a key of
PARTS. A test compares every part with the code, so that no table falls behind.
"""

import ast
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxserve.api.sampling_params import SamplingParams
from jaxserve.config.engine import EngineOptions
from jaxserve.config.flags import ENGINE_FLAGS, SAMPLING_FLAGS, SERVER_FLAGS
from jaxserve.config.option import Flag, default_of
from jaxserve.config.server import ServerConfig
from jaxserve.config.vllm_flags import INERT_FLAGS
from jaxserve.frontend.schema.fields import IGNORED, REFUSED
from jaxserve.models import families as model_families
from jaxserve.quantization.formats import FORMATS
from tests.goldens.checkpoints import CASES as FIRST_CASES
from tests.goldens.families import FAMILIES as GOLDEN_FAMILIES
from tests.test_layers import LAYERS, NO_JAX

DOCS = Path(__file__).resolve().parent
COMPARISON = json.loads((DOCS.parent / "tests" / "goldens" / "comparison.json").read_text("utf-8"))
PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows as a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in lines
    )


def flags(listed: Sequence[Flag], settings: type[Any]) -> str:
    """Return a table of flags, with the defaults of the settings that they fill."""
    defaults = {field.name: default_of(field) for field in fields(settings)}
    return table(
        ("flag", "meaning", "default"),
        (
            (_spelling(flag), _sentence(flag.help), _default(defaults[flag.field]))
            for flag in listed
        ),
    )


def inert() -> str:
    """Return a table of vLLM's flags that have no effect, and of those with few allowed values."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for flag in INERT_FLAGS:
        if flag.allowed is None:
            accepted = "any value"
        elif flag.switch:
            accepted = "only `--no-` forms"
        else:
            accepted = " or ".join(f"`{value}`" for value in flag.allowed) or "none"
        by_reason.setdefault((flag.reason, accepted), []).append(f"`--{flag.name}`")
    rows = sorted(
        (", ".join(sorted(names)), accepted, reason)
        for (reason, accepted), names in by_reason.items()
    )
    return table(("flag of vLLM", "accepted", "why it has no effect"), rows)


def refused_fields() -> str:
    """Return a table of request fields that are refused, and of the values that are not."""
    return table(
        ("field", "accepted", "why others are refused"),
        (
            (
                f"`{name}`",
                ", ".join(f"`{json.dumps(value)}`" for value in allowed) or "null only",
                reason,
            )
            for name, (reason, allowed) in sorted(REFUSED.items())
        ),
    )


def ignored_fields() -> str:
    """Return the request fields that have no effect."""
    return ", ".join(f"`{name}`" for name in sorted(IGNORED)) + "\n"


def layers() -> str:
    """Return a table of the packages by layer, each with the first sentence of its docstring."""
    rows = []
    for number, units in enumerate(LAYERS):
        for unit in sorted(units - {"__version__", "__init__", "__main__"}):
            folder = {"models": "models", "pallas_kernels": "pallas_kernels"}.get(
                unit, f"jaxserve/{unit}"
            )
            is_folder = (DOCS.parent / folder).is_dir()
            source = DOCS.parent / (f"{folder}/__init__.py" if is_folder else f"{folder}.py")
            text = ast.get_docstring(ast.parse(source.read_text("utf-8"))) or ""
            sentence = " ".join(text.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
            path = f"`{folder}/`" if is_folder else f"`{folder}.py`"
            rows.append((str(number), path, f"{sentence}.", "no" if unit in NO_JAX else "yes"))
    return table(("layer", "where", "what", "jax"), rows)


def families() -> str:
    """Return a table of the model families: what they are, and how they were compared."""
    rows = []
    for name in model_families():
        source = DOCS.parent / "models" / name
        file = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
        text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
        what = " ".join(text.split("\n\n")[0].split()).rstrip(".")
        cases = GOLDEN_FAMILIES.get(name) or [
            case.removeprefix(f"{name}-") for case in FIRST_CASES if case.startswith(f"{name}-")
        ]
        found = COMPARISON.get(name, {"difference": "", "attention": {}})
        by_backends: dict[str, list[str]] = {}
        for target, backends in found["attention"].items():
            by_backends.setdefault(" and ".join(backends), []).append(target)
        kernels = "; ".join(f"{', '.join(each)}: {name}" for name, each in by_backends.items())
        rows.append((f"`{name}`", what, "; ".join(cases), found["difference"], kernels))
    heads = ("`model_type`", "family", "compared", "largest difference", "attention backends")
    return table(heads, rows)


def formats() -> str:
    """Return a table of the formats of quantized checkpoints, from their modules."""
    rows = []
    for name, module in sorted(FORMATS.items()):
        found = import_module(f"jaxserve.quantization.{module}")
        sentence = " ".join((found.__doc__ or "").split("\n\n")[0].split()).rstrip(".")
        rows.append((f"`{name}`", sentence, found.VARIANTS))
    return table(("`quant_method`", "what", "supported"), rows)


PARTS: Mapping[str, Callable[[], str]] = {
    "engine-flags": lambda: flags(ENGINE_FLAGS, EngineOptions),
    "server-flags": lambda: flags(SERVER_FLAGS, ServerConfig),
    "sampling-flags": lambda: flags(SAMPLING_FLAGS, SamplingParams),
    "inert-flags": inert,
    "layers": layers,
    "families": families,
    "formats": formats,
    "refused-fields": refused_fields,
    "ignored-fields": ignored_fields,
}


def generated(text: str) -> str:
    """Return a document with its generated parts as the code has them now."""
    return PART.sub(lambda part: part[1] + PARTS[part[2]]() + part[3], text)


def main() -> None:
    """Rewrite every document that has generated parts."""
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text("utf-8")
        new = generated(text)
        if new != text:
            path.write_text(new, "utf-8")
            print(f"rewrote {path.name}", file=sys.stderr)


def _spelling(flag: Flag) -> str:
    names = [f"`--{flag.name}`", *(f"`{alias}`" for alias in flag.aliases)]
    if flag.switch:
        names.insert(1, f"`--no-{flag.name}`")
    return ", ".join(names) + (f" {', '.join(flag.choices)}" if flag.choices else "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _default(value: object) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case int() | float() | str() if value != "":
            return f"`{value}`"
    return ""


if __name__ == "__main__":
    main()
