"""GigaChat 3: JSON after a token."""

from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=JsonCall(),
    begins=("<|function_call|>", "function call<|role_sep|>"),
    ends=("<|message_sep|>",),
)
