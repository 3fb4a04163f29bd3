"""The page at / in a headless Chromium, against the server's application. Skipped without one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from jaxserve.server import ServerConfig
from jaxserve.server.models import ModelRouter
from tests.server.browser import Browser, find_chromium
from tests.server.world import World

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

KEY = "sk-right"
ANSWER = "#log .assistant"
HAS_ANSWERED = f"document.querySelector('{ANSWER}:not(.growing) .facts')"
READY = "document.querySelector('#model').value || !document.querySelector('#key-form').hidden"
CONTROLS = {"button", "textbox", "combobox", "checkbox", "spinbutton"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@contextmanager
def page(browser: Browser, world: World, **view: Any) -> Iterator[None]:
    """The page, opened and ready; nothing on it may go wrong unseen."""
    with world, world.listening() as address:
        browser.complaints.clear()
        browser.open(address.url, **view)
        browser.wait(READY)
        try:
            yield
            assert browser.complaints == []
        finally:
            browser.leave()


def say(browser: Browser, text: str) -> None:
    browser.fill("#prompt", text)
    browser.press("Enter")


def delta(index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields}]}


def end(reason: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


class Scripted:
    """Answers to chats that are known beforehand, in place of the model's; keeps what was asked."""

    def __init__(self, world: World, *answers: list[dict[str, Any]]) -> None:
        self.asked: list[dict[str, Any]] = []
        self._answers = list(answers)
        world.app.router.routes.insert(
            0, Route("/v1/chat/completions", self._answer, methods=["POST"])
        )

    async def _answer(self, http: Request) -> StreamingResponse:
        self.asked.append(await http.json())
        events = [f"data: {json.dumps(chunk)}\n\n" for chunk in self._answers.pop(0)]
        return StreamingResponse(
            iter([*events, "data: [DONE]\n\n"]), media_type="text/event-stream"
        )


def test_an_answer_is_the_one_that_the_settings_ask_for(browser: Browser) -> None:
    world = World()
    body = {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "once upon"},
        ],
        "temperature": 0.5,
        "max_tokens": 20,
        "seed": 7,
    }
    with page(browser, world):
        with world.http() as http:
            answer = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
        browser.fill("[name=system]", "be brief")
        for name in ("temperature", "max_tokens", "seed"):
            browser.fill(f"[name={name}]", str(body[name]))
        say(browser, "once upon")
        browser.wait(HAS_ANSWERED)
        # White space at line ends is not shown; markup of a random text may be taken for some.
        shown = browser.run(f"document.querySelector('{ANSWER} .text').textContent")
        assert letters(shown) == letters(answer["content"])
        assert "tokens" in browser.text(f"{ANSWER} .facts")


def letters(text: str) -> str:
    return "".join(each for each in text if each.isalnum())


def test_what_a_model_says_is_never_markup(browser: Browser) -> None:
    hostile = (
        "<img src=x onerror=alert(1)> **<b>bold</b>** `<script>alert(2)</script>`"
        " [a](javascript:alert(3))"
    )
    world = World()
    Scripted(world, [delta(content=hostile), end("stop")])
    with page(browser, world):
        say(browser, "hello")
        browser.wait(HAS_ANSWERED)
        assert browser.run("document.querySelectorAll('.turn :is(img, script, b, a)').length") == 0
        assert "<img src=x onerror=alert(1)>" in browser.text(f"{ANSWER} .text")
        assert browser.text(f"{ANSWER} .text strong") == "<b>bold</b>"


def test_reasoning_is_shown_apart_and_folded_at_the_end(browser: Browser) -> None:
    world = World()
    Scripted(
        world,
        [delta(reasoning="Hm.", reasoning_content="Hm."), delta(content="Yes."), end("stop")],
    )
    with page(browser, world):
        say(browser, "hello")
        browser.wait(HAS_ANSWERED)
        assert browser.text(f"{ANSWER} .text") == "Yes."
        thinking = f"document.querySelector('{ANSWER} .reasoning')"
        assert browser.run(f"{thinking}.open") is False
        assert browser.run(f"{thinking}.textContent") == "reasoningHm."


