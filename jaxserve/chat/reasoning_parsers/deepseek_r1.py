"""DeepSeek R1 and its like: always reasoning, whose first tag may be missing."""

from jaxserve.chat.reasoning_format import ReasoningFormat

FORMAT = ReasoningFormat(begins=("<think>",), ends=("</think>",), is_assumed=True)
