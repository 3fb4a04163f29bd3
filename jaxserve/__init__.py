"""An inference engine for open-weight language models on JAX.

    from jaxserve import LLM, SamplingParams

    llm = LLM()
    print(llm.generate("Once upon a time", SamplingParams(max_tokens=50))[0].outputs[0].text)

Importing the package loads nothing: its names come when they are first asked for, and JAX with
`LLM` and `LogitsProcessor` only.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxserve.api.pooling import PoolingParams as PoolingParams
    from jaxserve.api.repetition_detection import (
        RepetitionDetectionParams as RepetitionDetectionParams,
    )
    from jaxserve.api.request import TokenEvent as TokenEvent
    from jaxserve.api.sampling_params import RequestOutputKind as RequestOutputKind
    from jaxserve.api.sampling_params import SamplingParams as SamplingParams
    from jaxserve.api.structured_outputs import StructuredOutputsParams as StructuredOutputsParams
    from jaxserve.execution.logits_processors import LogitsProcessor as LogitsProcessor
    from jaxserve.frontend.beam_search import BeamSearchParams as BeamSearchParams
    from jaxserve.offline.llm import LLM as LLM
    from jaxserve.offline.outputs import BeamSearchOutput as BeamSearchOutput
    from jaxserve.offline.outputs import BeamSearchSequence as BeamSearchSequence
    from jaxserve.offline.outputs import CompletionOutput as CompletionOutput
    from jaxserve.offline.outputs import FlatLogprobs as FlatLogprobs
    from jaxserve.offline.outputs import Logprob as Logprob
    from jaxserve.offline.outputs import RequestOutput as RequestOutput

__all__ = [
    "LLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "CompletionOutput",
    "FlatLogprobs",
    "LogitsProcessor",
    "Logprob",
    "PoolingParams",
    "RepetitionDetectionParams",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
    "TokenEvent",
    "__version__",
]

__version__ = "0.1.0"

_HOMES = {
    "LLM": "offline.llm",
    "LogitsProcessor": "execution.logits_processors",
    "BeamSearchOutput": "offline.outputs",
    "BeamSearchParams": "frontend.beam_search",
    "BeamSearchSequence": "offline.outputs",
    "CompletionOutput": "offline.outputs",
    "FlatLogprobs": "offline.outputs",
    "Logprob": "offline.outputs",
    "PoolingParams": "api.pooling",
    "RequestOutput": "offline.outputs",
    "RepetitionDetectionParams": "api.repetition_detection",
    "RequestOutputKind": "api.sampling_params",
    "SamplingParams": "api.sampling_params",
    "StructuredOutputsParams": "api.structured_outputs",
    "TokenEvent": "api.request",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxserve' has no attribute {name!r}")
    return getattr(import_module(f"jaxserve.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
