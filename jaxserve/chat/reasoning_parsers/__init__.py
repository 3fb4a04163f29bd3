"""Reasoning parsers, one file each; the name of the file is the name of the parser.

To add one, add a file that defines FORMAT, and answers of such a model to the tests.
"""

from importlib import import_module
from pkgutil import iter_modules

from jaxserve.chat.harmony import Harmony
from jaxserve.chat.reasoning_format import ReasoningFormat
from jaxserve.errors import ConfigError

# Names that vLLM and SGLang have for the same.
ALIASES = {
    "deepseek-r1": "deepseek_r1",
    "deepseek_v3": "qwen3",
    "glm45": "glm",
    "glm47": "glm",
    "gpt-oss": "gpt_oss",
    "openai_gptoss": "gpt_oss",
    "qwen3-thinking": "qwen3",
}


def names() -> tuple[str, ...]:
    """Return the names of the available parsers."""
    return tuple(sorted(module.name for module in iter_modules(__path__)))


def reasoning_format(name: str) -> ReasoningFormat | Harmony:
    """Return a parser's format; raises ConfigError for an unknown name."""
    name = ALIASES.get(name, name)
    # Import only known files: the name comes from the user.
    if name not in names():
        raise ConfigError(f"reasoning_parser must be one of {', '.join(names())}, got {name!r}")
    form: ReasoningFormat | Harmony = import_module(f"{__name__}.{name}").FORMAT
    return form
