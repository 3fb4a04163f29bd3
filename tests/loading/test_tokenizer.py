"""The tokenizer wrapper is transformers' own, only faster, and never lets go of a bound."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer

from jaxserve.errors import CheckpointError, ContextLengthError
from jaxserve.tokenization.tokenizer import Tokenizer, load_backend
from tests.data import DATA, needs_data

NAMES = [
    "tokenizers/qwen2.5",
    "tokenizers/qwen3",
    "tokenizers/gpt-oss",
    "tokenizers/deepseek-r1",
    "tokenizers/mistral-v3",
    "tokenizers/phi-3",
    "checkpoints/stories260K-hf",
]
TEXTS = [
    "Hello there",
    " leading and trailing ",
    "wörld 你好 🙂🏽 é",
    "def f(x):\n\treturn x**2  # 'quoted'\n\n\n",
    "1234567890 3.14159",
    "",
]


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, Any]:
    folder = DATA / request.param
    if not folder.is_dir():
        pytest.skip(f"test data absent: {request.param}")
    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_encodes_as_transformers_does(
    pair: tuple[Tokenizer, Any], text: str, special: bool
) -> None:
    ours, theirs = pair
    expected = theirs.encode(text, add_special_tokens=special)
    assert [*ours.encode(text, add_special_tokens=special)] == expected


@pytest.mark.parametrize("text", TEXTS)
def test_decodes_what_it_encoded(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, _ = pair
    assert ours.decode(ours.encode(text, add_special_tokens=False)).strip() == text.strip()


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_join_to_the_text(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, _ = pair
    data = b"".join(map(ours.token_bytes, ours.encode(text, add_special_tokens=False)))
    # sentencepiece tokenizers write a space before a text
    assert data.decode() in {text, " " + text}


def test_every_id_has_bytes_and_no_other_has(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.vocab_size >= len(theirs.get_vocab())
    data = [ours.token_bytes(token_id) for token_id in theirs.get_vocab().values()]
    assert all(data)
    assert max(map(len, data)) <= ours.max_token_bytes
    assert ours.token_bytes(10**6) == b""
    assert ours.token_text(10**6) == ours.token_string(10**6) == ""


def test_end_ids_are_the_tokenizers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.eos_ids == (theirs.eos_token_id,)


@pytest.mark.parametrize("word", ["hello", " hello", "New York", "ü"])
def test_bad_words_are_vllms_sequences(pair: tuple[Tokenizer, Any], word: str) -> None:
    ours, theirs = pair
    expected: list[tuple[int, ...]] = []
    for prefix in ("", " "):
        ids = tuple(theirs.encode(prefix + word.lstrip(), add_special_tokens=False))
        if not expected or (ids[0] != expected[0][0] and len(ids) == len(expected[0])):
            expected.append(ids)
    assert ours.bad_word_ids([word]) == tuple(expected)


def test_a_text_that_cannot_fit_is_refused_before_encoding(pair: tuple[Tokenizer, Any]) -> None:
    ours, _ = pair
    limit = 100 * ours.max_token_bytes
    ours.check_num_chars(limit, max_model_len=100, param="prompt")
    with pytest.raises(ContextLengthError, match=f"100 tokens.*{limit} characters.*{limit + 1}"):
        ours.check_num_chars(limit + 1, max_model_len=100, param="prompt")


@needs_data
def test_encoding_lets_other_threads_run() -> None:
    tokenizer = Tokenizer.load(DATA / "tokenizers/qwen2.5")
    text = "The quick brown fox jumps over the lazy dog. " * 30_000
    worker = threading.Thread(target=tokenizer.encode, args=(text,))
    longest_s, now_s = 0.0, time.perf_counter()
    began_s = now_s
    worker.start()
    while worker.is_alive():
        before_s, now_s = now_s, time.perf_counter()
        longest_s = max(longest_s, now_s - before_s)
    total_s = now_s - began_s
    # Holding the GIL, this thread would have stood still for nearly all of the time.
    assert longest_s < 0.5 * total_s


def broken_folder(folder: Path, *, settings: dict[str, Any], **files: str) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(text, "utf-8")
    return folder


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "it has neither tokenizer.json nor tokenizer.model.*--tokenizer"),
        ({"tokenizer_json": "{"}, "tokenizer.json is not a tokenizer: it is truncated or corrupt"),
        ({"tokenizer_json": ""}, "tokenizer.json is not a tokenizer: it is empty"),
        ({"tokenizer_json": "{}"}, "tokenizer.json is not a tokenizer"),
        ({"tokenizer_json": "[1]"}, "tokenizer.json is not a tokenizer"),
        ({"tokenizer_json": "version https://git-lfs.github.com/spec/v1"}, ".*git lfs pull"),
        ({"tokenizer_config_json": "{"}, "tokenizer_config.json is not a JSON object"),
        ({"config_json": "{"}, "config.json is not a JSON object"),
        ({"special_tokens_map_json": "[]"}, "special_tokens_map.json is not a JSON object"),
        ({"tokenizer_model": "no model"}, "tokenizer.model is not a SentencePiece model"),
    ],
)
def test_a_broken_tokenizer_is_refused_by_the_file_at_fault(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    folder = broken_folder(
        tmp_path, settings={"tokenizer_class": "PreTrainedTokenizerFast"}, **files
    )
    with pytest.raises(CheckpointError, match=f"cannot load a tokenizer from .*: {said}"):
        Tokenizer.load(folder)


def test_a_broken_tokenizer_is_refused_alike_where_only_its_backend_is_wanted(
    tmp_path: Path,
) -> None:
    (tmp_path / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
        load_backend(tmp_path)


def test_threads_may_load_their_first_tokenizers_at_the_same_time() -> None:
    # In a process of its own: here transformers has been imported.
    script = """
