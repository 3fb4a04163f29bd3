"""gpt-oss: messages on the channel analysis, in OpenAI's harmony."""

from jaxserve.chat.harmony import Harmony

FORMAT = Harmony()
