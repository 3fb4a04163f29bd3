"""gpt-oss: messages to the function as recipient, in OpenAI's harmony format."""

from jaxserve.chat.harmony import Harmony

FORMAT = Harmony()
