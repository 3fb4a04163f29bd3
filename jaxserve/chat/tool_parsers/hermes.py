"""Hermes, Qwen 2.5, Qwen 3, Granite 4 and many more: JSON between tags."""

from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=JsonCall(),
    begins=("<tool_call>",),
    ends=("</tool_call>",),
    between=(",",),
    chains=True,
    around_json=("<tool_call>\n", "\n</tool_call>"),
)
