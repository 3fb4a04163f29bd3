"""POST /tokenize and /detokenize, in vLLM's shapes."""

from starlette.testclient import TestClient

from jaxserve.server import ServerConfig
from tests.server.world import TEMPLATE, World


def test_a_text_comes_as_ids(http: TestClient, world: World) -> None:
    ids = [*world.tokenizer.encode("the quick fox")]
    answer = http.post("/tokenize", json={"prompt": "the quick fox"}).json()
    expected = {"count": len(ids), "max_model_len": 128, "tokens": ids, "token_strs": None}
    assert answer == expected


def test_token_strings_are_the_vocabularys(http: TestClient) -> None:
    body = {"prompt": "the fox", "return_token_strs": True}
    assert "".join(http.post("/tokenize", json=body).json()["token_strs"]) == "theĠfox"


def test_a_chat_comes_as_the_ids_of_its_prompt(http: TestClient, world: World) -> None:
    messages = [{"role": "user", "content": "hi"}]
    answer = http.post("/tokenize", json={"messages": messages, "model": "alias"}).json()
    prompt = "<|im_start|>user:hi<|im_end|><|im_start|>assistant:"
    assert answer["tokens"] == [*world.tokenizer.encode(prompt)]


def test_a_chats_ids_are_the_prompt_of_its_completion(http: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    count = http.post("/tokenize", json=body).json()["count"]
    usage = http.post("/v1/chat/completions", json={**body, "max_tokens": 1}).json()["usage"]
    assert usage["prompt_tokens"] == count


def test_ids_come_back_as_their_text(http: TestClient, world: World) -> None:
    text = "<|im_start|>the quick ü 🙂"
    ids = [*world.tokenizer.encode(text)]
    assert http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": text}
    assert http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_settings_of_the_tokenizer_are_served_where_asked_for() -> None:
    with World(config=ServerConfig(port=0, tokenizer_info=True)) as world, world.http() as http:
        answer = http.get("/tokenizer_info")
        assert "/tokenizer_info" in http.get("/openapi.json").json()["paths"]
    assert answer.status_code == 200
    settings = answer.json()
    assert settings["chat_template"] == TEMPLATE
    assert settings["tokenizer_class"] == type(world.tokenizer.pretrained).__name__
    assert settings["eos_token"] == "<|end|>"
    assert "<|im_start|>" in settings["added_tokens_decoder"].values()
    # A client learns nothing of the server's folders.
    assert not [name for name in settings if name.endswith("_file") or name == "name_or_path"]


def test_settings_of_the_tokenizer_are_not_served_by_default(http: TestClient) -> None:
    assert http.get("/tokenizer_info").status_code == 404
    assert "/tokenizer_info" not in http.get("/openapi.json").json()["paths"]
