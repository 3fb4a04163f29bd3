"""Llama 3.2 and 4, ToolACE, OLMo 3: the whole answer is a list of Python calls."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.python_call import PythonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=PythonCall(),
    written=CallForm(
        begin="[",
        call="{name}({arguments})",
        between=", ",
        end="]",
        style="python",
        name=r"[A-Za-z_][\w.-]{0,63}",
    ),
    begins=("<|python_start|>",),
    ends=("]", "<|python_end|>"),
    between=("[", ","),
    is_bare=True,
)
