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
    from jaxserve.engine.beam_search import BeamSearchParams as BeamSearchParams
    from jaxserve.execution.logits_processors import LogitsProcessor as LogitsProcessor
    from jaxserve.llm import LLM as LLM
    from jaxserve.outputs import BeamSearchOutput as BeamSearchOutput
    from jaxserve.outputs import BeamSearchSequence as BeamSearchSequence
    from jaxserve.outputs import CompletionOutput as CompletionOutput
    from jaxserve.outputs import FlatLogprobs as FlatLogprobs
    from jaxserve.outputs import Logprob as Logprob
    from jaxserve.outputs import RequestOutput as RequestOutput
    from jaxserve.pooling import PoolingParams as PoolingParams
    from jaxserve.repetition_detection import RepetitionDetectionParams as RepetitionDetectionParams
    from jaxserve.request import RequestOutputKind as RequestOutputKind
    from jaxserve.request import SamplingParams as SamplingParams
    from jaxserve.request import TokenEvent as TokenEvent
    from jaxserve.structured_outputs import StructuredOutputsParams as StructuredOutputsParams

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
    "LLM": "llm",
    "LogitsProcessor": "execution.logits_processors",
    "BeamSearchOutput": "outputs",
    "BeamSearchParams": "engine.beam_search",
    "BeamSearchSequence": "outputs",
    "CompletionOutput": "outputs",
    "FlatLogprobs": "outputs",
    "Logprob": "outputs",
    "PoolingParams": "pooling",
    "RequestOutput": "outputs",
    "RepetitionDetectionParams": "repetition_detection",
    "RequestOutputKind": "request",
    "SamplingParams": "request",
    "StructuredOutputsParams": "structured_outputs",
    "TokenEvent": "request",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxserve' has no attribute {name!r}")
    return getattr(import_module(f"jaxserve.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
