"""GLM 4.5 and later: tags; a tool call also ends the reasoning."""

from jaxserve.chat.reasoning_format import ReasoningFormat

FORMAT = ReasoningFormat(
    begins=("<think>",),
    ends=("</think>",),
    ends_before=("<tool_call>",),
    signs=("</think>", "<arg_key>"),
)
