"""Text from tokens: the same as decoding at once, whatever the tokens, and cut at stop strings."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from jaxserve.frontend.detokenizer import (
    MAX_PENDING_TOKENS,
    REPLACEMENT,
    Detokenizer,
    StopStrings,
    TokenDecoder,
)
from tests.data import DATA
from tests.engine.world import request

REAL = sorted(
    str(path.parent.relative_to(DATA))
    for folder in ("tokenizers", "checkpoints")
    for path in (DATA / folder).glob("*/tokenizer.json")
)
TEXTS = [
    "Hello, world!",
    "  two spaces, then a\nnewline\tand a tab  ",
    "naïve café — “quotes” …",
    "日本語と中文和한국어",
    "👩‍👩‍👧‍👦 family, 🇨🇭 flag, e\u0301 combining",
    "def f(x):\n    return x ** 2  # code\n",
    "a" * 50,
    "\U0001f389" * 10,
    "<0x41> is no byte",
]


def byte_tokenizer() -> Tokenizer:
    """One token per byte by fallback, as sentencepiece models have; ids 0..255 are the bytes."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab |= {"▁a": 256, "b": 257, "▁": 258, "<s>": 259}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def pieces(
    tokenizer: Tokenizer,
    token_ids: list[int],
    *,
    prompt_ids: tuple[int, ...] = (),
    skip_special_tokens: bool = True,
) -> list[str]:
    decoder = TokenDecoder(
        tokenizer, prompt_ids=prompt_ids, skip_special_tokens=skip_special_tokens
    )
    return [*map(decoder.push, token_ids), decoder.flush()]


@pytest.mark.parametrize("folder", REAL or [pytest.param("", marks=pytest.mark.skip("no data"))])
class TestRealTokenizers:
    """The tokenizers of well-known models, where they are at hand."""

    @pytest.fixture
    def tokenizer(self, folder: str) -> Tokenizer:
        return Tokenizer.from_file(str(DATA / folder / "tokenizer.json"))

    def test_the_pieces_are_the_text_decoded_at_once(self, tokenizer: Tokenizer) -> None:
        for text in TEXTS:
            token_ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert "".join(pieces(tokenizer, token_ids)) == tokenizer.decode(token_ids)

    def test_the_answer_continues_the_prompt_wherever_the_border(
        self, tokenizer: Tokenizer
    ) -> None:
        for text in TEXTS:
            token_ids = tokenizer.encode(text, add_special_tokens=False).ids
            whole = tokenizer.decode(token_ids)
            for border in range(1, len(token_ids)):
                before = tokenizer.decode(token_ids[:border])
                out = pieces(tokenizer, token_ids[border:], prompt_ids=tuple(token_ids[:border]))
                if not before.endswith(REPLACEMENT):
                    assert "".join(out) == whole[len(before) :]
                else:
                    # The border splits a character: it belongs to the answer.
                    assert whole.endswith("".join(out))
                    assert REPLACEMENT not in "".join(out)

    def test_nothing_given_out_is_taken_back(self, tokenizer: Tokenizer) -> None:
        token_ids = tokenizer.encode(" ".join(TEXTS), add_special_tokens=False).ids
        whole, so_far = tokenizer.decode(token_ids), ""
        for piece in pieces(tokenizer, token_ids):
            so_far += piece
            assert whole.startswith(so_far)

    def test_random_tokens_come_out_and_in_linear_time(self, tokenizer: Tokenizer) -> None:
        size = tokenizer.get_vocab_size()
        token_ids = [(number * 7919 + 13) % size for number in range(500)]
        decoder = TokenDecoder(tokenizer, prompt_ids=(), skip_special_tokens=True)
        for token_id in token_ids:
            decoder.push(token_id)
            assert len(decoder._pending) < MAX_PENDING_TOKENS
        decoder.flush()


