"""Unbounded parts of a schema get limits, and numeric bounds are exact to the last digit."""

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLParserLimits

from jaxserve.api.structured_outputs import MAX_BYTES, StructuredOutputsParams
from jaxserve.config.structured_outputs import StructuredOutputsConfig
from jaxserve.errors import InvalidRequestError
from jaxserve.grammar import GrammarCompiler, MatcherPool
from jaxserve.grammar.matchers import GrammarMatcher
from jaxserve.grammar.numbers import MAX_CHARS
from tests.grammar.world import accepts, checker, compiler, vocabulary
from tests.server.world import tokenizer

FILLERS = "0123456789.-+eE \n\t"
NUMBERS: dict[str, Any] = {
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "at least": {"type": "number", "minimum": 0.5},
    "below": {"type": "integer", "exclusiveMaximum": -3},
    "multiple": {"type": "integer", "multipleOf": 7},
    "decimal": {"type": "number", "multipleOf": 0.01},
    "any": {},
}


def filled(params: StructuredOutputsParams, *, prefer: str, max_tokens: int = 400) -> str:
    """An answer of a model that writes what it prefers wherever it may."""
    matchers = MatcherPool(compiler())
    (matcher,) = matchers.begin(params, 1, may_jump=False)
    end = tokenizer().eos_ids[0]
    token_ids: list[int] = []
    while True:
        matchers.wait(10.0)
        while matcher.next is None:
            matchers.wait_for_any(10.0)
        if matcher.next.bitmask is None:
            assert matcher.next.error is None
            return tokenizer().decode(token_ids)
        allowed = _tokens(matcher.next.bitmask)
        if allowed == [end]:
            return tokenizer().decode(token_ids)
        texts = {token: tokenizer().decode([token]) for token in allowed if token != end}
        token_ids.append(min(texts, key=lambda token: (_rank(texts[token], prefer), token)))
        assert len(token_ids) < max_tokens, f"no end: {tokenizer().decode(token_ids)!r}"
        matchers.advance([(matcher, token_ids[-1])])


def _tokens(mask: np.ndarray) -> list[int]:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


def _rank(text: str, prefer: str) -> int:
    """Fillers first, then what ends things, then the rest."""
    if text and set(text) <= set(prefer):
        return 0
    return 1 if text[:1] in set('"}],:') else 2


@pytest.mark.parametrize("prefer", ["0", "9", FILLERS, "1e", " \n\t"], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_have_an_end(name: str, prefer: str) -> None:
    several = {"type": "array", "items": NUMBERS[name], "maxItems": 3}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"a": NUMBERS[name], "b": several},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    if name == "any":
        # Arrays and objects may be as long as they like; here the first token is a digit.
        items = {"type": ["number", "null"]}
        schema = {"type": "array", "items": items, "minItems": 3, "maxItems": 3}
    text = filled(StructuredOutputsParams(json=schema), prefer=prefer)
    value = json.loads(text, parse_float=Decimal)
    jsonschema.validate(json.loads(text), schema)
    assert all(len(number) <= MAX_CHARS + 2 for number in _numbers(value)), text
    assert all(abs(Decimal(number)) < Decimal("1e160") for number in _numbers(value)), text


def _numbers(value: Any) -> Iterable[str]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)
    elif isinstance(value, int | Decimal):
        yield str(value) if isinstance(value, int) else f"{value:f}".rstrip("0")[:MAX_CHARS]


def test_digits_that_a_schema_asks_for_are_written() -> None:
    schema = {"type": "string", "pattern": "^[0-9]{90}$"}
    text = filled(StructuredOutputsParams(json=schema), prefer="7")
    assert text == '"' + "7" * 90 + '"'
    schema = {"type": "string", "pattern": "^[0-9a-f]{80}$"}
    assert len(filled(StructuredOutputsParams(json=schema), prefer="1e")) == 82


JSON = '{"a": 1, "b": [1, 2]}'
SPACED = '{ "a" : 1,\n\n"b": [ 1 , 2 ] }'
TAGGED = json.dumps(
    {
        "type": "structural_tag",
        "format": {
            "type": "tag",
            "begin": "<f>",
            "content": {"type": "json_schema", "json_schema": {"type": "object"}},
            "end": "</f>",
        },
    }
)


