"""Llama 3.1 to 3.3: the whole answer is JSON."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=JsonCall(needs_arguments=True),
    written=CallForm(
        call='{"name": "{name}", "parameters": {arguments}}',
        between="; ",
    ),
    begins=("<|python_tag|>",),
    between=(";", ","),
    chains=True,
    is_bare=True,
)
