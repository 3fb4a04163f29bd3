"""gpt-oss: messages on the analysis channel, in OpenAI's harmony format."""

from jaxserve.chat.harmony import Harmony

FORMAT = Harmony()
