"""Granite 3.2 and 3.3: fixed sentences, or tags around reasoning and answer."""

from jaxserve.chat.reasoning_format import ReasoningFormat

FORMAT = ReasoningFormat(
    begins=("Here is my thought process:", "Here's my thought process:", "<think>"),
    ends=("Here is my response:", "Here's my response:", "</think>"),
    wraps=("<response>", "</response>"),
    signs=("</think>", "<response>"),
)
