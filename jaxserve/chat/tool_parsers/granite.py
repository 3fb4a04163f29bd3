"""Granite 3: a token, then a list of JSON."""

from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=JsonCall(),
    begins=("<|tool_call|>", "<tool_call>"),
    ends=("]", "</tool_call>"),
    between=("[", ","),
    chains=True,
    signs=("<|tool_call|>", "start_of_role"),
)
