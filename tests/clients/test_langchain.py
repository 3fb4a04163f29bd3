"""LangChain's own suite for chat models, over its OpenAI integration."""

import pytest

pytest.importorskip("langchain_tests")

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.clients.world import KEY, MODEL, Address

STRING = {"type": "string", "maxLength": 20}
JOKE = {
    "type": "object",
    "properties": {"setup": STRING, "punchline": STRING},
    "required": ["setup", "punchline"],
}
CUSTOMER = {
    "type": "object",
    "properties": {"customer_name": {"enum": ["你好啊集团 こんにちは株式会社"]}},
    "required": ["customer_name"],
}
# The small model copies neither names of fields nor Chinese. In these tests a schema does it for
# the model: `extra_body` goes over what LangChain sends.
HELP: dict[str, dict[str, object]] = {
    "test_json_mode": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "joke", "schema": JOKE}}
    },
    "test_unicode_tool_call_integration": {
        "tools": [
            {"type": "function", "function": {"name": "unicode_customer", "parameters": CUSTOMER}}
        ]
    },
}


class TestChatOpenAI(ChatModelIntegrationTests):
    """The whole suite; what a text model has no part in (images, sound, PDF) skips itself."""

    url: str

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _address(cls, server: Address) -> None:
        cls.url = server.v1

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> BaseChatModel:
        extra = getattr(request, "param", {})
        # Left to itself the small model would call and call.
        body = {"parallel_tool_calls": False, **HELP.get(request.node.originalname, {})}
        return self.chat_model_class(**self.chat_model_params, **extra, extra_body=body)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, object]:
        return {
            "model": MODEL,
            "base_url": self.url,
            "api_key": KEY,
            "temperature": 0,
            "seed": 1,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return MODEL
