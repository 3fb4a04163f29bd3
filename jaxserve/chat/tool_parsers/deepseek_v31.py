"""DeepSeek V3.1: a name, a token and JSON."""

import re

from jaxserve.chat.syntax.header_call import HeaderCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=HeaderCall(re.compile(r"(?P<name>[\w.-]+)"), "<｜tool▁sep｜>"),
    begins=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    ends=("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
)
