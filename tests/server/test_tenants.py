"""Tenants: what they share, what policies refuse them, and what is recorded of their requests."""

from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from jaxserve.access.policy import Admission, Demand, Policy, Used
from jaxserve.access.principal import ANONYMOUS, Principal
from jaxserve.errors import ConfigError
from jaxserve.server import ServerConfig, create_app
from jaxserve.server.app import AppHooks
from jaxserve.server.errors import ForbiddenError
from jaxserve.server.http.record import RecordSink, RequestRecord
from tests.server.world import World, wait_for

PROMPT = "the quick brown fox jumps over the lazy dog"
BODY = {"prompt": PROMPT, "max_tokens": 3, "seed": 1, "ignore_eos": True}
TWO_TENANTS = ServerConfig(port=0, api_keys=("sk-a", "sk-b"), api_key_names=("a", "b"))


@dataclass
class Refusal(Policy):
    """Refuses one tenant, and keeps what the requests of others used."""

    tenant: str = "b"
    settled: list[tuple[str, Used]] = field(default_factory=list[tuple[str, Used]])

    async def admit(self, principal: Principal, demand: Demand) -> Admission:
        assert demand.model == World.name
        if principal.tenant == self.tenant:
            raise ForbiddenError("this tenant may not", param=None, code="tenant_refused")
        return Kept(principal.tenant, self.settled)


@dataclass
class Kept(Admission):
    tenant: str
    to: list[tuple[str, Used]]

    def settle(self, used: Used) -> None:
        self.to.append((self.tenant, used))


class Recorder(RecordSink):
    """Keeps all records."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def write(self, record: RequestRecord) -> None:
        self.records.append(record)


class Served(World):
    """A world with a policy and a sink."""

    def __init__(self, config: ServerConfig | None = None, *, step_s: float = 0.0) -> None:
        super().__init__(config=config, step_s=step_s)
        self.policy, self.recorder = Refusal(), Recorder()
        self.app = create_app(
            [self.model],
            metrics=self.metrics,
            config=self.config,
            folder=self.folder,
            hooks=AppHooks(policies=[self.policy], sinks=[self.recorder]),
        )


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


def upload(http: TestClient, *, of: str) -> str:
    answer = http.post(
        "/v1/files",
        files={"file": ("x.jsonl", b"{}\n")},
        data={"purpose": "batch"},
        headers=key(of),
    )
    file_id: str = answer.json()["id"]
    return file_id


def found(http: TestClient, file_id: str, *, by: str) -> bool:
    return http.get(f"/v1/files/{file_id}", headers=key(by)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_policy_refuses_a_tenant_and_no_other(stream: bool) -> None:
    body = {**BODY, "stream": stream}
    with Served(TWO_TENANTS) as world, world.http() as http:
        refused = http.post("/v1/completions", json=body, headers=key("sk-b"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "tenant_refused")
        assert world.policy.settled == []
        answered = http.post("/v1/completions", json=body, headers=key("sk-a"))
        assert answered.status_code == 200
        num_prompt = len(world.tokenizer.encode(PROMPT, add_special_tokens=True))
        # The refused request holds no place of the server's capacity.
        assert http.get("/load", headers=key("sk-a")).json() == {"server_load": 0}
    used = Used(prompt_tokens=num_prompt, completion_tokens=3)
    assert world.policy.settled == [("a", used)]


def test_a_request_that_is_left_is_settled_with_what_it_came_to() -> None:
    with Served(step_s=0.01) as world, world.listening() as address:
        body = {**BODY, "max_tokens": 100, "stream": True}
        with httpx.stream("POST", f"{address.url}/v1/completions", json=body) as response:
            next(response.iter_lines())
        wait_for(lambda: bool(world.policy.settled))
    ((tenant, used),) = world.policy.settled
    assert tenant == ""
    assert used.prompt_tokens > 0
    assert 0 < used.completion_tokens < 100


def test_cached_tokens_are_told_apart() -> None:
    with Served() as world, world.http() as http:
        for _ in range(2):
            http.post("/v1/completions", json=BODY)
    cached = [used.cached_tokens for _, used in world.policy.settled]
    assert cached[0] == 0 < cached[1]


def test_a_sink_gets_one_record_of_each_request() -> None:
    with Served(TWO_TENANTS) as world, world.http() as http:
        headers = {**key("sk-a"), "x-request-id": "mine"}
        http.post("/v1/completions", json={**BODY, "no_such_field": 1}, headers=headers)
        http.get("/v1/models", headers=key("sk-wrong"))
        http.get("/health")
    answered, stranger, probe = world.recorder.records
    assert (answered.principal.tenant, answered.request_id) == ("a", "mine")
    assert (answered.method, answered.handler, answered.status) == ("POST", "/v1/completions", 200)
    assert (answered.model, answered.completion_tokens) == (World.name, 3)
    assert [*answered.ignored.names] == ["no_such_field"]
    assert answered.seconds > 0
    assert (stranger.status, stranger.principal) == (401, ANONYMOUS)
    assert (probe.handler, probe.status, probe.principal) == ("/health", 200, ANONYMOUS)


def test_a_new_key_of_a_tenant_finds_what_its_old_key_stored(tmp_path: Path) -> None:
    batch_dir = str(tmp_path / "batches")
    before = ServerConfig(
        port=0, batch_dir=batch_dir, api_keys=("sk-old", "sk-b"), api_key_names=("a", "b")
    )
    with World(config=before) as world, world.http() as http:
        file_id = upload(http, of="sk-old")
    after = ServerConfig(
        port=0, batch_dir=batch_dir, api_keys=("sk-new", "sk-b"), api_key_names=("a", "b")
    )
    with World(config=after) as world, world.http() as http:
        assert found(http, file_id, by="sk-new")
        assert not found(http, file_id, by="sk-b")


def test_what_a_key_stored_before_it_had_a_name_is_its_tenants(tmp_path: Path) -> None:
    keys, batch_dir = ("sk-a", "sk-b"), str(tmp_path / "batches")
    with (
        World(config=ServerConfig(port=0, batch_dir=batch_dir, api_keys=keys)) as world,
        world.http() as http,
    ):
        file_id = upload(http, of="sk-a")
        line = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = http.post("/v1/batches", json=line, headers=key("sk-a")).json()
    named = ServerConfig(
        port=0,
        batch_dir=batch_dir,
        api_keys=(*keys, "sk-new"),
        api_key_names=("acme", "other", "acme"),
    )
    with World(config=named) as world, world.http() as http:
        assert found(http, file_id, by="sk-new")
        assert not found(http, file_id, by="sk-b")
        listed = http.get("/v1/batches", headers=key("sk-new")).json()["data"]
    assert [each["id"] for each in listed] == [batch["id"]]


@pytest.mark.parametrize(
    "names", [("a",), ("a", "b", "c"), ("a", ""), ("a", "b@c"), ("a", "x" * 65)]
)
def test_unfit_names_of_keys_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="api_key_names"):
        ServerConfig(api_keys=("sk-a", "sk-b"), api_key_names=names)
