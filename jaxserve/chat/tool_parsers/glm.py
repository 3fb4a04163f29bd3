"""GLM 4.5 and later: the name, then keys and values between tags."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.tagged_call import TaggedCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=TaggedCall(
        name=("", ("\n", "<arg_key>", "</tool_call>")),
        key=("<arg_key>", "</arg_key>"),
        value=("<arg_value>", "</arg_value>"),
        end="</tool_call>",
    ),
    written=CallForm(
        call="<tool_call>{name}{n}{arguments}</tool_call>{n}",
        style="glm_xml",
    ),
    begins=("<tool_call>",),
)
