"""Chats of requests come out of every model's template as transformers has them, tools and all."""

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from jaxserve.chat.past_calls import RENDER_ERRORS
from jaxserve.chat.template import ChatTemplate
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.chat import Chat
from jaxserve.frontend.schema.parsing import parse
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.data import DATA, needs_data

TEMPLATES = sorted((DATA / "chat_templates").glob("*.jinja*"))
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where."}},
                "required": ["city"],
            },
        },
    }
]
ARGUMENTS = {"city": "Köln"}


def chat(*, arguments: Any, content: str | None) -> list[dict[str, Any]]:
    """A chat with a call of a tool and its result."""
    function = {"name": "weather", "arguments": arguments}
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is it warm in Köln?"},
        {
            "role": "assistant",
            "content": content,
            "tool_calls": [{"id": "call00001", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "21 C"},
    ]


@pytest.fixture(scope="module")
def pretrained() -> Any:
    """A tokenizer of transformers, to which each test gives a template."""
    return AutoTokenizer.from_pretrained(DATA / "tokenizers/mistral-v3")


def outcomes(pretrained: Any, path: Path, **fields: Any) -> tuple[str, str]:
    """Render a chat with transformers and the server; a refusal gives the template's message."""
    pretrained.chat_template = path.read_text("utf-8")
    template = ChatTemplate(Tokenizer(pretrained))
    if not template.reads_tools:
        fields["tools"] = []
    # A template may take the arguments of calls only as an object, or only as text.
    expected: str | None = None
    for arguments in (ARGUMENTS, json.dumps(ARGUMENTS)):
        try:
            expected = pretrained.apply_chat_template(
                chat(arguments=arguments, content=""),
                tools=fields["tools"] or None,
                tokenize=False,
                add_generation_prompt=True,
            )
            break
        except RENDER_ERRORS as error:
            expected = error.message if type(error) is TemplateError else "cannot take these"
    messages = chat(arguments=json.dumps(ARGUMENTS), content=None)
    try:
        got = parse({"messages": messages, **fields}, Chat).render(template)
    except InvalidRequestError as error:
        assert expected is not None
        return expected, expected if str(expected) in error.message else error.message
    assert expected is not None
    return expected, got


@needs_data
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_chat_with_tools_comes_out_as_transformers_has_it(pretrained: Any, path: Path) -> None:
    expected, got = outcomes(pretrained, path, tools=TOOLS)
    assert got == expected


@needs_data
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Qwen-Qwen3-0.6B", "reasoning"),
        ("Qwen-Qwen3-0.6B", "reasoning_content"),
        ("openai-gpt-oss-120b", "reasoning"),
    ],
)
def test_reasoning_of_a_message_is_found_by_the_templates_name_for_it(
    pretrained: Any, name: str, field: str
) -> None:
    pretrained.chat_template = (DATA / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    messages = chat(arguments="{}", content=None)
    messages[2][field] = "I should look it up."
    text = parse({"messages": messages, "tools": TOOLS}, Chat).render(
        ChatTemplate(Tokenizer(pretrained))
    )
    assert "I should look it up." in text
