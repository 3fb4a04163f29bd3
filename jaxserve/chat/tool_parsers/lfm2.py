"""LFM 2: calls in Python, between special tokens."""

from jaxserve.chat.syntax.python_call import PythonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=PythonCall(),
    begins=("<|tool_call_start|>",),
    ends=("]", "<|tool_call_end|>"),
    between=("[", ","),
)
