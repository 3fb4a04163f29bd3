"""Granite 3: a special token, then a JSON list."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=JsonCall(),
    written=CallForm(
        begin="<|tool_call|>[",
        call='{"name": "{name}", "arguments": {arguments}}',
        between=", ",
        end="]",
    ),
    begins=("<|tool_call|>", "<tool_call>"),
    ends=("]", "</tool_call>"),
    between=("[", ","),
    chains=True,
    signs=("<|tool_call|>", "start_of_role"),
)
