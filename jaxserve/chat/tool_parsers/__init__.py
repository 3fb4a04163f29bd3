"""Tool call parsers, one file each; the name of the file is the name of the parser.

To add one, add a file that defines FORMAT, and answers of such a model to the tests.
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
    """Return the names of the available parsers."""
    return tuple(sorted(module.name for module in iter_modules(__path__)))


def tool_format(name: str) -> ToolFormat | Harmony:
    """Return a parser's format; raises ConfigError for an unknown name."""
    name = ALIASES.get(name, name)
    # Import only known files: the name comes from the user.
    if name not in names():
        raise ConfigError(f"tool_call_parser must be one of {', '.join(names())}, got {name!r}")
    form: ToolFormat | Harmony = import_module(f"{__name__}.{name}").FORMAT
    return form
