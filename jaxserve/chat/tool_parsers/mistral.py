"""Mistral since Small 3.1, and Devstral: a special token, the name, another one, then JSON."""

import re

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.syntax.header_call import HeaderCall
from jaxserve.chat.tool_format import ToolFormat

FORMAT = ToolFormat(
    call=HeaderCall(re.compile(r"(?P<name>[\w.-]+)(?:\[CALL_ID\](?P<id>\w+))?"), "[ARGS]"),
    written=CallForm(
        call="[TOOL_CALLS]{name}[ARGS]{arguments}",
    ),
    begins=("[TOOL_CALLS]",),
    has_short_ids=True,
)
