"""DeepSeek V3.2: name and arguments in DeepSeek's own markup."""

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.tagged_call import TaggedCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=TaggedCall(
        name=('<｜DSML｜invoke name="', ('">',)),
        key=('<｜DSML｜parameter name="', ">"),
        value=("", "</｜DSML｜parameter>"),
        end="</｜DSML｜invoke>",
    ),
    written=CallForm(
        begin="<｜DSML｜function_calls>\n",
        call='<｜DSML｜invoke name="{name}">\n{arguments}</｜DSML｜invoke>\n',
        end="</｜DSML｜function_calls>",
        style="deepseek_xml",
    ),
    begins=("<｜DSML｜function_calls>",),
    ends=("</｜DSML｜function_calls>",),
)
