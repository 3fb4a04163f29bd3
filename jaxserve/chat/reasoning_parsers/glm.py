"""GLM 4.5 and later: tags, and calls that end reasoning too."""

from jaxserve.chat.reasoning_format import ReasoningFormat

FORMAT = ReasoningFormat(
    begins=("<think>",),
    ends=("</think>",),
    ends_before=("<tool_call>",),
    signs=("</think>", "<arg_key>"),
)