import sys, threading, time
from jaxserve.tokenization.tokenizer import Tokenizer

def preload(errors):
    try:
        Tokenizer.preload()
    except ImportError as error:
        errors.append(error)

errors = []
threads = [threading.Thread(target=preload, args=(errors,)) for _ in range(2)]
threads[0].start()
while "transformers" not in sys.modules:
    time.sleep(0.001)
threads[1].start()
for thread in threads:
    thread.join()
sys.exit(str(errors) if errors else 0)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_folder_that_is_not_there_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        Tokenizer.load(tmp_path / "absent")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    folder = broken_folder(
        tmp_path,
        settings={"auto_map": {"AutoTokenizer": ["trap.Trap", "trap.Trap"]}},
        trap_py=f"import pathlib\npathlib.Path({str(trap)!r}).touch()\nclass Trap: pass\n",
    )
    with pytest.raises(CheckpointError, match="custom code"):
        Tokenizer.load(folder)
    assert not trap.exists()


@needs_data
def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path) -> None:
    source = DATA / "checkpoints/stories260K-hf"
    content = json.loads((source / "tokenizer.json").read_text("utf-8"))
    content["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    settings = (source / "tokenizer_config.json").read_text("utf-8")
    (tmp_path / "tokenizer_config.json").write_text(settings, "utf-8")
    assert Tokenizer.load(tmp_path).encode("Once upon a time") == Tokenizer.load(source).encode(
        "Once upon a time"
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer that puts texts and pairs of them between special tokens, as BERT's does."""
    words = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    folder = tmp_path_factory.mktemp("bert")
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return Tokenizer.load(folder)


def test_a_pair_is_one_prompt_whose_tokens_know_their_text(bert: Tokenizer) -> None:
    ids, parts = bert.encode_parts("a b", "c")
    assert ids == (1, 3, 4, 2, 5, 2)
    assert parts == (0, 0, 0, 0, 1, 1)


@pytest.mark.parametrize(
    ("texts", "max_tokens", "expected"),
    [
        (("a b c d",), 4, (1, 3, 4, 2)),
        (("a b c d",), 6, (1, 3, 4, 5, 6, 2)),
        (("a b", "c d"), 6, (1, 3, 4, 2, 5, 2)),
        (("a b", "c d"), 4, (1, 3, 4, 2, 2)),  # the first text is never cut
    ],
)
def test_the_last_text_is_cut_and_special_tokens_stay(
    bert: Tokenizer, texts: tuple[str, ...], max_tokens: int, expected: tuple[int, ...]
) -> None:
    assert bert.encode_parts(*texts, max_tokens=max_tokens)[0] == expected
    assert bert.encode_parts(*texts[:1])[0] == bert.encode(texts[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_backend_alone_knows_the_same_tokens(name: str) -> None:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"test data absent: {name}")
    alone, whole = load_backend(folder), Tokenizer.load(folder).backend
    assert alone.get_vocab(with_added_tokens=True) == whole.get_vocab(with_added_tokens=True)
    assert alone.get_added_tokens_decoder().keys() == whole.get_added_tokens_decoder().keys()


def test_a_token_that_only_the_settings_add_is_known_too(tmp_path: Path) -> None:
    Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(
        str(tmp_path / "tokenizer.json")
    )
    added = {"content": "<end>", "special": True, "lstrip": False, "rstrip": False}
    added |= {"normalized": False, "single_word": False}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"2": added}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_backend(tmp_path).token_to_id("<end>") == 2