@pytest.mark.parametrize("name", ["stories260K-hf", "babyllama-char105-hf"])
def test_real_continuations_match(name: str) -> None:
    folder = Path(DATA / "checkpoints" / name)
    if not (folder / "golden.json").is_file():
        pytest.skip(f"test data absent: ../shared/data/checkpoints/{name}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for case in json.loads((folder / "golden.json").read_text())["cases"]:
        prompt_ids, token_ids = case["prompt_ids"], case["generated_ids"]
        whole = tokenizer.decode(prompt_ids + token_ids)
        out = "".join(pieces(tokenizer, token_ids, prompt_ids=tuple(prompt_ids)))
        assert whole == tokenizer.decode(prompt_ids) + out


@given(st.lists(st.integers(0, 259), max_size=60), st.lists(st.integers(0, 259), max_size=10))
@example([128], [0, 194])
def test_valid_text_comes_out_exactly_whatever_the_prompt(
    token_ids: list[int], prompt_ids: list[int]
) -> None:
    tokenizer = byte_tokenizer()
    whole = tokenizer.decode(prompt_ids + token_ids)
    out = "".join(pieces(tokenizer, token_ids, prompt_ids=tuple(prompt_ids)))
    # A character that the prompt only begins comes out whole. The text before it must be
    # decoded without it: an incomplete character spoils the decoding of all bytes next to it.
    starts = (prompt_ids[:stop] for stop in range(len(prompt_ids), -1, -1))
    before = next(text for text in map(tokenizer.decode, starts) if REPLACEMENT not in text)
    if REPLACEMENT not in whole and before:
        assert before + out == whole


@given(st.text(max_size=30))
def test_any_string_survives_as_bytes(text: str) -> None:
    tokenizer = byte_tokenizer()
    token_ids = list(text.encode())
    if REPLACEMENT not in text:
        assert "".join(pieces(tokenizer, token_ids)) == tokenizer.decode(token_ids)


def test_the_first_token_keeps_its_space_after_a_prompt() -> None:
    tokenizer = byte_tokenizer()
    assert pieces(tokenizer, [256], prompt_ids=(257,))[0] == " a"
    assert pieces(tokenizer, [256])[0] == "a"


def test_special_tokens_are_shown_only_on_demand() -> None:
    tokenizer = byte_tokenizer()
    assert "".join(pieces(tokenizer, [257, 259, 257])) == "bb"
    assert "".join(pieces(tokenizer, [257, 259, 257], skip_special_tokens=False)) == "b<s>b"


def test_a_character_is_held_until_it_is_complete() -> None:
    assert pieces(byte_tokenizer(), list("é€".encode())) == ["", "é", "", "", "€", ""]


@pytest.mark.parametrize("char", ["é", "€", "🎉"])
def test_a_character_that_is_cut_has_no_text_and_its_tokens_go_on(char: str) -> None:
    tokenizer, (*begun, last) = byte_tokenizer(), char.encode()
    for stop in range(1, len(begun) + 1):
        assert "".join(pieces(tokenizer, [257, *begun[:stop]])) == "b"
        rest = [*begun[stop:], last]
        assert "".join(pieces(tokenizer, rest, prompt_ids=(257, *begun[:stop]))) == char


@pytest.mark.parametrize("folder", REAL or [pytest.param("", marks=pytest.mark.skip("no data"))])
def test_the_text_of_a_cut_answer_is_the_beginning_of_it(folder: str) -> None:
    tokenizer = Tokenizer.from_file(str(DATA / folder / "tokenizer.json"))
    for text in TEXTS:
        token_ids = tokenizer.encode(text, add_special_tokens=False).ids
        whole = "".join(pieces(tokenizer, token_ids))
        for stop in range(len(token_ids)):
            assert whole.startswith("".join(pieces(tokenizer, token_ids[:stop])))


def test_the_character_that_stands_for_bytes_that_are_none_may_end_a_text() -> None:
    assert "".join(pieces(byte_tokenizer(), [257, *REPLACEMENT.encode()])) == f"b{REPLACEMENT}"


def test_a_character_that_the_prompt_begins_belongs_to_the_answer() -> None:
    assert pieces(byte_tokenizer(), [0xA9], prompt_ids=(257, 0xC3)) == ["é", ""]


def test_a_character_that_nobody_completes_stays_the_prompts() -> None:
    assert pieces(byte_tokenizer(), [257], prompt_ids=(257, 0xC3)) == ["b", ""]


def test_text_goes_on_after_a_byte_that_spoils_what_was_final() -> None:
    # Appended to the bytes of "é", 0xFF makes them all invalid: the library calls it a bad prefix.
    assert "".join(pieces(byte_tokenizer(), [0xC3, 0xA9, 0xFF, 257, 257])) == f"é{REPLACEMENT}bb"


def test_bytes_that_are_no_text_come_out_after_a_while() -> None:
    out = pieces(byte_tokenizer(), [257, *[0xFF] * 20, 256])
    assert out[MAX_PENDING_TOKENS] == REPLACEMENT * MAX_PENDING_TOKENS
    assert "".join(out) == "b" + REPLACEMENT * 20 + " a"


def test_bytes_that_are_no_text_cost_no_more_than_text() -> None:
    def seconds(token_ids: list[int]) -> float:
        tokenizer = byte_tokenizer()
        start = time.thread_time()
        pieces(tokenizer, token_ids)
        return time.thread_time() - start

    # Quadratic decoding is 60 times slower here.
    found, text = (min(seconds([token] * 4000) for _ in range(3)) for token in (0xFF, 257))
    assert found < 15 * text


# Stop strings


def stopped(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: the match that ends first, of those the longest; text up to its end."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[:end], max(found, key=len)
    return text, None


def feed(parts: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher, out = StopStrings(stops), ""
    for part in parts:
        text, stop = matcher.push(part, may_stop=True)
        out += text
        if stop is not None:
            return out, stop
    return out + matcher.flush(), None


ab = st.text("ab", min_size=1, max_size=5)


@settings(max_examples=500)
@given(st.lists(st.text("abc", max_size=6), max_size=12), st.lists(ab, min_size=1, max_size=4))
def test_stop_strings_are_found_whatever_the_pieces(parts: list[str], stops: list[str]) -> None:
    assert feed(parts, stops) == stopped("".join(parts), stops)


@given(st.lists(st.text("abc", max_size=6), max_size=12), st.lists(ab, min_size=1, max_size=4))
def test_only_what_may_begin_a_stop_string_is_held(parts: list[str], stops: list[str]) -> None:
    matcher, text, out = StopStrings(stops), "", ""
    for part in parts:
        piece, stop = matcher.push(part, may_stop=True)
        text, out = text + part, out + piece
        if stop is not None:
            return
        held = text[len(out) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)
        later = [text[start:] for start in range(len(out))]
        assert not any(stop.startswith(tail) for tail in later for stop in stops)


def test_hostile_stop_strings_take_linear_time() -> None:
    stops = ["a" * 250 + chr(ord("b") + number) for number in range(16)]
    start = time.thread_time()
    feed(["a"] * 4000, stops)
    assert time.thread_time() - start < 2.0


# The two together


def detokenize(text: str, **params: Any) -> tuple[str, str | None]:
    detokenizer = Detokenizer(byte_tokenizer(), request(max_tokens=100, **params))
    out = ""
    for byte in text.encode():
        out += detokenizer.push(byte)
        if detokenizer.stop_string is not None:
            break
    return out + detokenizer.finish(), detokenizer.stop_string


def test_a_stop_string_is_cut_off() -> None:
    assert detokenize("so it ends. Not here", stop=("ends.", "here")) == ("so it ", "ends.")


def test_a_stop_string_is_kept_on_demand() -> None:
    out = detokenize("so it ends. Not", stop=("ends.",), include_stop_str_in_output=True)
    assert out == ("so it ends.", "ends.")


def test_the_beginning_of_a_stop_string_comes_out_at_the_end() -> None:
    assert detokenize("so it en", stop=("ends.",)) == ("so it en", None)


def test_a_stop_string_within_min_tokens_is_passed_over() -> None:
    assert detokenize("abab!", stop=("ab",), min_tokens=2) == ("ab", "ab")


def test_a_stop_string_that_ends_after_min_tokens_counts() -> None:
    assert detokenize("xabc", stop=("abc",), min_tokens=3) == ("x", "abc")


def test_a_stop_string_may_hold_characters_of_several_bytes() -> None:
    assert detokenize("eins 終 zwei", stop=("終",)) == ("eins ", "終")
