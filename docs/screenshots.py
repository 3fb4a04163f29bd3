"""Make the pictures of docs/playground.md, of a server that runs.

.venv/bin/jaxserve serve &
PYTHONPATH=. .venv/bin/python docs/screenshots.py http://127.0.0.1:8000/
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.server.browser import Browser, find_chromium

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 1280, 760
# Others who use the engine at the same time, so that there is something to see.
TRAFFIC = """void Array.from({length: 12}, async (_, index) => {
  for (let round = 0; round < 12; round++) {
    const words = 40 + ((index * 37 + round * 53) % 160);
    await fetch("v1/completions", {
      method: "POST",
      headers: {"content-type": "application/json"},
      body: JSON.stringify({prompt: "Once upon a time", max_tokens: words, ignore_eos: true}),
    });
    await new Promise((done) => setTimeout(done, (index * 131 + round * 71) % 600));
  }
})"""
TRAFFIC_S = 8.0
LEAST_LIKELY = """
[...document.querySelectorAll(".turn:last-child .token")]
  .sort((a, b) => a.style.getPropertyValue("--p") - b.style.getPropertyValue("--p"))[0].focus()
"""
ENDED = "document.querySelectorAll('.assistant:not(.growing) .facts').length == {}"


def ask(browser: Browser, text: str, *, nth: int) -> None:
    """Send a message and wait for its answer."""
    browser.fill("#prompt", text)
    browser.press("Enter")
    browser.wait(ENDED.format(nth))


def main(url: str) -> None:
    """Talk to the server in two colour schemes and on a phone, and keep what is seen."""
    program = find_chromium()
    assert program is not None, "no Chromium is installed"
    with tempfile.TemporaryDirectory() as folder, Browser(program, Path(folder)) as browser:
        for name, is_dark in (("light", False), ("dark", True)):
            browser.open(url, width=WIDTH, height=HEIGHT, is_dark=is_dark)
            browser.wait("document.querySelector('#model').value")
            browser.fill("[name=temperature]", "0")
            browser.click("[name=logprobs]")
            ask(browser, "What is the capital of France?", nth=1)
            ask(browser, "Tell me a short story.", nth=2)
            browser.run("[...document.querySelectorAll('[aria-pressed]')].at(-1).click()")
            browser.run(LEAST_LIKELY)
            browser.run(TRAFFIC)
            time.sleep(TRAFFIC_S)
            (FOLDER / f"playground-{name}.png").write_bytes(browser.screenshot())
        browser.open(url, width=390, height=760, is_dark=True)
        browser.wait("document.querySelector('#model').value")
        ask(browser, "What is jaxserve?", nth=1)
        (FOLDER / "playground-phone.png").write_bytes(browser.screenshot())


if __name__ == "__main__":
    main(sys.argv[1])
