"""The engine process of `jaxserve serve`: `python -m jaxserve.commands.engine_process FD`."""

import sys
import time
from collections.abc import Callable

from jaxserve.commands.arguments import say
from jaxserve.config.engine import EngineOptions
from jaxserve.processes.engine import ServedEngine, main
from jaxserve.processes.leave import leave
from jaxserve.processes.messages import Hello


def load(options: EngineOptions, plan: Callable[[Hello], None], engine: str = "0") -> ServedEngine:
    """Load a model; see `processes.engine.Loader`. Raises what `plan_engine` and `build` raise."""
    from jaxserve.build import build, read_template
    from jaxserve.observability.metrics import Metrics
    from jaxserve.planning.planner import plan_engine

    planned = plan_engine(options)
    names = options.served_model_names or (planned.name,)
    kernels = {"linear": planned.linear.choice}
    if planned.model.is_causal:
        kernels["paged_attention"] = planned.context.attention.choice
    template = read_template(planned.options.chat_template)
    # Other settings that answers depend on; see ServedModel.system_fingerprint.
    depends = (
        *(options.model, options.revision, dict(options.hf_overrides), options.load_format),
        *(planned.dtype, options.quantization, options.kv_cache_dtype),
        *(options.tensor_parallel_size, options.enable_expert_parallel),
        *(options.seed, options.logits_processors),
        *(planned.generation, template, {op: choice.backend for op, choice in kernels.items()}),
    )
    plan(
        Hello(
            names=names,
            created=int(time.time()),
            tokenizer=str(planned.tokenizer_folder),
            chat_template=template,
            max_model_len=planned.scheduler.max_model_len,
            max_logprobs=planned.context.sampling.max_logprobs,
            logprobs_mode=planned.context.sampling.logprobs_mode,
            vocab_size=planned.model.num_token_ids,
            pooling=planned.pooling,
            defaults=planned.generation,
            has_priorities=planned.scheduler.policy == "priority",
            max_queued_requests=planned.scheduler.max_queued_requests,
            fingerprint=repr(depends),
            kernels={op: (choice.backend, dict(choice.refusals)) for op, choice in kernels.items()},
        )
    )
    metrics = Metrics(max_model_len=planned.scheduler.max_model_len)
    loaded = build(planned, metrics=metrics.engine(names[0], engine=engine), report=say)
    cache, num_pages = planned.cache, planned.memory.num_pages
    metrics.set_cache_config(
        {
            "num_pages": num_pages,
            "page_size": cache.page_size,
            "enable_prefix_caching": cache.enable_prefix_caching,
            # Names used by vLLM's dashboards.
            "block_size": cache.page_size,
            "num_gpu_blocks": num_pages,
            "kv_cache_max_concurrency": cache.max_concurrency,
            "kv_cache_size_tokens": int(cache.max_concurrency * planned.scheduler.max_model_len),
        },
        model_name=names[0],
        engine=engine,
    )
    metrics.set_compilations(lambda: loaded.compilations.since_mark, model_name=names[0])
    metrics.set_startup(loaded.startup, model_name=names[0])

    def is_compiling() -> bool:
        return loaded.programs.is_awaited

    if planned.pooling is not None:
        return ServedEngine(loaded.engine, metrics, is_compiling=is_compiling)
    # Otherwise the first request with a grammar would delay all others.
    return ServedEngine(
        loaded.engine, metrics, prepare=loaded.vocabulary.whole, is_compiling=is_compiling
    )


if __name__ == "__main__":
    leave(main(int(sys.argv[1]), load))
