"""ByteDance Seed-OSS: as Qwen 3 Coder, with different tags."""

from dataclasses import replace

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.tool_parsers import qwen3_coder

FORMAT = replace(
    qwen3_coder.FORMAT,
    written=CallForm(
        call="<seed:tool_call>\n<function={name}>\n{arguments}</function>\n</seed:tool_call>",
        between="\n",
        style="seed_xml",
    ),
    begins=("<seed:tool_call>",),
    ends=("</seed:tool_call>",),
)
