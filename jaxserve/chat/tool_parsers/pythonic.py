"""Llama 3.2 and 4, ToolACE, OLMo 3: an answer that is a list of calls in Python."""

from jaxserve.chat.syntax.python_call import PythonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=PythonCall(),
    begins=("<|python_start|>",),
    ends=("]", "<|python_end|>"),
    between=("[", ","),
    is_bare=True,
)
