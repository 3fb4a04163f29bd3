"""Apriel: a list of JSON between tags."""

from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=JsonCall(),
    begins=("<tool_calls>",),
    ends=("]", "</tool_calls>"),
    between=("[", ","),
    chains=True,
)