@pytest.mark.parametrize(
    ("options", "good", "bad"),
    [
        ({}, [JSON, '{"a":1,"b":[1,2]}'], [SPACED, '{"a":  1}', " {}", "{} ", "{\n}", "{ }"]),
        ({"disable_any_whitespace": True}, ['{"a":1}'], [JSON, '{"a": 1}']),
        ({"whitespace_pattern": r"[ \n]{1,2}"}, [JSON, SPACED], ['{"a":   1}']),
    ],
)
@pytest.mark.parametrize("kind", ["json", "json_object", "structural_tag"])
def test_whitespace_is_bounded_and_can_be_chosen(
    kind: str, options: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    form = {"json": {"type": "object"}, "json_object": True, "structural_tag": TAGGED}[kind]
    params = StructuredOutputsParams(**{kind: form, **options})
    begin, end = ("<f>", "</f>") if kind == "structural_tag" else ("", "")
    assert [accepts(params, begin + text + end) for text in good] == [True] * len(good)
    assert [accepts(params, begin + text + end) for text in bad] == [False] * len(bad)


def test_a_server_may_choose_whitespace_and_a_request_may_choose_otherwise() -> None:
    compact = StructuredOutputsConfig.of({"disable_any_whitespace": True})
    ours = GrammarCompiler(vocabulary(), defaults=compact)
    token_ids = list(tokenizer().encode(JSON, add_special_tokens=False))

    def takes(**options: Any) -> bool:
        matcher = ours.matcher(StructuredOutputsParams(json_object=True, **options))
        return matcher.try_consume_tokens(token_ids) == len(token_ids)

    assert not takes()
    assert takes(whitespace_pattern=" ")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"regex": "a", "whitespace_pattern": " "}, "whitespace_pattern is an option of JSON"),
        ({"choice": ("a",), "disable_any_whitespace": True}, "cannot be given with choice"),
        (
            {"json": {}, "whitespace_pattern": " ", "disable_any_whitespace": True},
            "whitespace_pattern cannot be given with disable_any_whitespace",
        ),
    ],
)
def test_a_choice_of_whitespace_that_would_not_act_is_refused(
    asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        StructuredOutputsParams(**asked)


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ('{"const": 9007199254740993}', "const"),
        ('{"const": 12345678901234567890}', "const"),
        ('{"const": 1e400}', "const"),
        ('{"const": 1' + "0" * 300 + "}", "const"),
        ('{"const": 0.1000000000000000055511151231257827}', "const"),
        ('{"enum": [1, {"a": [9007199254740993]}]}', "enum"),
        ('{"enum": ["a\\u0001"]}', "enum"),
        ('{"minimum": 9007199254740993}', "minimum"),
        ('{"maximum": -9007199254740993}', "maximum"),
        ('{"exclusiveMinimum": 1e19}', "exclusiveMinimum"),
        ('{"exclusiveMinimum": -9007199254740992}', "exclusiveMinimum"),
        ('{"exclusiveMaximum": 0.30000000000000001}', "exclusiveMaximum"),
        ('{"multipleOf": 0}', "multipleOf"),
        ('{"multipleOf": 1000003}', "multipleOf"),
        ('{"allOf": [{"multipleOf": 1009}, {"multipleOf": 1011}]}', "multipleOf"),
        ('{"$ref": "#/b", "multipleOf": 86400, "b": {"multipleOf": 86400}}', "multipleOf"),
        ('{"minProperties": 2}', "minProperties"),
        ('{"properties": {"a": {"enum": [[9007199254740993]]}}}', "enum"),
        ('{"$ref": "#/other", "other": {"const": 9007199254740993}}', "const"),
    ],
)
@pytest.mark.parametrize("kind", ["json", "structural_tag"])
def test_what_would_not_be_followed_to_the_letter_is_refused_by_its_keyword(
    kind: str, schema: str, keyword: str
) -> None:
    text = schema if kind == "json" else TAGGED.replace('{"type": "object"}', schema)
    asked: dict[str, Any] = {kind: text}
    params = StructuredOutputsParams(**asked)
    with pytest.raises(InvalidRequestError, match=keyword) as refused:
        checker().check(params)
    assert refused.value.param == f"structured_outputs.{kind}"


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ('{"const": 9007199254740992}', "9007199254740992", "9007199254740993"),
        ('{"const": -9000000000000000000}', "-9000000000000000000", "-9000000000000000001"),
        ('{"const": 0.1}', "0.1", "0.10000000000000001"),
        ('{"const": 1.5e-7}', "0.00000015", "0.00000016"),
        (
            '{"type": "integer", "maximum": 4503599627370497}',
            "4503599627370497",
            "4503599627370498",
        ),
        ('{"required": ["a"], "minProperties": 2}', '{"a": 1, "b": 2}', '{"a": 1, "a": 2}'),
    ],
)
def test_numbers_are_followed_to_the_last_digit(schema: str, good: str, bad: str) -> None:
    params = StructuredOutputsParams(json=schema)
    assert accepts(params, good)
    assert not accepts(params, bad)


