"""Calls that a grammar makes a model write, in one form for all models."""

from jaxserve.chat.syntax.json_call import JsonCall
from jaxserve.chat.tool_format import ToolFormat

# `[{"name": ..., "arguments": {...}}, ...]` and nothing else: what grammar.forced_calls allows.
FORMAT = ToolFormat(
    call=JsonCall(needs_arguments=True),
    between=("[", ","),
    ends=("]",),
    chains=True,
    is_bare=True,
)
