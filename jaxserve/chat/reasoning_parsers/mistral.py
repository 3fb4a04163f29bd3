"""Magistral and Ministral 3 Reasoning: special tokens."""

from jaxserve.chat.reasoning_format import ReasoningFormat

FORMAT = ReasoningFormat(begins=("[THINK]",), ends=("[/THINK]",), signs=("[THINK]",))
