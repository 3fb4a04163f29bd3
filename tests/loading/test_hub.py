"""Hub names against a small server that speaks the hub's protocol, in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"template",
    "pytorch_model.bin": b"pickle",
    "picture.png": b"picture",
}


@dataclass
class Hub:
    """A stand-in hub that has the model `there/model`, and remembers which files were fetched."""

    cache: Path
    fetched: list[str] = field(default_factory=list)
    port: int = 0

    def open(self, name: str, *, revision: str | None = None, is_offline: bool = False) -> str:
        """Open a checkpoint in a fresh process; return its folder, or the error's message."""
        script = (
            "import sys\n"
            "from jaxserve.errors import CheckpointError\n"
            "from jaxserve.loading.checkpoint import Checkpoint\n"
            "try:\n"
            "    found = Checkpoint.open(sys.argv[1], revision=sys.argv[2] or None,"
            " download_dir=sys.argv[3])\n"
            "    found.tensors if sys.argv[1] == 'there/pickled' else print(found.folder)\n"
            "except CheckpointError as error: print(error)\n"
        )
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "HF_HUB_OFFLINE": "1" if is_offline else "0",
            "HF_HOME": str(self.cache),
            "HF_HUB_DISABLE_XET": "1",
        }
        run = subprocess.run(
            [sys.executable, "-c", script, name, revision or "", str(self.cache)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout.strip()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    state = Hub(cache=tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0].strip("/").split("/")
            match path:
                case ["api", "models", "there", "model", "revision", "main"]:
                    body = {"id": "there/model", "sha": COMMIT}
                    self.reply(json.dumps(body).encode(), with_body=with_body)
                case ["api", "models", "there", "model", "tree", _]:
                    tree = [
                        {"type": "file", "path": name, "size": len(content), "oid": etag(content)}
                        for name, content in FILES.items()
                    ]
                    self.reply(json.dumps(tree).encode(), with_body=with_body)
                case ["api", "models", "there", "pickled", "revision", "main"]:
                    body = {"id": "there/pickled", "sha": COMMIT}
                    self.reply(json.dumps(body).encode(), with_body=with_body)
                case ["api", "models", "there", "pickled", "tree", _]:
                    tree = [
                        {"type": "file", "path": name, "size": 1, "oid": etag(name.encode())}
                        for name in ("config.json", "pytorch_model.bin")
                    ]
                    self.reply(json.dumps(tree).encode(), with_body=with_body)
                case ["there", ("model" | "pickled"), "resolve", _, name] if name in FILES:
                    if with_body:
                        state.fetched.append(name)
                    self.reply(FILES[name], with_body=with_body)
                case ["api", "models", "there", "model", *_]:
                    self.refuse("RevisionNotFound")
                case ["api", "models", "there", "gated", *_]:
                    self.refuse("GatedRepo", status=403)
                case _:
                    self.refuse("RepoNotFound")

        def reply(self, body: bytes, *, with_body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{etag(body)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def refuse(self, code: str, *, status: int = 404) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            del args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def test_a_hub_name_is_downloaded_once_without_what_is_not_wanted(hub: Hub) -> None:
    folder = Path(hub.open("there/model"))
    wanted = set(FILES) - {"pytorch_model.bin", "picture.png"}
    assert {file.name for file in folder.iterdir()} == wanted
    assert (folder / "config.json").read_bytes() == FILES["config.json"]
    assert hub.open("there/model") == str(folder)
    assert sorted(hub.fetched) == sorted(wanted)


def test_offline_uses_the_cache_and_says_when_it_cannot(hub: Hub) -> None:
    missing = hub.open("there/model", is_offline=True)
    assert "there/model is not in the cache" in missing
    folder = hub.open("there/model")
    assert hub.open("there/model", is_offline=True) == folder


def test_a_name_the_hub_does_not_have_is_refused(hub: Hub) -> None:
    assert hub.open("there/nothing") == (
        "there is no folder there/nothing, and the hub has no such public model"
    )


def test_a_revision_the_hub_does_not_have_is_refused(hub: Hub) -> None:
    assert hub.open("there/model", revision="v9") == "the hub has no there/model at revision v9"


def test_a_gated_model_says_what_to_do(hub: Hub) -> None:
    assert "there/gated is gated: accept its terms" in hub.open("there/gated")


def test_a_hub_that_does_not_answer_is_told_from_a_wrong_name(hub: Hub) -> None:
    hub.port = 9  # the discard port: nothing listens
    assert "the hub cannot be reached" in hub.open("there/model")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_is_never_taken_for_a_hub_name(hub: Hub, name: str) -> None:
    assert hub.open(name) == f"there is no folder {name}"


def test_an_impossible_name_is_refused(hub: Hub) -> None:
    assert hub.open("no such name").endswith("is neither a folder nor a valid hub name")


def test_a_repository_of_pickled_weights_says_so_although_none_is_downloaded(hub: Hub) -> None:
    said = hub.open("there/pickled")
    assert "holds only pickled weights (pytorch_model.bin), which can run code" in said
    assert "pytorch_model.bin" not in hub.fetched
