"""Common parts of the client tests: the server's address, and the requests."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

KEY = "sk-a-key"
MODEL = "jaxserve-tiny"
ANNA = "Give me JSON with the name Anna and age 30."
WEATHER = "What is the weather in Paris?"
CAPITAL = "What is the capital of France?"
TOO_LONG = "word " * 2000
TEXTS = ["The capital of France is Paris.", "Anna is 30.", "Once upon a time"]


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    url: str

    @property
    def v1(self) -> str:
        """What OpenAI's clients take for the base URL."""
        return f"{self.url}/v1"


class Person(BaseModel):
    """A person."""

    name: str
    age: int


class Mood(BaseModel):
    """What the small model is not asked to know: the grammar leaves it little choice."""

    mood: Literal["happy", "sad"]
    is_certain: bool


WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": WEATHER_SCHEMA,
    },
}
