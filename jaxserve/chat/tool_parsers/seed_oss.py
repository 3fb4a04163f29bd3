"""ByteDance's Seed-OSS: as Qwen 3 Coder, in a tag of its own."""

from dataclasses import replace

from jaxserve.chat.tool_parsers import qwen3_coder

FORMAT = replace(qwen3_coder.FORMAT, begins=("<seed:tool_call>",), ends=("</seed:tool_call>",))
