"""Kimi K2: a call id that contains the name, a special token, then JSON."""

import re

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.header_call import HeaderCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=HeaderCall(
        re.compile(r"(?P<id>(?:functions\.)?(?P<name>[\w.-]+?)(?::\d+)?)"),
        "<|tool_call_argument_begin|>",
    ),
    written=CallForm(
        begin="<|tool_calls_section_begin|>",
        call="<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{arguments}"
        "<|tool_call_end|>",
        end="<|tool_calls_section_end|>",
    ),
    begins=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    ends=("<|tool_call_end|>", "<|tool_calls_section_end|>"),
    signs=("<|tool_call_argument_begin|>",),
)