@pytest.mark.parametrize("key", ["a", "é", "a/b", 'a"', "a\n"])
def test_no_spelling_of_a_declared_key_is_another_key(key: str) -> None:
    """A key that comes again by an escape would get past what its schema says."""
    schema = {
        "type": "object",
        "properties": {key: {"type": "integer"}},
        "additionalProperties": {"type": "string"},
    }
    params = StructuredOutputsParams(json=schema)
    first = json.dumps(key, ensure_ascii=False)
    for second in {json.dumps(key), '"' + "".join(f"\\u{ord(c):04x}" for c in key) + '"', first}:
        assert not accepts(params, f'{{{first}: 1, {second}: "x"}}')


def chain(num: int, link: str) -> str:
    """A schema of so many definitions, each of which refers to the next."""
    links = (f'"{i:x}":' + link.replace("_", f'"$ref":"#/$defs/{i + 1:x}"') for i in range(num))
    return f'{{"$defs":{{{",".join(links)},"{num:x}":{{}}}},"$ref":"#/$defs/0"}}'


def properties(num: int, **more: Any) -> dict[str, Any]:
    each = {f"p{i}": {"type": "integer"} for i in range(num)}
    return {"type": "object", "properties": each, "additionalProperties": False, **more}


BIG: dict[str, Any] = {
    "chain of properties": chain(3000, '{"properties":{"":{_}}}'),
    "chain of items": chain(5000, '{"items":{_}}'),
    "chain of allOf": chain(5000, '{"allOf":[{_}]}'),
    "chain of anyOf": chain(5000, '{"anyOf":[{_}]}'),
    "optional": properties(5000),
    "required": properties(3000, required=[f"p{i}" for i in range(3000)]),
    "at least one": properties(100, minProperties=1),
    "at most one": properties(300, maxProperties=1),
    "enum of texts": {"enum": [f"value {i}" for i in range(10_000)]},
    "enum of integers": {"enum": [*range(20_000)]},
    "objects": {"anyOf": [properties(9, title=str(i)) for i in range(90)]},
    "maxItems": {"type": "array", "items": {"type": "integer"}, "maxItems": 10**9},
    "minItems": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "huge maxItems": {"type": "array", "maxItems": 2**64},
    "negative maxItems": {"type": "array", "maxItems": -1},
    "maxLength": {"type": "string", "maxLength": 10**9},
    "huge maxLength": {"type": "string", "maxLength": 2**64},
    "minLength": {"type": "string", "minLength": 10**9},
    "maxProperties": {"type": "object", "maxProperties": 10**9},
    "long text": {"const": "x" * (MAX_BYTES - 100)},
    "long key": {"required": ["x" * (MAX_BYTES - 100)]},
    "long pattern": {"type": "string", "pattern": "^[a-z]{50000}$"},
    "nested pattern": {"type": "string", "pattern": "(" * 5000 + "a" + ")" * 5000},
    "repeated pattern": {"type": "string", "pattern": "^((a{1,99}){1,99}){1,99}$"},
    "patterns": {"patternProperties": {f"^x{i}_": {"type": "integer"} for i in range(60)}},
    "small": {"minimum": 1e-300, "type": "number"},
    "multiples": {"allOf": [{"multipleOf": 60}, {"multipleOf": 0.25}]},
    "odd multiple": {"type": "number", "multipleOf": 0.07},
    "negative multiple": {"multipleOf": -3},
    "itself": {"$ref": "#"},
    "all of itself": {"allOf": [{"$ref": "#"}]},
    "any of itself": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "wrong kinds": {"type": 5, "properties": [], "required": "a"},
    "empty enum": {"enum": []},
    "no type": {"type": []},
}


