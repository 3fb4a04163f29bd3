"""A tokenizer.model alone gives the tokens that SentencePiece itself gives."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from jaxserve.errors import CheckpointError
from jaxserve.tokenization.end_tokens import read_end_ids
from jaxserve.tokenization.tokenizer import Tokenizer, load_backend
from tests.data import DATA

PUBLISHED = ["checkpoints/stories260K-hf", "checkpoints/babyllama-char105-hf"]
PUBLISHED += ["tokenizers/mistral-v3"]
TEXTS = [
    "Once upon a time",
    "  two  spaces\n\nand lines",
    "wörld 你好 🙂🏽 é",
    " leading",
    "trailing  ",
    "a\tb",
    "def f(x):\n    return x**2  # 1234",
    "",
]
CORPUS = ["the quick brown fox jumps over the lazy dog", "a dog is a dog", "lazy foxes jump"] * 9


def alone(folder: Path, model: Path | bytes, **settings: Any) -> Path:
    """Write a folder that has a model and its settings, and no tokenizer.json."""
    if isinstance(model, Path):
        shutil.copy(model, folder / "tokenizer.model")
    else:
        (folder / "tokenizer.model").write_bytes(model)
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


def trained(**options: Any) -> bytes:
    """Train a model on a few sentences."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=written, minloglevel=5, **options
    )
    return written.getvalue()


@pytest.mark.parametrize("name", PUBLISHED)
def test_texts_become_the_tokens_of_sentencepiece(tmp_path: Path, name: str) -> None:
    source = DATA / name / "tokenizer.model"
    if not source.is_file():
        pytest.skip(f"test data absent: {name}")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(source))
    folder = alone(tmp_path, source)
    tokenizer = Tokenizer.load(folder)
    for text in TEXTS:
        assert [*tokenizer.encode(text, add_special_tokens=False)] == oracle.encode(text)
        assert tokenizer.encode(text) == (oracle.bos_id(), *oracle.encode(text))
    assert tokenizer.eos_ids == read_end_ids(folder) == (oracle.eos_id(),)
    assert load_backend(folder).get_vocab_size() == oracle.get_piece_size()


@pytest.mark.parametrize("name", [PUBLISHED[0], PUBLISHED[2]])
def test_the_published_tokenizer_json_is_the_same_tokenizer(tmp_path: Path, name: str) -> None:
    source = DATA / name
    if not source.is_dir():
        pytest.skip(f"test data absent: {name}")
    settings = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    found = Tokenizer.load(alone(tmp_path, source / "tokenizer.model", **settings))
    expected = Tokenizer.load(source)
    for text in [*TEXTS, "<s> [INST] hi [/INST]</s> <unk>"]:
        ids = expected.encode(text)
        assert found.encode(text) == ids
        assert found.decode(ids) == expected.decode(ids)
        assert [*map(found.token_bytes, ids)] == [*map(expected.token_bytes, ids)]
    assert found.special_ids == expected.special_ids
    assert found.chat_template == expected.chat_template


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
        {"byte_fallback": True, "user_defined_symbols": ["<tool>"]},
    ],
)
def test_what_a_model_says_of_itself_is_followed(
    tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    vocab_size = 320 if options.get("byte_fallback") else 48
    model = trained(model_type=model_type, vocab_size=vocab_size, hard_vocab_limit=False, **options)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = Tokenizer.load(alone(tmp_path, model, add_bos_token=False, add_eos_token=True))
    for text in ["the lazy dog", " a  dog ", "foxes \uff21\uff22 jump", "a dog<tool>"]:
        if "<tool>" in text and "user_defined_symbols" not in options:
            continue
        assert [*tokenizer.encode(text, add_special_tokens=False)] == oracle.encode(text), text
    assert tokenizer.encode("dog")[-1] == oracle.eos_id()
    assert tokenizer.encode("dog")[0] != oracle.bos_id()


def test_settings_that_do_not_fit_are_blamed_and_not_the_model(tmp_path: Path) -> None:
    model = trained(vocab_size=300, model_type="bpe", hard_vocab_limit=False)
    with pytest.raises(CheckpointError, match="does not match the settings"):
        Tokenizer.load(alone(tmp_path, model, eos_token=5))
