"""LFM 2: Python calls between special tokens."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.python_call import PythonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=PythonCall(),
    written=CallForm(
        begin="<|tool_call_start|>[",
        call="{name}({arguments})",
        between=", ",
        end="]<|tool_call_end|>",
        style="python",
        name=r"[A-Za-z_][\w.-]{0,63}",
    ),
    begins=("<|tool_call_start|>",),
    ends=("]", "<|tool_call_end|>"),
    between=("[", ","),
)
