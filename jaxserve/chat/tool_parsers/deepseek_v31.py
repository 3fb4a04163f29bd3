"""DeepSeek V3.1: the name, a special token, then JSON."""

import re

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.header_call import HeaderCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=HeaderCall(re.compile(r"(?P<name>[\w.-]+)"), "<｜tool▁sep｜>"),
    written=CallForm(
        begin="<｜tool▁calls▁begin｜>",
        call="<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>",
        end="<｜tool▁calls▁end｜>",
    ),
    begins=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    ends=("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
)
