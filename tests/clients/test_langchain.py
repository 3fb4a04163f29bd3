"""LangChain's own suite for chat models, over its OpenAI integration."""

import pytest

pytest.importorskip("langchain_tests")

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.clients.world import KEY, MODEL, Address


class TestChatOpenAI(ChatModelIntegrationTests):
    """The whole suite; what a text model has no part in (images, sound, PDF) skips itself."""

    url: str

    @pytest.fixture(autouse=True, scope="class")
    def _address(self, server: Address) -> None:
        type(self).url = server.v1

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
