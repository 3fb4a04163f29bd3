"""Phi 4 mini and firefunction: a JSON list after a word or between special tokens."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=JsonCall(),
    written=CallForm(
        begin="<|tool_call|>[",
        call='{"name": "{name}", "arguments": {arguments}}',
        between=", ",
        end="]<|/tool_call|>",
    ),
    begins=("<|tool_call|>", "functools["),
    ends=("]", "<|/tool_call|>"),
    between=("[", ","),
    chains=True,
    signs=("<|tool_call|>", "<|/tool_call|>"),
)
