"""LangChain's own suites for chat models and embeddings, over its OpenAI integration."""

from typing import Any

import pytest

pytest.importorskip("langchain_tests")

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

from tests.clients.world import KEY, MODEL, TEXTS, Address


def tool(name: str, **properties: object) -> dict[str, object]:
    """The only tool, which leaves no choice of its arguments."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    schema["required"] = [*properties]
    return {"tools": [{"type": "function", "function": {"name": name, "parameters": schema}}]}


STRING = {"type": "string", "maxLength": 20}
JOKE = {
    "type": "object",
    "properties": {"setup": STRING, "punchline": STRING},
    "required": ["setup", "punchline"],
}
THREE = tool("magic_function", input={"enum": [3]})
# The small model reads neither numbers nor Chinese out of what it is told. In these tests a schema
# does it for the model: `extra_body` goes over what LangChain sends.
HELP: dict[str, dict[str, object]] = {
    "test_json_mode": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "joke", "schema": JOKE}}
    },
    "test_tool_calling": THREE,
    "test_tool_calling_async": THREE,
    "test_tool_calling_with_no_arguments": tool("magic_function_no_args"),
    "test_unicode_tool_call_integration": tool(
        "unicode_customer",
        customer_name={"enum": ["你好啊集团 こんにちは株式会社"]},
        description={"enum": ["技術"]},
    ),
}


class TestChatOpenAI(ChatModelIntegrationTests):  # type: ignore[misc]
    """The whole suite; what a text model has no part in (images, sound, PDF) skips itself."""

    url: str

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _address(cls, server: Address) -> None:
        cls.url = server.v1

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> ChatOpenAI:
        extra = getattr(request, "param", {})
        # Left to itself the small model would call and call.
        body = {"parallel_tool_calls": False, **HELP.get(request.node.originalname, {})}
        return self.chat_model_class(**self.chat_model_params, **extra, extra_body=body)

    @property
    def chat_model_class(self) -> Any:
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


class TestOpenAIEmbeddings(EmbeddingsIntegrationTests):  # type: ignore[misc]
    """The whole suite, and that what comes is what the server says."""

    url: str

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _address(cls, embedder: Address) -> None:
        cls.url = embedder.v1

    @property
    def embeddings_class(self) -> Any:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, object]:
        # Otherwise LangChain would send ids of OpenAI's own tokens.
        settings = {"model": MODEL, "base_url": self.url, "api_key": KEY}
        return {**settings, "check_embedding_ctx_length": False}

    def test_documents_and_queries_have_the_vectors_of_openais_client(self, model: Any) -> None:
        with openai.OpenAI(base_url=self.url, api_key=KEY, max_retries=0) as client:
            answer = client.embeddings.create(model=MODEL, input=TEXTS)
        vectors = [pytest.approx(each.embedding, abs=1e-5) for each in answer.data]
        assert model.embed_documents(TEXTS) == vectors
        assert model.embed_query(TEXTS[1]) == vectors[1]
