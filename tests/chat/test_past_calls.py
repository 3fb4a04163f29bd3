"""Calls of earlier turns come into a prompt as they were written, whatever form templates take."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from jaxserve.chat.template import ChatTemplate
from jaxserve.errors import InvalidRequestError
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.data import DATA, needs_data
from tests.server.world import tokenizer

TEMPLATES = sorted((DATA / "chat_templates").glob("*.jinja*"))
WHOLE = '{"city": "Oslo", "days": [1, {"on": true}], "at": -2.5}'
# The text is no object: neither whole nor as a beginning.
NO_OBJECTS = ["[1]", '"Oslo"', "Oslo", '{"city": <', '{"city": NaN}', "}"]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "It.", "parameters": {"type": "object"}},
}
NEEDS_OBJECTS = {
    *("ByteDance-Seed-OSS", "GLM-4.6", "GLM-4.7-Flash", "GLM-5.2", "Qwen3-Coder", "Qwen3.5-4B"),
    *("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "StepFun3.5-Flash", "deepseek-ai-DeepSeek-V3.2"),
    *("deepseek-ai-DeepSeek-V4", "ollama--glimmer_chat_template", "stepfun-ai-Step-3.5-Flash"),
    *("ollama--laguna_v2_chat_template", "ollama--laguna_v8_chat_template"),
    *("ollama--nemotron35_chat_template", "ollama--nemotron3nano_chat_template"),
    "ollama--qwen38_chat_template",
}
ITEMS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}<{{ c.function.name }}"
    "{% for k, v in c.function.arguments | items %} {{ k }}={{ v }}{% endfor %}>"
    "{% endfor %}{% endfor %}"
)
TO_JSON = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "{% endfor %}{% endfor %}"
)
JOINED = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name + '(' + c.function.arguments + ')' }}"
    "{% endfor %}{% endfor %}"
)
PLACE = "messages[1].tool_calls[0].function.arguments"


def chat(*arguments: object) -> list[dict[str, Any]]:
    calls = [
        {"id": f"call0000{i}", "type": "function", "function": {"name": "weather", "arguments": a}}
        for i, a in enumerate(arguments)
    ]
    results = [
        {"role": "tool", "tool_call_id": f"call0000{i}", "name": "weather", "content": "21 C"}
        for i, _ in enumerate(arguments)
    ]
    return [
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *results,
    ]


def own(source: str) -> ChatTemplate:
    return ChatTemplate(tokenizer(source))


@pytest.fixture(scope="module")
def pretrained() -> Any:
    """A tokenizer of transformers, to which each test gives a template."""
    return AutoTokenizer.from_pretrained(DATA / "tokenizers/mistral-v3")


@needs_data
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_call_cut_anywhere_is_taken_by_every_template_that_takes_calls(
    pretrained: Any, path: Path
) -> None:
    pretrained.chat_template = path.read_text("utf-8")
    template = ChatTemplate(Tokenizer(pretrained))
    tools = [TOOL] if template.reads_tools else None
    try:
        empty, whole = (template.render(chat(text), tools=tools) for text in ("", WHOLE))
    except InvalidRequestError:
        pytest.skip("the template takes no such chat")
    for stop in range(1, len(WHOLE)):
        prompt = template.render(chat(WHOLE[:stop]), tools=tools)
        if path.stem in NEEDS_OBJECTS:
            assert stop < WHOLE.index("Oslo") + 2 or "Os" in prompt
        elif empty != whole:
            assert WHOLE[:stop] in prompt


@needs_data
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_arguments_that_are_no_object_are_refused_only_by_templates_that_want_one(
    pretrained: Any, path: Path
) -> None:
    pretrained.chat_template = path.read_text("utf-8")
    template = ChatTemplate(Tokenizer(pretrained))
    tools = [TOOL] if template.reads_tools else None
    try:
        empty, whole = (template.render(chat(text), tools=tools) for text in ("", WHOLE))
    except InvalidRequestError:
        pytest.skip("the template takes no such chat")
    for text in NO_OBJECTS:
        if path.stem in NEEDS_OBJECTS:
            with pytest.raises(InvalidRequestError, match="only as the JSON of an object") as info:
                template.render(chat(text), tools=tools)
            assert info.value.param == PLACE
        else:
            prompt = template.render(chat(text), tools=tools)
            assert text in prompt or empty == whole


def test_text_is_not_quoted_where_a_template_writes_json() -> None:
    prompt = own(TO_JSON).render(chat('{"city": "Os', '{"city": "Rome"}'))
    assert prompt == (
        '{"name": "weather", "arguments": {"city": "Os}{"name": "weather", "arguments":'
        ' {"city": "Rome"}}'
    )


def test_a_template_that_joins_texts_gets_them_all_as_text() -> None:
    prompt = own(JOINED).render(chat('{"city":"Os', '{"city":"Rome"}', ""))
    assert prompt == 'weather({"city":"Os)weather({"city":"Rome"})weather()'


def test_a_template_that_wants_objects_gets_as_much_as_came() -> None:
    prompt = own(ITEMS).render(chat('{"city": "Os', "", '{"days": 3, "on": tr'))
    assert prompt == "<weather city=Os><weather><weather days=3>"


def test_the_call_at_fault_is_named() -> None:
    with pytest.raises(InvalidRequestError) as info:
        own(ITEMS).render(chat("{}", '{"city": "Os', "Oslo"))
    assert info.value.param == "messages[1].tool_calls[2].function.arguments"
    assert info.value.message.endswith("got 'Oslo'")


def test_arguments_are_not_blamed_for_what_else_a_template_refuses() -> None:
    template = own("{% if messages | length > 1 %}{{ raise_exception('Too many.') }}{% endif %}")
    with pytest.raises(InvalidRequestError, match=r"Too many\.") as info:
        template.render(chat("Oslo"))
    assert info.value.param == "messages"


def test_objects_are_given_as_objects() -> None:
    assert own(TO_JSON).render(chat({"a": 1})) == own(TO_JSON).render(chat(json.dumps({"a": 1})))


def test_text_of_many_calls_takes_linear_time_and_each_finds_its_place() -> None:
    texts = [f'{{"n": "{number}' for number in range(2000)]
    prompt = own(TO_JSON).render(chat(*texts))
    assert all(f'"arguments": {text}}}' in prompt for text in texts)


@needs_data
def test_reasoning_and_a_preamble_before_a_call_come_back_to_gpt_oss(pretrained: Any) -> None:
    path = DATA / "chat_templates/openai-gpt-oss-120b.jinja"
    pretrained.chat_template = path.read_text("utf-8")
    messages = chat('{"city": "Oslo"}')
    messages[1] |= {"content": "I look.", "reasoning": "North."}
    prompt = ChatTemplate(Tokenizer(pretrained)).render(messages, tools=[TOOL])
    assert "<|channel|>analysis<|message|>North.\nI look.<|end|>" in prompt
    messages[1] |= {"content": ""}
    prompt = ChatTemplate(Tokenizer(pretrained)).render(messages, tools=[TOOL])
    assert "<|channel|>analysis<|message|>North.<|end|>" in prompt
