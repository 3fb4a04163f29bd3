"""How models of one kind write calls, for grammars that make them write no others."""

import json
from dataclasses import dataclass
from typing import Any, Literal

# Of arguments: JSON, or each in a place of its own; what they are, grammar/parameters.py tells.
type Style = Literal["json", "qwen_xml", "glm_xml", "deepseek_xml", "seed_xml", "python"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """How calls are written, to the letter: as chat templates write those of earlier turns.

    call: one call, in which "{name}" and "{arguments}" have their places, as may "{index}", which
    is a number, and "{n}", which is a line break or nothing. begin, between and end: what stands
    before, between and after all of them. style: how arguments are written. name: what names of
    functions can be. is_single: whether an answer has one call at most. after_reasoning: what
    stands before everything else where reasoning does.
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
        """Whether a call is a JSON object and nothing else."""
        return self.style == "json" and not self.begin and self.call.startswith("{")

    def json_call(self, name: str) -> dict[str, Any]:
        """Return the object that a call is, with None for its arguments."""
        text = self.call.replace("{name}", name).replace("{arguments}", "null")
        call: dict[str, Any] = json.loads(text)
        return call
