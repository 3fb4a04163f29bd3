"""Hermes, Qwen 2.5, Qwen 3, Granite 4 and many others: JSON between tags."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=JsonCall(),
    written=CallForm(
        call='<tool_call>\n{"name": "{name}", "arguments": {arguments}}\n</tool_call>',
        between="\n",
    ),
    begins=("<tool_call>",),
    ends=("</tool_call>",),
    between=(",",),
    chains=True,
)