@pytest.mark.parametrize("name", BIG)
def test_a_schema_of_any_size_is_served_or_refused(name: str) -> None:
    """Neither an error of the grammar engine nor the end of the process is an answer."""
    try:
        params = StructuredOutputsParams(json=BIG[name])
        checker().check(params)
    except InvalidRequestError:
        return
    matchers = MatcherPool(compiler())
    (matcher,) = matchers.begin(params, 1, may_jump=True)
    token_ids = 0
    while token_ids < 60:
        _wait(matchers, matcher)
        assert matcher.next is not None
        assert matcher.next.error is None or matcher.next.is_refused, matcher.next.error
        if matcher.next.bitmask is None:
            return
        token_ids += 1
        allowed = _tokens(matcher.next.bitmask)
        matchers.advance([(matcher, allowed[7 * token_ids % len(allowed)])])


def _wait(matchers: MatcherPool, matcher: GrammarMatcher) -> None:
    while matcher.next is None:
        matchers.wait_for_any(10.0)


def test_a_grammar_that_grows_too_complex_on_the_way_blames_the_request() -> None:
    """The objects combine, which is seen only after the first tokens of an answer."""
    schema = {"type": "array", "items": {"anyOf": [properties(900), properties(950)] * 2}}
    matchers = MatcherPool(compiler())
    (matcher,) = matchers.begin(StructuredOutputsParams(json=schema), 1, may_jump=False)
    for text in '[{"p':
        _wait(matchers, matcher)
        assert matcher.next is not None
        if matcher.next.error is not None:
            break
        matchers.advance([(matcher, tokenizer().encode(text, add_special_tokens=False)[0])])
    _wait(matchers, matcher)
    assert matcher.next is not None
    assert matcher.next.is_refused
    assert "structured_outputs.json is too complex" in str(matcher.next.error)


def test_an_object_of_700_optional_properties_is_served() -> None:
    params = StructuredOutputsParams(json=properties(700))
    for text in ('{"p0": 1, "p350": 2, "p699": 3}', "{}", '{"p699": 1}'):
        assert accepts(params, text)
    assert not accepts(params, '{"p1": 1, "p0": 2}')
    with pytest.raises(InvalidRequestError, match="at most 1000 optional properties in one object"):
        checker().check(StructuredOutputsParams(json=properties(1001)))


def test_a_long_answer_outlasts_the_states_of_one_lexer(monkeypatch: pytest.MonkeyPatch) -> None:
    few = LLParserLimits(
        initial_lexer_fuel=1_000_000, step_lexer_fuel=50_000, max_lexer_states=6000
    )
    monkeypatch.setattr("jaxserve.grammar.compiler.LIMITS", few)
    matchers = MatcherPool(GrammarCompiler(vocabulary()))
    params = StructuredOutputsParams(json={"type": "string", "maxLength": 1500})
    (matcher,) = matchers.begin(params, 1, may_jump=False)
    for char in ['"', *"x" * 1500, '"']:
        while matcher.next is None:
            matchers.wait_for_any(10.0)
        assert matcher.next.error is None
        (token_id,) = tokenizer().encode(char, add_special_tokens=False)
        assert matcher.next.bitmask is not None
        assert token_id in _tokens(matcher.next.bitmask)
        matchers.advance([(matcher, token_id)])
    matchers.wait(10.0)
    assert matcher.next is not None
    assert matcher.next.error is None
