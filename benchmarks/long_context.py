"""Run models beyond their trained context, for measurements that ignore the text."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def with_context(model: Path, num_tokens: int) -> Iterator[Path]:
    """Yield a folder with the model's own files, whose config allows that many tokens at least.

    The numbers of tokens, bytes and FLOP are those of a model that was trained for it.
    """
    config = json.loads((model / "config.json").read_text("utf-8"))
    with TemporaryDirectory() as folder:
        # By the model's own name, which stands in results.
        target = Path(folder) / model.resolve().name
        target.mkdir()
        for path in model.resolve().iterdir():
            if path.name != "config.json":
                (target / path.name).symlink_to(path)
        limit = max(num_tokens, config["max_position_embeddings"])
        fields = config | {"max_position_embeddings": limit}
        (target / "config.json").write_text(json.dumps(fields), encoding="utf-8")
        yield target
