"""How models write tool calls, one file per way; a file's name is the parser's.

To add one, add a file with its FORMAT, and texts of such a model to the tests.
"""

from importlib import import_module
from pkgutil import iter_modules

from jaxserve.chat.harmony import Harmony
from jaxserve.chat.tool_format import ToolFormat
from jaxserve.errors import ConfigError

# Names that vLLM and SGLang have for the same.
ALIASES = {
    "deepseekv3": "deepseek_v3",
    "deepseekv31": "deepseek_v31",
    "glm45": "glm",
    "glm47": "glm",
    "gpt-oss": "gpt_oss",
    "granite4": "hermes",
    "llama3": "llama3_json",
    "llama4_pythonic": "pythonic",
    "llama4_json": "llama3_json",
    "openai": "gpt_oss",
    "phi4_mini_json": "phi4",
    "qwen": "hermes",
    "qwen25": "hermes",
    "qwen3_xml": "qwen3_coder",
}


def names() -> tuple[str, ...]:
    """Return the parsers there are."""
    return tuple(sorted(module.name for module in iter_modules(__path__)))


def tool_format(name: str) -> ToolFormat | Harmony:
    """Return a parser's format; raises ConfigError for an unknown name."""
    name = ALIASES.get(name, name)
    # Looked up among the files before anything is imported by a name from outside.
    if name not in names():
        raise ConfigError(f"tool_call_parser must be one of {', '.join(names())}, got {name!r}")
    form: ToolFormat | Harmony = import_module(f"{__name__}.{name}").FORMAT
    return form
