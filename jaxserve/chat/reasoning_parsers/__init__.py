"""How models write their reasoning, one file per way; a file's name is the parser's.

To add one, add a file with its FORMAT, and texts of such a model to the tests.
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
    """Return the parsers there are."""
    return tuple(sorted(module.name for module in iter_modules(__path__)))


def reasoning_format(name: str) -> ReasoningFormat | Harmony:
    """Return a parser's format; raises ConfigError for an unknown name."""
    name = ALIASES.get(name, name)
    # Looked up among the files before anything is imported by a name from outside.
    if name not in names():
        raise ConfigError(f"reasoning_parser must be one of {', '.join(names())}, got {name!r}")
    form: ReasoningFormat | Harmony = import_module(f"{__name__}.{name}").FORMAT
    return form
