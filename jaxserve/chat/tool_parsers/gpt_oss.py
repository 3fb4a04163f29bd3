"""gpt-oss: messages to the recipient of the call, in OpenAI's harmony."""

from jaxserve.chat.harmony import Harmony

FORMAT = Harmony()
