"""DeepSeek V3.2 and V4: everything between tags of DeepSeek's own markup."""

from jaxserve.chat.syntax.tagged_call import TaggedCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=TaggedCall(
        name=('<｜DSML｜invoke name="', ('">',)),
        key=('<｜DSML｜parameter name="', ">"),
        value=("", "</｜DSML｜parameter>"),
        end="</｜DSML｜invoke>",
    ),
    begins=("<｜DSML｜function_calls>",),
    ends=("</｜DSML｜function_calls>",),
)
