"""Worker of kernels.py for cuDNN's attention through JAX.

Reads jobs from standard input, one line of JSON each, and answers with lines of JSON: the seconds
of one call, or an error. It is a separate process, so that the benchmark survives failures of
cuDNN's paged attention, which is a private function of JAX.

Calls read contiguous keys and values (`cudnn`), or pages in random order (`cudnn_paged`), and write
none. The calls of a program have different queries, so that XLA computes each.
"""

import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp

from jaxserve.bench.ceilings import seconds_per_call

Job = dict[str, Any]
Program = Callable[[], object]


class Refusal(Exception):  # noqa: N818 - as dispatch.Unsupported
    """This cannot do that; the message is the reason."""


def contiguous(job: Job) -> Program:
    """Attend by `jax.nn.dot_product_attention`."""
    is_prefill = job["rows"] > 1
    window = job["window"]
    if window is not None and not is_prefill:
        raise Refusal("a window would count from the first key")
    attend = partial(
        jax.nn.dot_product_attention,
        scale=job["head_dim"] ** -0.5,
        is_causal=is_prefill,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    kv_shape = (job["batch"], job["total"], job["kv_heads"], job["head_dim"])
    keys, values = _sets(job, 1, kv_shape), _sets(job, 2, kv_shape)

    @jax.jit
    def program(
        queries: list[jax.Array], keys: list[jax.Array], values: list[jax.Array]
    ) -> list[jax.Array]:
        return [
            attend(q, keys[i % len(keys)], values[i % len(keys)]) for i, q in enumerate(queries)
        ]

    return partial(program, _queries(job), keys, values)


def paged(job: Job) -> Program:
    """Attend by the private function behind it, which takes page tables."""
    if job["window"] is not None:
        raise Refusal("left out: windows")
    private = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    batch, page_size = job["batch"], job["page_size"]
    if job["total"] % page_size:
        raise Refusal("left out: a page that is not full")
    width = job["total"] // page_size
    is_prefill = job["rows"] > 1
    attend = partial(
        private.paged_attention,
        q_seqlen=jnp.full(batch, job["rows"], jnp.int32),
        kv_seqlen=jnp.full(batch, job["total"], jnp.int32),
        scale=job["head_dim"] ** -0.5,
        mask_type=private.MaskType.PADDING_CAUSAL if is_prefill else private.MaskType.PADDING,
    )
    kv_shape = (batch * width, page_size, job["kv_heads"], job["head_dim"])
    keys, values = _sets(job, 1, kv_shape), _sets(job, 2, kv_shape)
    order = jax.random.permutation(jax.random.key(3), batch * width)
    table = order.astype(jnp.int32).reshape(batch, 1, width, 1)

    @jax.jit
    def program(
        queries: list[jax.Array], keys: list[jax.Array], values: list[jax.Array]
    ) -> list[jax.Array]:
        return [
            attend(
                q,
                keys[i % len(keys)],
                values[i % len(keys)],
                page_table_k=table,
                page_table_v=table,
            )
            for i, q in enumerate(queries)
        ]

    return partial(program, _queries(job), keys, values)


CONTENDERS = {"cudnn": contiguous, "cudnn_paged": paged}


def _queries(job: Job) -> list[jax.Array]:
    shape = (job["batch"], job["rows"], job["heads"], job["head_dim"])
    return [_normal(job, call, shape) for call in range(job["calls"])]


def _sets(job: Job, which: int, shape: tuple[int, ...]) -> list[jax.Array]:
    return [_normal(job, 1000 * which + i, shape) for i in range(job["sets"])]


def _normal(job: Job, number: int, shape: tuple[int, ...]) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(job["seed"]), number)
    return jax.random.normal(key, shape, job["dtype"])


def _cudnn_version() -> str:
    try:
        return version("nvidia-cudnn-cu13")
    except PackageNotFoundError:
        return "none"


def main() -> None:
    """Say what this is, and answer until standard input ends."""
    print(json.dumps({"cudnn": _cudnn_version()}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        for contender, make in CONTENDERS.items():
            answer: Job = {"case": job["case"], "contender": contender}
            try:
                answer["seconds"] = seconds_per_call(make(job)) / job["calls"]
            # JAX and cuDNN refuse in many classes; the answer has the class and the words.
            except Exception as error:  # noqa: BLE001
                answer["note"] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
