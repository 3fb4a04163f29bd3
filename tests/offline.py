"""Helpers for tests of offline generation, beside the `llm` fixture of conftest.py."""

from jaxserve import LLM, RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def text_of(output: RequestOutput) -> str:
    return output.outputs[0].text


def assert_idle(llm: LLM) -> None:
    assert llm._engine.is_idle
    llm._engine.engine.engine.check_integrity()
