"""Apriel: a JSON list between tags."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=JsonCall(),
    written=CallForm(
        begin="<tool_calls>[",
        call='{"name": "{name}", "arguments": {arguments}}',
        between=", ",
        end="]</tool_calls>",
    ),
    begins=("<tool_calls>",),
    ends=("]", "</tool_calls>"),
    between=("[", ","),
    chains=True,
)
