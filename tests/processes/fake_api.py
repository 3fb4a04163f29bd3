"""An API process with a tokenizer of words, so that tests need not wait for transformers.

It fails while the tokenizer's file exists.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

from jaxserve.errors import CheckpointError
from jaxserve.processes.api import main
from jaxserve.processes.messages import Hello
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.engine.world import word_tokenizer


def load(hello: Hello) -> Tokenizer:
    assert "transformers" not in sys.modules, "tests wait for this start"
    if hello.tokenizer and Path(hello.tokenizer).exists():
        raise CheckpointError("the tokenizer is broken")
    pretrained = SimpleNamespace(
        backend_tokenizer=word_tokenizer(), eos_token_id=None, chat_template=None
    )
    return Tokenizer(pretrained)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), load, preload=lambda: None))
