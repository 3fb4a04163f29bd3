"""Qwen 3 Coder, Qwen 3.5, Nemotron 3, Step 3.5: name and arguments between tags."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.tagged_call import TaggedCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=TaggedCall(
        name=("<function=", (">",)),
        key=("<parameter=", ">"),
        value=("", "</parameter>"),
        end="</function>",
        pads=True,
    ),
    written=CallForm(
        call="<tool_call>\n<function={name}>\n{arguments}</function>\n</tool_call>",
        between="\n",
        style="qwen_xml",
    ),
    begins=("<tool_call>",),
    ends=("</tool_call>",),
)
