"""DeepSeek V3 and R1: a name in a header, then JSON in a block of code."""

import re

from jaxserve.chat.syntax.header_call import HeaderCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=HeaderCall(re.compile(r"\w+<｜tool▁sep｜>(?P<name>[\w.-]+)"), "```json"),
    begins=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    ends=("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    signs=("<｜tool▁sep｜>", "```json"),
)
