"""DeepSeek R1 and similar models: always reasoning, whose opening tag may be missing."""

from jaxserve.chat.reasoning_format import ReasoningFormat

FORMAT = ReasoningFormat(begins=("<think>",), ends=("</think>",), is_assumed=True)
