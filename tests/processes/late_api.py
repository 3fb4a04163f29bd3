"""The API process of tests, whose tokenizer loads as long as a file `late` is there."""

import os
import sys
import time
from pathlib import Path

from jaxserve.processes.api import main
from jaxserve.processes.messages import Hello
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.processes import fake_api


def load(hello: Hello) -> Tokenizer:
    while (Path(os.environ["TMPDIR"]).parent / "late").exists():
        time.sleep(0.01)
    return fake_api.load(hello)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), load, preload=lambda: None))
