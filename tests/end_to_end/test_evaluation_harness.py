"""What lm-evaluation-harness asks of /v1/completions, against log-probabilities computed directly.

The requests are those that its model `local-completions` sends (lm-eval 0.4.13): batches of token
ids, echo, one token more than is looked at. docs/evaluation.md tells how to run the harness itself.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from jaxserve.build import LoadedModel
from jaxserve.client.in_process import InProcessClient
from jaxserve.grammar import GrammarChecker, Vocabulary
from jaxserve.loading.weights import load_model
from jaxserve.models import Decoder
from jaxserve.observability.metrics import Metrics
from jaxserve.server import ServedModel, ServerConfig, create_app
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.data import checkpoint
from tests.end_to_end.world import Golden, engine_for

CONTEXTS = ["Once upon a time", "Lily and Ben went to the park. They", "The dog was", "One day,"]
ENDINGS = [" there was a little girl named Lily.", " saw a big tree.", " sad", " xylophone quarks"]


@pytest.fixture(scope="module")
def tokenizer(stories: LoadedModel) -> Tokenizer:
    return Tokenizer.load(stories.plan.tokenizer_folder)


@pytest.fixture(scope="module")
def http(
    stories: LoadedModel, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    """A server around a fresh engine of the checkpoint."""
    plan = stories.plan
    client = InProcessClient(engine_for(stories).engine, tokenizer.backend)
    model = ServedModel(
        names=("stories",),
        client=client,
        tokenizer=tokenizer,
        chat=None,
        max_model_len=plan.scheduler.max_model_len,
        vocab_size=plan.model.vocab_size,
        grammars=GrammarChecker(
            Vocabulary(lambda: tokenizer.backend, vocab_size=plan.model.vocab_size)
        ),
    )
    metrics = Metrics(max_model_len=plan.scheduler.max_model_len)
    folder = tmp_path_factory.mktemp("kept")
    app = create_app([model], metrics=metrics, config=ServerConfig(port=0), folder=folder)
    with TestClient(app, base_url="http://localhost") as http:
        yield http
    asyncio.run(client.shutdown(drain_timeout_s=5.0))


@pytest.fixture(scope="module")
def model() -> Decoder:
    return load_model(checkpoint("stories260K-hf"), dtype="float32")


def computed(model: Decoder, token_ids: list[int]) -> NDArray[np.float32]:
    """Log-probabilities of every token after each of the tokens, from one plain forward pass."""
    return np.asarray(jax.nn.log_softmax(model(jnp.asarray(token_ids)), axis=-1))


def ask(http: TestClient, **fields: Any) -> list[Any]:
    response = http.post("/v1/completions", json={"model": "stories", **fields})
    assert response.status_code == 200, response.text
    choices: list[Any] = response.json()["choices"]
    return sorted(choices, key=lambda choice: choice["index"])


def loglikelihood(choice: Any, context_len: int) -> tuple[float, bool]:
    """Return the log-probability that the harness reads from a choice, and whether it is greedy.

    `[context_len:-1]` is the harness's own expression.
    """
    logprobs = choice["logprobs"]["token_logprobs"][context_len:-1]
    top = choice["logprobs"]["top_logprobs"][context_len:-1]
    is_greedy = all(own == max(best.values()) for own, best in zip(logprobs, top, strict=True))
    return sum(logprobs), is_greedy


def test_loglikelihoods_are_those_of_a_direct_computation(
    tokenizer: Tokenizer, http: TestClient, model: Decoder, stories_goldens: list[Golden]
) -> None:
    encode = tokenizer.encode
    contexts = [encode(text) for text in CONTEXTS]
    whole = [[*encode(a + b)] for a, b in zip(CONTEXTS, ENDINGS, strict=True)]
    # The model's own continuation is greedy; the endings above are not.
    contexts.append(stories_goldens[0].prompt_ids)
    whole.append([*stories_goldens[0].prompt_ids, *stories_goldens[0].token_ids[:8]])
    fields = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    choices = ask(http, prompt=whole, **fields)
    greedy = []
    for choice, context, token_ids in zip(choices, contexts, whole, strict=True):
        found, is_greedy = loglikelihood(choice, len(context))
        scores = computed(model, token_ids)
        places = range(len(context), len(token_ids))
        assert found == pytest.approx(sum(scores[i - 1, token_ids[i]] for i in places), abs=2e-3)
        assert is_greedy == all(scores[i - 1].argmax() == token_ids[i] for i in places)
        greedy.append(is_greedy)
    assert set(greedy) == {True, False}, "the cases must tell the two apart"


def test_rolling_loglikelihoods_are_those_of_a_direct_computation(
    tokenizer: Tokenizer, http: TestClient, model: Decoder
) -> None:
    # The harness scores all of a text after its first token, the prefix.
    token_ids = [*tokenizer.encode("Once upon a time there was a little girl. " * 8)]
    fields = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    (choice,) = ask(http, prompt=[token_ids], **fields)
    scores = computed(model, token_ids)
    expected = [scores[i - 1, token_ids[i]] for i in range(1, len(token_ids))]
    found = choice["logprobs"]["token_logprobs"]
    assert found[0] is None
    np.testing.assert_allclose(found[1:-1], expected, atol=1e-3)


def test_scoring_again_what_is_cached_gives_the_same(
    tokenizer: Tokenizer, http: TestClient
) -> None:
    token_ids = [*tokenizer.encode("Once upon a time there was a dog. " * 4)]
    fields = {"prompt": [token_ids], "max_tokens": 0, "logprobs": 5, "echo": True}
    first, again = ask(http, **fields), ask(http, **fields)
    assert first[0]["logprobs"] == again[0]["logprobs"]
    assert len(first[0]["logprobs"]["tokens"]) == len(token_ids)


def test_alternatives_are_the_likeliest_tokens(
    tokenizer: Tokenizer, http: TestClient, model: Decoder
) -> None:
    token_ids = [*tokenizer.encode("Once upon a time")]
    fields = {"max_tokens": 0, "logprobs": 5, "echo": True, "return_tokens_as_token_ids": True}
    (choice,) = ask(http, prompt=token_ids, **fields)
    scores = computed(model, token_ids)
    for i, found in enumerate(choice["logprobs"]["top_logprobs"][1:]):
        best = np.argsort(-scores[i])[:5]
        expected = {f"token_id:{t}": scores[i, t] for t in (*best, token_ids[i + 1])}
        assert found == pytest.approx(expected, abs=1e-3)


def test_generations_until_a_string_are_greedy(http: TestClient) -> None:
    golden = json.loads(Path(checkpoint("stories260K-hf") / "golden.json").read_text("utf-8"))
    case = golden["cases"][0]
    fields = {"prompt": [case["prompt"]], "max_tokens": 60, "temperature": 0, "seed": 1234}
    (choice,) = ask(http, stop=["."], **fields)
    expected = case["text"].removeprefix(case["prompt"]).split(".")[0]
    assert choice["text"] == expected
