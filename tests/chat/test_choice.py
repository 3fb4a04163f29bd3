"""A model's own chat template tells which parsers read its answers."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from jaxserve.chat import NONE
from jaxserve.chat.choice import answer_format, find_reasoning_parser, find_tool_parser
from jaxserve.chat.template import ChatTemplate
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.data import DATA, needs_data
from tests.server.world import write_tokenizer

# Without a place for tools, or with a way of writing calls that has no parser.
NO_TOOLS = {
    *("Apertus-8B-Instruct", "HuggingFaceTB-SmolLM3-3B", "MiroThinker", "LFM2-8B-A1B"),
    *("LFM2.5-Instruct", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "llama-cpp-rwkv-world"),
    *("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-ai-DeepSeek-V3.1"),
    *("fireworks-ai-llama-3-firefunction-v2", "meetkai-functionary-medium-v3.1"),
    *("meetkai-functionary-medium-v3.2", "microsoft-Phi-3.5-mini-instruct"),
    "ollama--glimmer_chat_template",
}
OF_MODELS = {
    "Apriel-1.6-15b-Thinker-fixed": ("apriel", "none"),
    "Bielik-11B-v3.0-Instruct": ("hermes", "qwen3"),
    "ByteDance-Seed-OSS": ("seed_oss", "seed_oss"),
    "GLM-4.6": ("glm", "glm"),
    "GLM-5.2": ("glm", "glm"),
    "GigaChat3-10B-A1.8B": ("gigachat3", "none"),
    "Kimi-K2-Thinking": ("kimi_k2", "kimi_k2"),
    "Mistral-Small-3.2-24B-Instruct-2506": ("mistral", "none"),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("qwen3_coder", "qwen3"),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("hermes", "none"),
    "Qwen-QwQ-32B": ("hermes", "qwen3"),
    "Qwen-Qwen2.5-7B-Instruct": ("hermes", "none"),
    "Qwen-Qwen3-0.6B": ("hermes", "qwen3"),
    "Qwen3-Coder": ("qwen3_coder", "none"),
    "Qwen3.5-4B": ("qwen3_coder", "qwen3"),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("none", "qwen3"),
    "deepseek-ai-DeepSeek-V3.2": ("deepseek_v32", "qwen3"),
    "deepseek-ai-DeepSeek-V4": ("deepseek_v4", "qwen3"),
    "ibm-granite-granite-3.3-2B-Instruct": ("granite", "granite"),
    "llama-cpp-deepseek-r1": ("deepseek_v3", "qwen3"),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("mistral", "mistral"),
    "mistralai-Mistral-Nemo-Instruct-2407": ("mistral_json", "none"),
    "moonshotai-Kimi-K2": ("kimi_k2", "none"),
    "openai-gpt-oss-120b": ("gpt_oss", "gpt_oss"),
}


@pytest.fixture(scope="module")
def pretrained() -> Any:
    """A tokenizer of transformers, to which each test gives a template."""
    return AutoTokenizer.from_pretrained(DATA / "tokenizers/mistral-v3")


def template_of(pretrained: Any, path: Path) -> ChatTemplate:
    pretrained.chat_template = path.read_text("utf-8")
    return ChatTemplate(Tokenizer(pretrained))


@needs_data
@pytest.mark.parametrize("name", OF_MODELS)
def test_finds_the_parsers_of_a_model(pretrained: Any, name: str) -> None:
    template = template_of(pretrained, DATA / "chat_templates" / f"{name}.jinja")
    assert (find_tool_parser(template), find_reasoning_parser(template)) == OF_MODELS[name]


@needs_data
def test_finds_a_tool_parser_for_all_but_known_templates(pretrained: Any) -> None:
    without = {
        path.stem
        for path in (DATA / "chat_templates").glob("*.jinja*")
        if find_tool_parser(template_of(pretrained, path)) == NONE
    }
    assert without == NO_TOOLS


@needs_data
def test_llama_writes_json_and_nothing_else(pretrained: Any) -> None:
    pretrained.chat_template = (
        "{{ tools }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
        '{{ \'{"name": "\' + call.name + \'", "parameters": \' + (call.arguments | tojson) + "}" }}'
        "{% else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )
    assert find_tool_parser(ChatTemplate(Tokenizer(pretrained))) == "llama3_json"


def test_none_leaves_everything_in_the_text() -> None:
    assert not answer_format(tools="none", reasoning="none").markers


def test_a_template_without_tools_or_reasoning_has_no_parsers(tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    template = ChatTemplate(Tokenizer.load(write_tokenizer(tmp_path, template=source)))
    assert find_tool_parser(template) == find_reasoning_parser(template) == NONE
