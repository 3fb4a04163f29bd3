"""DeepSeek V3 and R1: the name in a header, then JSON in a code block."""

import re

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.header_call import HeaderCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=HeaderCall(re.compile(r"\w+<｜tool▁sep｜>(?P<name>[\w.-]+)"), "```json"),
    written=CallForm(
        begin="<｜tool▁calls▁begin｜>",
        call="<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>",
        between="\n",
        end="<｜tool▁calls▁end｜>",
    ),
    begins=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    ends=("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    signs=("<｜tool▁sep｜>", "```json"),
)
