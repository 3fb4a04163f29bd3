"""Mistral before Small 3.1, such as Nemo: a special token, then a JSON list."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=JsonCall(),
    written=CallForm(
        begin="[TOOL_CALLS][",
        call='{"name": "{name}", "arguments": {arguments}}',
        between=", ",
        end="]",
    ),
    begins=("[TOOL_CALLS]",),
    ends=("]",),
    between=("[", ","),
    chains=True,
    has_short_ids=True,
)
