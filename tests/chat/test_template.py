"""Chats come out of a model's template as transformers has them, and requests change no rule."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from jaxserve.chat import CONTENT_FORMATS, NONE
from jaxserve.chat.choice import find_reasoning_parser
from jaxserve.chat.reasoning_parsers import reasoning_format
from jaxserve.chat.template import ChatTemplate
from jaxserve.errors import CheckpointError, InvalidRequestError
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.data import DATA, needs_data
from tests.server.world import tokenizer, write_tokenizer

USER = {"role": "user", "content": "What is 2 + 2?"}
PART = {"type": "text", "text": USER["content"]}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    USER,
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And <b>3</b> + 3?\n"},
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln"}},
}
TOOL_CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Is it warm in Köln?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "21 C"},
]
TEMPLATES = sorted((DATA / "chat_templates").glob("*.jinja*"))


@pytest.fixture(scope="module")
def pretrained() -> Any:
    """A tokenizer of transformers, to which each test gives a template."""
    return AutoTokenizer.from_pretrained(DATA / "tokenizers/mistral-v3")


def rendered(pretrained: Any, chat: list[dict[str, Any]], **fields: Any) -> str | None:
    """Render a chat with transformers; None if the template refuses it."""
    try:
        text: str = pretrained.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, **fields
        )
    except Exception:  # noqa: BLE001 (a template may raise anything)
        return None
    return text


@needs_data
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_renders_as_transformers_does(pretrained: Any, path: Path) -> None:
    pretrained.chat_template = path.read_text("utf-8")
    template = ChatTemplate(Tokenizer(pretrained))
    if rendered(pretrained, [USER]) is None:
        pytest.skip("the template needs more than messages")
    for chat, tools in (([USER], None), (CHAT, None), (TOOL_CHAT, [WEATHER])):
        expected = rendered(pretrained, chat, tools=tools)
        if expected is None or (tools and not template.reads_tools):
            continue
        assert template.render(chat, tools=tools) == expected


@needs_data
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_parts_come_out_as_text(pretrained: Any, path: Path) -> None:
    pretrained.chat_template = path.read_text("utf-8")
    template = ChatTemplate(Tokenizer(pretrained))
    if rendered(pretrained, [USER]) is None:
        pytest.skip("the template needs more than messages")
    parts = [{"type": "text", "text": "one part"}, {"type": "text", "text": "another"}]
    text = template.render([{"role": "user", "content": parts}])
    assert "one part" in text
    assert "another" in text
    assert "'type'" not in text
    single = [{"type": "text", "text": USER["content"]}]
    assert template.render([{"role": "user", "content": single}]) == template.render([USER])


@needs_data
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Qwen-Qwen3-0.6B.jinja", {"enable_thinking"}),
        ("Qwen-Qwen2.5-7B-Instruct.jinja", set()),
        ("openai-gpt-oss-120b.jinja", {"builtin_tools", "model_identity", "reasoning_effort"}),
        ("ibm-granite-granite-3.3-2B-Instruct.jinja", {"controls", "thinking"}),
        ("deepseek-ai-DeepSeek-V3.1.jinja", {"enable_thinking", "thinking"}),
        ("LFM2.5-Instruct.jinja", {"keep_past_thinking"}),
        ("ollama--laguna_v8_chat_template.jinja2", {"enable_thinking"}),
    ],
)
def test_options_are_found_in_real_templates(pretrained: Any, name: str, options: set[str]) -> None:
    pretrained.chat_template = (DATA / "chat_templates" / name).read_text("utf-8")
    assert ChatTemplate(Tokenizer(pretrained)).variables == options


def make(tmp_path: Path, source: str | None) -> ChatTemplate:
    return ChatTemplate(Tokenizer.load(write_tokenizer(tmp_path, template=source)))


SIMPLE = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"


def test_an_option_is_what_is_read_and_not_assigned(tmp_path: Path) -> None:
    source = (
        "{% set local = 1 %}{{ local }}{{ free }}{{ bos_token }}{{ tokenize }}{{ _private }}"
        "{% set kept = kept | default(true) %}{% if asked is not defined %}{% set asked = 1 %}"
        "{% endif %}{{ kept }}{{ asked }}{{ namespace() }}{{ raise_exception }}" + SIMPLE
    )
    assert make(tmp_path, source).variables == {"free", "kept", "asked"}


@pytest.mark.parametrize(
    "name",
    ["messages", "tools", "eos_token", "pad_token", "chat_template", "add_generation_prompt"],
)
def test_names_of_what_the_renderer_supplies_are_refused(tmp_path: Path, name: str) -> None:
    template = make(tmp_path, SIMPLE + "{{ option }}{{ eos_token }}")
    with pytest.raises(InvalidRequestError, match=r"\(option\)") as refusal:
        template.render([USER], variables={name: "evil"})
    assert refusal.value.param == "chat_template_kwargs"


def test_names_that_the_template_does_not_read_are_left_out(tmp_path: Path) -> None:
    template = make(tmp_path, SIMPLE + "{{ option }}{% set own = 1 %}{{ own }}")
    variables = {"option": "a", "own": 5, "budget_tokens": 3, "x": 1}
    assert template.readable(variables) == {"option": "a"}
    assert template.render([USER], variables=variables).endswith("a1")


def test_defaults_fill_what_a_chat_does_not_set_and_the_template_reads(tmp_path: Path) -> None:
    source = "{{ mood | default('calm') }}{{ messages[0].content }}"
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, template=source))
    template = ChatTemplate(tokenizer, defaults={"mood": "merry ", "unread": 1, "messages": []})
    chat = [{"role": "user", "content": "hi"}]
    assert template.render(chat) == "merry hi"
    assert template.render(chat, variables={"mood": "sad "}) == "sad hi"


@pytest.mark.parametrize("field", ["tools", "documents"])
def test_what_the_template_has_no_place_for_is_refused(tmp_path: Path, field: str) -> None:
    template = make(tmp_path, SIMPLE)
    with pytest.raises(InvalidRequestError, match="no place") as refusal:
        template.render([USER], **{field: [WEATHER]})  # type: ignore[arg-type]
    assert refusal.value.param == field


def test_the_authors_words_reach_the_caller(tmp_path: Path) -> None:
    template = make(tmp_path, "{{ raise_exception('roles must ' + 'alternate ' * 99) }}")
    with pytest.raises(InvalidRequestError, match="roles must alternate") as refusal:
        template.render([USER])
    assert len(refusal.value.message) < 300


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{{ missing.field }}", "{{ messages + 1 }}"])
def test_a_template_that_fails_is_told_in_our_words(tmp_path: Path, source: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        make(tmp_path, source).render([USER])
    assert refusal.value.message == "the model's chat template cannot take these messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_templates_run_in_a_sandbox(tmp_path: Path, source: str) -> None:
    with pytest.raises(InvalidRequestError):
        make(tmp_path, source).render([USER])


def test_text_of_a_user_is_not_a_template(tmp_path: Path) -> None:
    message = {"role": "user", "content": "{{ 7 * 7 }}{% for x in y %}"}
    assert make(tmp_path, SIMPLE).render([message]) == "user:{{ 7 * 7 }}{% for x in y %};"


def test_a_template_of_parts_gets_parts(tmp_path: Path) -> None:
    source = "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"
    assert make(tmp_path, source).render([USER]) == f"[{USER['content']}]"


def test_a_template_of_strings_gets_parts_joined_by_lines(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert make(tmp_path, SIMPLE).render([{"role": "user", "content": parts}]) == "user:a\nb;"


@pytest.mark.parametrize(
    ("content_format", "content"),
    [("auto", "What is 2 + 2?"), ("string", "What is 2 + 2?"), ("openai", [PART])],
)
def test_content_has_the_format_of_the_option(
    tmp_path: Path, content_format: str, content: object
) -> None:
    source = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, template=source))
    template = ChatTemplate(tokenizer, content_format=content_format)
    for sent in (USER["content"], [PART]):
        assert json.loads(template.render([{"role": "user", "content": sent}])) == content


def test_a_template_tells_which_format_of_content_it_reads(tmp_path: Path) -> None:
    template = make(tmp_path, SIMPLE)
    reads = [name for name in CONTENT_FORMATS if template.reads_content(name)]
    assert reads == ["auto", "string"]


def test_a_template_that_knows_developers_gets_them(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'developer' %}!{% endif %}"
        "{{ m.role }}:{{ m.content }}{% endfor %}"
    )
    message = {"role": "developer", "content": "x"}
    assert make(tmp_path, source).render([message]) == "!developer:x"
    assert make(tmp_path, SIMPLE).render([message]) == "system:x;"


@pytest.mark.parametrize("source", [None, "{% if %}", "{{ 'unclosed"])
def test_no_usable_template_is_a_checkpoint_error(tmp_path: Path, source: str | None) -> None:
    with pytest.raises(CheckpointError):
        make(tmp_path, source)


def named(folder: Path, **templates: str) -> ChatTemplate:
    """The chat templates of a tokenizer that has several by name."""
    path = write_tokenizer(folder, template="") / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    listed = [{"name": name, "template": text} for name, text in templates.items()]
    path.write_text(json.dumps(settings | {"chat_template": listed}), "utf-8")
    return ChatTemplate(Tokenizer.load(folder))


def test_the_only_named_template_is_the_default(tmp_path: Path) -> None:
    assert named(tmp_path, rag="{{ messages[0].content }}!").render([USER]) == "What is 2 + 2?!"


def test_templates_without_a_default_say_how_to_choose_one(tmp_path: Path) -> None:
    chat = named(tmp_path, rag="{{ documents }}", tool_use="{{ tools[0].function.name }}")
    assert chat.render([USER], tools=[WEATHER]) == "weather"
    with pytest.raises(InvalidRequestError, match=r"by name \(rag, tool_use\).*--chat-template"):
        chat.render([USER])


# Templates without a parser.
WRITE_REASONING = {"Apriel-1.6-15b-Thinker-fixed", "ollama--glimmer_chat_template"}
THOUGHT = "They ask of sums. 2 + 2"


@needs_data
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_reasoning_that_is_continued_stays_open(pretrained: Any, path: Path) -> None:
    pretrained.chat_template = path.read_text("utf-8")
    template = ChatTemplate(Tokenizer(pretrained))
    name = find_reasoning_parser(template)
    reasoning = None if name == NONE else reasoning_format(name)
    chat: list[dict[str, Any]] = [USER, {"role": "assistant", "reasoning": THOUGHT}]
    if rendered(pretrained, [USER]) is None:
        pytest.skip("the template needs more than messages")
    if reasoning is None and path.stem not in WRITE_REASONING:
        with pytest.raises(InvalidRequestError) as info:
            template.render_reasoning(chat, reasoning=reasoning)
        assert info.value.param == "messages[1].reasoning"
        return
    prompt = template.render_reasoning(chat, reasoning=reasoning)
    assert prompt.endswith(THOUGHT)
    assert prompt.count(THOUGHT) == 1
    if reasoning is not None:
        begin = max(prompt.rfind(marker) for marker in reasoning.begins)
        assert begin > max(prompt.rfind(marker) for marker in reasoning.ends)
        assert prompt[begin:].endswith(THOUGHT)
        assert len(prompt) - begin < len(THOUGHT) + 40


@pytest.mark.parametrize(
    ("opens", "start"),
    [
        ("", "<think>"),
        ("<think>\n", "<think>\n"),
        ("<think>\n\n</think>\n\n", "<think>\n\n"),
        ("</think>", "<think>"),
    ],
)
def test_reasoning_without_a_place_of_its_own_stands_where_an_answer_begins(
    opens: str, start: str
) -> None:
    source = "{{ messages[0].content }}|{% if add_generation_prompt %}" + opens + "{% endif %}"
    prompt = ChatTemplate(tokenizer(source)).render_reasoning(
        [USER, {"role": "assistant", "reasoning_content": THOUGHT}],
        reasoning=reasoning_format("qwen3"),
    )
    assert prompt == f"{USER['content']}|{start}{THOUGHT}"


@needs_data
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_instructions_are_kept_wherever_they_stand(pretrained: Any, path: Path) -> None:
    pretrained.chat_template = path.read_text("utf-8")
    template = ChatTemplate(Tokenizer(pretrained))
    if CHAT[0]["content"] not in (rendered(pretrained, CHAT) or ""):
        pytest.skip("the template takes no system message")
    roles = ("system", "developer", "user", "user", "system", "assistant", "system", "user")
    chat = [{"role": role, "content": f"word{index}"} for index, role in enumerate(roles)]
    text = template.render(chat)
    assert [text.count(message["content"]) for message in chat] == [1] * len(chat)


@pytest.mark.parametrize(
    ("template", "unread"),
    [
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", {}),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content[0].text }}{% endfor %}", {}),
        (
            "{% for m in messages if m.role in ('user', 'critic') %}{{ m.content }}{% endfor %}",
            {"ipython": 2},
        ),
        # In the middle only: what is left out anywhere is not to be relied on.
        (
            "{% for m in messages %}{{ m.content if 'u' in m.role or not loop.last }}{% endfor %}",
            {"critic": 1, "ipython": 2},
        ),
    ],
)
def test_roles_that_a_template_leaves_out_are_found(template: str, unread: dict[str, int]) -> None:
    roles = ("user", "critic", "ipython", "critic", "user")
    messages = [{"role": role, "content": f"says {role}"} for role in roles]
    chat = ChatTemplate(tokenizer(template))
    assert chat.unread_roles(messages) == unread
    prompt = chat.render(messages)
    assert all(f"says {role}" in prompt for role in roles if role not in unread)


def test_a_chat_has_few_roles_of_its_own() -> None:
    chat = ChatTemplate(tokenizer())
    messages = [{"role": f"role_{index}", "content": "a"} for index in range(17)]
    assert chat.unread_roles(messages[:16]) == {}
    with pytest.raises(InvalidRequestError, match="at most 16 roles beyond user, system"):
        chat.unread_roles(messages)
