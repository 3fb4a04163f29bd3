"""The model that comes with jaxserve, over HTTP: what it answers is what was asked for."""

import json
import threading
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from jaxserve.build import LoadedModel, build_with_tokenizer
from jaxserve.chat.template import ChatTemplate
from jaxserve.client.in_process import InProcessClient
from jaxserve.config.flags import engine_options
from jaxserve.grammar import GrammarChecker, Vocabulary
from jaxserve.observability.metrics import Metrics
from jaxserve.planning.planner import plan_engine
from jaxserve.server import ServedModel, ServerConfig, bind, create_app
from jaxserve.server.transport.run import Server
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.server.world import wait_for

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "legs": {"enum": [2, 4, 8]},
        "tags": {"type": "array", "items": {"enum": ["wild", "tame"]}, "maxItems": 2},
    },
    "required": ["name", "legs", "tags"],
    "additionalProperties": False,
}
QUESTION: Any = [{"role": "user", "content": "Tell me of an animal."}]


class Animal(BaseModel):
    """What `parse` makes of an answer."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=12)
    kind: Literal["cat", "dog"]


@pytest.fixture(scope="module")
def built() -> tuple[LoadedModel, Tokenizer]:
    options = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 512}
    return build_with_tokenizer(plan_engine(engine_options(None, options)))


@pytest.fixture(scope="module")
def client(
    built: tuple[LoadedModel, Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    loaded, tokenizer = built
    plan = loaded.plan
    model = ServedModel(
        names=("tiny",),
        client=InProcessClient(loaded.engine, tokenizer.backend),
        tokenizer=tokenizer,
        chat=ChatTemplate(tokenizer),
        max_model_len=plan.scheduler.max_model_len,
        vocab_size=plan.model.vocab_size,
        grammars=GrammarChecker(
            Vocabulary(lambda: tokenizer.backend, vocab_size=plan.model.vocab_size)
        ),
    )
    config = ServerConfig(port=0)
    folder = tmp_path_factory.mktemp("kept")
    app = create_app([model], metrics=Metrics(max_model_len=512), config=config, folder=folder)
    listener = bind(config)
    server = Server(app, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_for(lambda: server.started)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as found:
        yield found
    server.should_exit = True
    thread.join(20.0)


def test_parse_returns_an_object_of_the_class(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="tiny", messages=QUESTION, response_format=Animal, max_completion_tokens=80, seed=1
    )
    animal = answer.choices[0].message.parsed
    assert isinstance(animal, Animal)
    assert animal.kind in {"cat", "dog"}


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1, "logprobs": True}])
def test_many_answers_at_once_follow_the_schema(
    client: openai.OpenAI, sampling: dict[str, Any]
) -> None:
    answer: Any = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        n=6,
        max_completion_tokens=120,
        seed=3,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True},
        },
        frequency_penalty=0.5,
        **sampling,
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


def test_a_stream_of_chosen_text_is_that_text(client: openai.OpenAI) -> None:
    chunks: Any = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        stream=True,
        extra_body={"structured_outputs": {"choice": ["a fox", "a hen"]}},
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text in {"a fox", "a hen"}


@pytest.mark.parametrize("options", [{}, {"logprobs": 0}])
def test_text_that_spells_an_added_token_is_written_as_text(
    client: openai.OpenAI, options: dict[str, Any]
) -> None:
    answer = client.completions.create(
        model="tiny",
        prompt="x",
        max_tokens=40,
        extra_body={"guided_regex": "<tool_call>a?b<tool_call>cd", **options},
    )
    assert answer.choices[0].text in {"<tool_call>ab<tool_call>cd", "<tool_call>b<tool_call>cd"}


def test_nothing_is_compiled_for_a_grammar_that_was_not_planned(
    built: tuple[LoadedModel, Tokenizer], client: openai.OpenAI
) -> None:
    # Counted for the whole process, in which engines of other tests may still have been compiling.
    before = built[0].compilations.since_mark
    client.completions.create(
        model="tiny", prompt="x", max_tokens=4, extra_body={"guided_regex": "[a-z]{9}"}
    )
    assert built[0].compilations.since_mark == before
