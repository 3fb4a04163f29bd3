"""What tests of offline generation share, beside the `llm` of conftest.py."""

from jaxserve import LLM, RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def text_of(output: RequestOutput) -> str:
    return output.outputs[0].text


def assert_idle(llm: LLM) -> None:
    assert llm._engine.is_idle
    llm._engine.engine.engine.check_integrity()
