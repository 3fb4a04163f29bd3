"""Generate the Markdown table of what each backend supports, from the backends' checks.

python -m pallas_kernels.paged_attention.support                    # print it
python -m pallas_kernels.paged_attention.support docs/kernels.md    # update it in a file
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from pallas_kernels.dispatch import Unsupported
from pallas_kernels.paged_attention.api import BACKENDS
from pallas_kernels.paged_attention.batch import AttentionConfig
from pallas_kernels.paged_attention.cases import LAYERS
from pallas_kernels.targets import CPU, TARGETS, Target

BEGIN = "<!-- python -m pallas_kernels.paged_attention.support docs/kernels.md -->"
END = "<!-- end -->"

# A layer that every backend should support; the table varies one or two of its fields at a time.
BASE = LAYERS["llama-3.1-8b"]

type Changes = dict[str, Any]

VARIED: dict[str, dict[str, Changes]] = {
    "head_dim": {str(n): {"head_dim": n} for n in (64, 80, 96, 128, 192, 256)},
    "page_size": {str(n): {"page_size": n} for n in (8, 16, 32, 64, 128, 256)},
    **{
        f"cache of {dtype} queries": {
            cache_dtype: {"dtype": dtype, "cache_dtype": cache_dtype}
            for cache_dtype in (dtype, "float8_e4m3fn", "int8")
        }
        for dtype in ("bfloat16", "float16", "float32")
    },
    "heads per KV head": {
        str(n): {"heads": n, "kv_heads": 1} for n in (1, 2, 3, 4, 7, 8, 12, 16, 32, 48, 64, 71)
    },
    "window": {"yes": {"sliding_window": 4096}},
    "soft cap": {"yes": {"soft_cap": 50.0}},
    "sinks": {"yes": {"sinks": True}},
    "latents": {"yes": {"heads": 16, "kv_heads": 1, "head_dim": 576, "value_dim": 512}},
}


def markdown() -> str:
    """Return a table of the supported cases, and the reasons for the unsupported ones."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for backend in BACKENDS:
        for target in (CPU, *TARGETS.values()):
            if _refusal(backend, target, BASE) is None:
                cells = (backend, *(_accepted(backend, target, axis) for axis in VARIED))
                rows.setdefault(cells, []).append(target.name)
    lines = [
        f"| backend | on | {' | '.join(VARIED)} |",
        "|" + "---|" * (2 + len(VARIED)),
        *(
            f"| `{backend}` | {', '.join(targets)} | {' | '.join(cells)} |"
            for (backend, *cells), targets in rows.items()
        ),
        "",
        *(f"- `{backend}`: {reason}" for backend, reason in _reasons()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _accepted(backend: str, target: Target, axis: str) -> str:
    values = [
        value
        for value, changes in VARIED[axis].items()
        if _refusal(backend, target, replace(BASE, **changes)) is None
    ]
    return ", ".join(values) or "no"


def _reasons() -> Iterator[tuple[str, str]]:
    """Yield a backend's reasons on targets that it supports, each once, with its first numbers."""
    singles = [changes for values in VARIED.values() for changes in values.values()]
    pairs = [
        one | other
        for values, others in combinations(VARIED.values(), 2)
        for one in values.values()
        for other in others.values()
    ]
    for backend in BACKENDS:
        targets = [t for t in (CPU, *TARGETS.values()) if _refusal(backend, t, BASE) is None]
        told = set()
        for changes in (*singles, *pairs):
            for target in targets:
                reason = _refusal(backend, target, replace(BASE, **changes))
                words = re.sub(r"\d+", "N", reason or "")
                if reason is not None and words not in told:
                    told.add(words)
                    yield backend, reason


def _refusal(backend: str, target: Target, config: AttentionConfig) -> str | None:
    try:
        BACKENDS[backend].check(config, target)
    except Unsupported as reason:
        return str(reason)
    return None


def main() -> None:
    """Print the table, or replace the block between the markers in a file."""
    if len(sys.argv) == 1:
        print(markdown(), end="")
        return
    file = Path(sys.argv[1])
    before, _, rest = file.read_text("utf-8").partition(f"{BEGIN}\n")
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n{markdown()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
