"""Several models behind one application: a request reaches the engine of the model it names."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from jaxserve.errors import ModelNotFoundError
from jaxserve.server import create_app
from jaxserve.server.errors import LoadingError
from jaxserve.server.models import ModelRouter
from tests.server.world import World


class SecondWorld(World):
    """A world whose model has names of its own."""

    name = "tiny/second"
    alias = "other"


@pytest.fixture
def worlds() -> Iterator[tuple[World, SecondWorld]]:
    with World(says="one") as first, SecondWorld(says="two") as second:
        yield first, second


@pytest.fixture
def both(worlds: tuple[World, SecondWorld]) -> TestClient:
    """A client of one application that serves the models of both worlds."""
    first, second = worlds
    app = create_app(
        [first.model, second.model],
        metrics=first.metrics,
        config=first.config,
        folder=first.folder,
    )
    return TestClient(app, base_url="http://localhost")


@pytest.mark.parametrize(
    ("name", "text"),
    [("tiny/model", "one"), ("alias", "one"), ("tiny/second", "two"), ("other", "two")],
)
def test_a_request_reaches_the_model_it_names(both: TestClient, name: str, text: str) -> None:
    body = {"model": name, "prompt": "hello", "max_tokens": 9}
    answer = both.post("/v1/completions", json=body).json()
    assert (answer["model"], answer["choices"][0]["text"]) == (name, text)


def test_the_first_model_answers_requests_that_name_none(both: TestClient) -> None:
    answer = both.post("/v1/completions", json={"prompt": "hello", "max_tokens": 9}).json()
    assert (answer["model"], answer["choices"][0]["text"]) == ("tiny/model", "one")


def test_all_models_are_listed_under_all_names(both: TestClient) -> None:
    entries = both.get("/v1/models").json()["data"]
    assert [(each["id"], each["root"]) for each in entries] == [
        ("tiny/model", "tiny/model"),
        ("alias", "tiny/model"),
        ("tiny/second", "tiny/second"),
        ("other", "tiny/second"),
    ]


def test_a_name_is_unknown_only_when_all_models_are_there(
    worlds: tuple[World, SecondWorld],
) -> None:
    first, second = worlds
    router = ModelRouter(num_expected=2)
    with pytest.raises(LoadingError):
        router.models  # noqa: B018 (the property raises)
    router.add(1, second.model)
    assert router.model("other") is second.model
    for name in ("alias", "nobody", None):
        with pytest.raises(LoadingError):
            router.model(name)
    router.add(0, first.model)
    assert router.model("alias") is router.model(None) is first.model
    with pytest.raises(
        ModelNotFoundError, match="available models: tiny/model, alias, tiny/second, other"
    ):
        router.model("nobody")


def test_a_model_takes_the_place_of_the_one_of_its_number(
    worlds: tuple[World, SecondWorld],
) -> None:
    first, second = worlds
    router = ModelRouter([first.model])
    router.add(0, second.model)
    assert router.models == (second.model,)
    with pytest.raises(ModelNotFoundError):
        router.model("alias")
