"""GigaChat 3: JSON after a special token."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=JsonCall(),
    written=CallForm(
        call='<|function_call|>{"name": "{name}", "arguments": {arguments}}',
        is_single=True,
    ),
    begins=("<|function_call|>", "function call<|role_sep|>"),
    ends=("<|message_sep|>",),
)
