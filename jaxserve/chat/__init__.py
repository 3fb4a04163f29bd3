"""Chat templates, and parsers of reasoning and tool calls in answers."""

from collections.abc import Mapping

# In place of a parser's name: choose by the chat template; parse nothing.
AUTO, NONE = "auto", "none"
# For each format of message content: whether it is a string, and whether it is a list of parts;
# None for what the chat template reads.
CONTENT_FORMATS: Mapping[str, tuple[bool, bool] | None] = {
    AUTO: None,
    "string": (True, False),
    "openai": (False, True),
}
