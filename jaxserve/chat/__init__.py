"""From chat messages to a prompt, and from the text of an answer to what is in it."""

# What may stand for a parser's name: what the model's template shows, and leaving the text alone.
AUTO, NONE = "auto", "none"
