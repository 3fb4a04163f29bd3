"""The exact form in which a family of models writes tool calls, for grammars that enforce it."""

import json
from dataclasses import dataclass
from typing import Any, Literal

# How arguments are written: one JSON object, or each in its place; see grammar/parameters.py.
type Style = Literal["json", "qwen_xml", "glm_xml", "deepseek_xml", "seed_xml", "python"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """The exact text of tool calls, as chat templates write those of earlier turns.

    call: template of one call, with the placeholders "{name}", "{arguments}" and optionally
    "{index}" (a number) and "{n}" (a line break or nothing). begin, between and end: text before,
    between and after the calls. style: how arguments are written. name: regex of function names.
    is_single: whether an answer has at most one call. after_reasoning: text between reasoning and
    the first call.
    """

    call: str
    begin: str = ""
    between: str = ""
    end: str = ""
    style: Style = "json"
    name: str = r"[\w.-]{1,64}"
    is_single: bool = False
    after_reasoning: str = ""

    @property
    def is_json(self) -> bool:
        """Whether a call is exactly one JSON object."""
        return self.style == "json" and not self.begin and self.call.startswith("{")

    def json_call(self, name: str) -> dict[str, Any]:
        """Return the JSON object of a call, with None in place of its arguments."""
        text = self.call.replace("{name}", name).replace("{arguments}", "null")
        call: dict[str, Any] = json.loads(text)
        return call
