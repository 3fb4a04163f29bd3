"""The page at /: who gets it, what stands around it, and its logic under node."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from jaxserve.server import ServerConfig
from jaxserve.server.playground.handler import FOLDER, PAGE, POLICY
from tests.server.world import World

KEY = "sk-right"
FILES = sorted(path.name for path in FOLDER.iterdir())
SCRIPTS = [name for name in FILES if name.endswith(".js")]
PATHS = ["/", *(f"/playground/{name}" for name in FILES if name != PAGE)]
MODULE = re.compile(r'^import .* from "\./(.*)";$', re.MULTILINE)
# The namespace of SVG is a name; browsers do not request it.
ELSEWHERE = re.compile(r"https?://(?!www\.w3\.org/2000/svg)")
MARKUP_FROM_TEXT = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser"
)
LOGIC = Path(__file__).parent / "playground" / "logic.test.mjs"
# The first that takes a file for a module by what it says.
NODE_VERSION = (20, 19)


class Page(HTMLParser):
    """Contents of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def values(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


@pytest.mark.parametrize("path", PATHS)
def test_every_file_is_served_under_the_policy(http: TestClient, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 200
    assert response.headers["content-security-policy"] == POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.content == (FOLDER / (path.rpartition("/")[2] or PAGE)).read_bytes()


def test_scripts_are_called_scripts(http: TestClient) -> None:
    assert http.get("/").headers["content-type"] == "text/html; charset=utf-8"
    script = http.get("/playground/app.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"


def test_the_policy_runs_nothing_inline() -> None:
    assert "unsafe" not in POLICY
    assert POLICY.startswith("default-src 'none'; script-src 'self'; style-src 'self'")


@pytest.mark.parametrize(
    "path",
    ["/playground", "/playground/", "/playground/index.html", "/playground/..%2fapp.py"],
)
def test_nothing_else_is_served(http: TestClient, path: str) -> None:
    assert http.get(path).status_code == 404


def test_the_page_takes_no_post(http: TestClient) -> None:
    assert http.post("/").status_code == 405


def test_with_keys_the_page_is_open_and_what_it_shows_is_not() -> None:
    with World(config=ServerConfig(port=0, api_keys=(KEY,))) as world, world.http() as http:
        assert {http.get(path).status_code for path in PATHS} == {200}
        for path in ("/metrics", "/v1/models", "/playground/other.js"):
            assert http.get(path).status_code == 401


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_an_operator_can_do_without(keys: tuple[str, ...]) -> None:
    config = ServerConfig(port=0, api_keys=keys, disable_playground=True)
    with World(config=config) as world, world.http() as http:
        assert {http.get(path).status_code for path in PATHS} == {401 if keys else 404}


@pytest.mark.parametrize("name", FILES)
def test_no_file_asks_for_anything_elsewhere(name: str) -> None:
    assert not ELSEWHERE.search((FOLDER / name).read_text("utf-8"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_makes_markup_of_text(name: str) -> None:
    assert not MARKUP_FROM_TEXT.search((FOLDER / name).read_text("utf-8"))


def test_the_page_has_no_inline_script_or_style() -> None:
    page = Page((FOLDER / PAGE).read_text("utf-8"))
    assert [attrs for tag, attrs in page.tags if tag == "script" and "src" not in attrs] == []
    assert [tag for tag, attrs in page.tags if tag == "style" or "style" in attrs] == []
    assert [name for _, attrs in page.tags for name in attrs if name.startswith("on")] == []


def test_every_file_is_used() -> None:
    page = Page((FOLDER / PAGE).read_text("utf-8"))
    links = [attrs["href"] for tag, attrs in page.tags if tag == "link"]
    named = {str(name).removeprefix("playground/") for name in [*page.values("src"), *links]}
    for script in SCRIPTS:
        named |= set(MODULE.findall((FOLDER / script).read_text("utf-8")))
    assert named == {name for name in FILES if name != PAGE}


def test_every_control_of_the_page_has_a_label() -> None:
    text = (FOLDER / PAGE).read_text("utf-8")
    page = Page(text)
    labelled = set(page.values("for"))
    within = "".join(re.findall(r"<label.*?</label>", text, re.DOTALL))
    controls = [attrs for tag, attrs in page.tags if tag in {"input", "select", "textarea"}]
    assert controls
    for attrs in controls:
        name = attrs.get("name") or attrs.get("id")
        assert attrs.get("id") in labelled or f'"{name}"' in within, name


def node() -> str:
    """Path of node. Skips the test without node."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    major, minor, _ = version.stdout.removeprefix("v").split(".")
    if (int(major), int(minor)) < NODE_VERSION:
        pytest.skip(f"node {version.stdout.strip()} is older than {NODE_VERSION}")
    return found


def test_the_logic_of_the_page() -> None:
    run = subprocess.run(
        [node(), "--test", str(LOGIC)], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stdout + run.stderr
