"""Kimi K2 Thinking: tags; a tool call also ends the reasoning."""

from jaxserve.chat.reasoning_format import ReasoningFormat

FORMAT = ReasoningFormat(
    begins=("<think>",),
    ends=("</think>",),
    ends_before=("<|tool_calls_section_begin|>",),
    signs=("</think>", "<|tool_calls_section_begin|>"),
)
