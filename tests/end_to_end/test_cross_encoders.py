"""Cross-encoders from text to score, over HTTP: as transformers reads and scores pairs."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve import LLM
from jaxserve.client.in_process import InProcessClient
from jaxserve.commands.engine_process import load
from jaxserve.config.engine import EngineOptions
from jaxserve.processes.api import served_model
from jaxserve.processes.messages import Hello
from jaxserve.server import ServerConfig, create_app
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.goldens.checkpoints import (
    CROSS_ENCODERS,
    DOCUMENTS,
    QUERY,
    write_checkpoint,
    write_pair_tokenizer,
)

GOLDENS = Path(__file__).parents[1] / "goldens" / "scores.json"
SMALL: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 128, "warm_up": "none"}
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=CROSS_ENCODERS)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CROSS_ENCODERS[family]
    folder = write_checkpoint(tmp_path_factory.mktemp(family), config)
    return write_pair_tokenizer(folder, config)


@pytest.fixture(scope="module")
def scores(family: str) -> list[float]:
    """Score the query with each document, by transformers."""
    found: list[float] = json.loads(GOLDENS.read_text("utf-8"))[family]
    return found


@pytest.fixture(scope="module")
def http(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """What `jaxserve serve` puts together, in one process."""
    hellos: list[Hello] = []
    options = EngineOptions(model=str(folder), compilation_cache=False, **SMALL)
    engine = load(options, hellos.append)
    (hello,) = hellos
    config, tokenizer = ServerConfig(port=0), Tokenizer.load(folder)
    client = InProcessClient(engine.engine, tokenizer.backend)
    app = create_app(
        [served_model(hello, client, tokenizer, config)],
        metrics=engine.metrics,
        config=config,
        folder=tmp_path_factory.mktemp("kept"),
    )
    with TestClient(app, base_url="http://localhost") as http:
        yield http
    asyncio.run(client.shutdown(drain_timeout_s=5.0))


def post(http: TestClient, path: str, **body: Any) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_pairs_are_scored_as_by_transformers(http: TestClient, scores: list[float]) -> None:
    answer = post(http, "/score", text_1=QUERY, text_2=DOCUMENTS)
    found = [each["score"] for each in answer["data"]]
    assert found == pytest.approx(scores, abs=TOLERANCE)


def test_documents_are_ranked_as_by_transformers(http: TestClient, scores: list[float]) -> None:
    results = post(http, "/v1/rerank", query=QUERY, documents=DOCUMENTS)["results"]
    order = sorted(range(len(DOCUMENTS)), key=lambda index: -scores[index])
    assert [each["index"] for each in results] == order
    found = [each["relevance_score"] for each in results]
    assert found == pytest.approx(sorted(scores, reverse=True), abs=TOLERANCE)


def test_scores_offline_are_the_same(folder: Path, scores: list[float]) -> None:
    llm = LLM(str(folder), compilation_cache=False, **SMALL)
    outputs = llm.score(QUERY, [*DOCUMENTS], use_tqdm=False)
    assert [each.outputs.score for each in outputs] == pytest.approx(scores, abs=TOLERANCE)
