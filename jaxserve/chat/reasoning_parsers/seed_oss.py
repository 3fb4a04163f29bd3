"""ByteDance Seed-OSS: its own tags."""

from jaxserve.chat.reasoning_format import ReasoningFormat

FORMAT = ReasoningFormat(begins=("<seed:think>",), ends=("</seed:think>",), signs=("seed:think",))
