"""DeepSeek V4: as V3.2, with a different outer tag."""

from dataclasses import replace

from jaxserve.chat.tool_parsers import deepseek_v32

FORMAT = replace(
    deepseek_v32.FORMAT,
    written=replace(
        deepseek_v32.FORMAT.written,
        begin="<｜DSML｜tool_calls>\n",
        end="</｜DSML｜tool_calls>",
    ),
    begins=("<｜DSML｜tool_calls>",),
    ends=("</｜DSML｜tool_calls>",),
)
