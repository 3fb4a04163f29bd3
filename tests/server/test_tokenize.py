"""POST /tokenize and /detokenize, in vLLM's shapes."""

from starlette.testclient import TestClient

from tests.server.world import World


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
