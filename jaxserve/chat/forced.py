"""Calls that a grammar makes a model write where its own form cannot hold them: a list of JSON."""

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
