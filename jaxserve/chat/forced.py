"""The form of forced calls for models whose own form cannot express them: a JSON list."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=JsonCall(needs_arguments=True),
    written=CallForm(
        begin="[",
        call='{"name": "{name}", "arguments": {arguments}}',
        between=", ",
        end="]",
    ),
    between=("[", ","),
    ends=("]",),
    chains=True,
    is_bare=True,
)