def test_a_tool_is_called_and_its_result_goes_back(browser: Browser) -> None:
    call = {"index": 0, "id": "call-1", "type": "function"}
    world = World()
    scripted = Scripted(
        world,
        [
            delta(tool_calls=[call | {"function": {"name": "get_weather", "arguments": ""}}]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city":"Paris"}'}}]),
            end("tool_calls"),
        ],
        [delta(content="It rains."), end("stop")],
    )
    with page(browser, world):
        browser.run("document.querySelector('#settings details').open = true")
        browser.click("#example-tools")
        say(browser, "Weather in Paris?")
        browser.wait("document.querySelector('.results textarea')")
        assert "get_weather" in browser.text(f"{ANSWER} .call")
        browser.fill(".results textarea", "rain")
        browser.click(".results button")
        browser.wait("document.querySelectorAll('#log .assistant .facts').length == 2")
        assert scripted.asked[0]["tools"][0]["function"]["name"] == "get_weather"
        function = {"name": "get_weather", "arguments": '{"city":"Paris"}'}
        assert scripted.asked[1]["messages"][1:] == [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "call-1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "call-1", "content": "rain"},
        ]


def test_an_answer_has_the_form_of_the_schema(browser: Browser) -> None:
    world = World()
    with page(browser, world):
        browser.run("document.querySelector('#schema').closest('details').open = true")
        browser.click("#example-schema")
        say(browser, "once upon")
        browser.wait(HAS_ANSWERED)
        shown = browser.run(f"document.querySelector('{ANSWER} .text').textContent")
        assert shown.lstrip().startswith("{")


def test_what_is_wrong_with_a_schema_stands_beside_it(browser: Browser) -> None:
    world = World()
    with page(browser, world):
        browser.run("document.querySelector('#schema').closest('details').open = true")
        browser.fill("#schema", "{")
        say(browser, "once upon")
        assert "the schema: no JSON" in browser.text("#schema-problem")
        assert browser.run("document.activeElement.id") == "schema"
        assert browser.run("document.querySelector('#log .turn')") is None
        browser.fill("#schema", '{"not": {}}')
        assert browser.text("#schema-problem") == ""
        say(browser, "once upon")
        browser.wait("document.querySelector('#log .error')")
        assert "keywords that are not supported: not" in browser.text("#schema-problem")
        assert browser.run("document.querySelector('#schema').ariaInvalid") == "true"
        # Chromium itself logs an answer of 400.
        browser.complaints.clear()


def test_what_lies_under_the_settings_takes_no_keys(browser: Browser) -> None:
    world = World()
    with page(browser, world, width=390, height=700):
        browser.click("#side-toggle")
        assert browser.run("document.querySelector('main').inert") is True
        browser.run("document.querySelector('[name=seed]').focus()")
        browser.press("Escape")
        assert browser.run("document.querySelector('main').inert") is False
        assert browser.run("document.activeElement.id") == "side-toggle"


def test_tokens_are_walked_by_keys_and_tell_their_alternatives(browser: Browser) -> None:
    world = World()
    with page(browser, world):
        browser.click("[name=logprobs]")
        browser.fill("[name=max_tokens]", "5")
        say(browser, "once upon")
        browser.wait(HAS_ANSWERED)
        browser.click(".actions [aria-pressed]")
        assert browser.run("document.querySelectorAll('.token').length") == 5
        browser.run("document.querySelector('.token').focus()")
        browser.press("ArrowRight")
        assert browser.run("document.activeElement.dataset.index") == "1"
        assert browser.run("document.querySelectorAll('.alternative').length") >= 5
        browser.press("End")
        assert browser.run("document.activeElement.dataset.index") == "4"


def test_escape_stops_an_answer_and_the_engine_with_it(browser: Browser) -> None:
    world = World(step_s=0.05)
    with page(browser, world):
        say(browser, "once upon")
        browser.wait(f"document.querySelector('{ANSWER} .text')?.textContent")
        browser.press("Escape")
        browser.wait(HAS_ANSWERED)
        assert "stopped" in browser.text(f"{ANSWER} .facts")
        world.wait_until_idle()


def test_the_engine_is_seen_at_work(browser: Browser) -> None:
    world = World(step_s=0.05)
    world.metrics.set_cache_config({"num_gpu_blocks": 257}, model_name=world.name)
    with page(browser, world):
        browser.wait("document.querySelector('#engine-state').dataset.state == 'live'")
        say(browser, "once upon")
        figure = "document.querySelector('#engine-{} dd').textContent"
        browser.wait(f"{figure.format('running')} == '1'")
        browser.wait(f"parseFloat({figure.format('generated')}) > 5")
        browser.wait(f"{figure.format('step')}.endsWith(' ms')")
        browser.wait(f"/^[1-9]\\d* \\/ 256$/.test({figure.format('pages')})")
        browser.press("Escape")
        browser.wait(f"{figure.format('running')} == '0'")
        world.wait_until_idle()
        assert browser.text("#engine-running dd") == "0"


def test_a_refused_request_is_told_in_the_servers_words(browser: Browser) -> None:
    world = World()
    with page(browser, world):
        browser.fill("[name=max_tokens]", "1000000")
        say(browser, "once upon")
        browser.wait("document.querySelector('#log .error')")
        assert "maximum context length" in browser.text("#log .error")
        # Chromium itself logs an answer of 400.
        browser.complaints.clear()


def test_a_key_is_asked_for_and_opens(browser: Browser) -> None:
    world = World(config=ServerConfig(port=0, api_keys=(KEY,)))
    with page(browser, world):
        assert "API key" in browser.text("#key-reason")
        browser.fill("#key", KEY)
        browser.press("Enter")
        browser.wait(f"document.querySelector('#model').value == {json.dumps(world.name)}")
        browser.wait("document.querySelector('#engine-state').dataset.state == 'live'")
        assert browser.run("document.querySelector('#key-form').hidden") is True
        browser.complaints.clear()


@pytest.mark.parametrize("width", [320, 390, 700, 1000])
def test_nothing_is_wider_than_the_screen(browser: Browser, width: int) -> None:
    world = World()
    Scripted(world, [delta(content="```\n" + "x" * 500 + "\n```\n" + "y" * 500), end("stop")])
    with page(browser, world, width=width, height=700):
        say(browser, "z" * 300)
        browser.wait(HAS_ANSWERED)
        overflow = "document.documentElement.scrollWidth - innerWidth"
        assert browser.run(overflow) <= 0
        if width < 960:
            browser.click("#side-toggle")
            assert browser.run("document.querySelector('#engine-pages').offsetHeight") > 0
            assert browser.run(overflow) <= 0


def test_every_control_has_a_name_for_screen_readers(browser: Browser) -> None:
    world = World()
    with page(browser, world):
        browser.run("document.querySelector('#settings details').open = true")
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        controls = [
            node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS
        ]
        assert len(controls) > 15
        assert [node for node in controls if not node["name"]["value"]] == []


@pytest.mark.parametrize("is_dark", [False, True])
def test_text_stands_out_from_its_ground(browser: Browser, is_dark: bool) -> None:
    world = World()
    with page(browser, world, is_dark=is_dark):
        for selector in ("body", ".note", "h1", "#welcome button", "dt", "legend span", ".problem"):
            assert browser.run(CONTRAST % json.dumps(selector)) >= 4.5, selector


# The ratio of the Web Content Accessibility Guidelines.
CONTRAST = """(() => {
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map((part) => part / 255).map(
      (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ink = luminance(getComputedStyle(document.querySelector(%s)).color);
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
})()"""


def test_a_page_that_waits_for_its_model_begins_by_itself(browser: Browser, tmp_path: Path) -> None:
    world = World()
    world.app.state.server.router = ModelRouter()
    with world, world.listening() as address:
        browser.open(address.url)
        browser.wait("document.querySelector('#model-note').textContent")
        assert browser.run("document.querySelector('#model').value") == ""
        world.app.state.server.router.add(0, world.model)
        browser.wait(f"document.querySelector('#model').value == {json.dumps(world.name)}")
        say(browser, "once upon")
        browser.wait(HAS_ANSWERED)
        assert browser.text(f"{ANSWER} .text")
        browser.leave()
