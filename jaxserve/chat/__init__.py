"""Chat templates, and parsers of reasoning and tool calls in answers."""

# In place of a parser's name: choose by the chat template; parse nothing.
AUTO, NONE = "auto", "none"
