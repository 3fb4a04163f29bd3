"""Qwen 3, DeepSeek V3.1, Nemotron 3 and many others: tags around optional reasoning."""

from jaxserve.chat.reasoning_format import ReasoningFormat

FORMAT = ReasoningFormat(begins=("<think>",), ends=("</think>",), signs=("</think>",))
