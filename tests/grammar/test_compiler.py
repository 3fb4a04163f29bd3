"""Supported and refused grammars, and limits of the time and memory to compile them."""

import time
from contextlib import suppress
from typing import Any

import pytest

from jaxserve.api.structured_outputs import MAX_BYTES, MAX_DEPTH, StructuredOutputsParams
from jaxserve.errors import InvalidRequestError
from jaxserve.grammar import GrammarChecker, GrammarCompiler
from jaxserve.grammar.compiler import BYTES_PER_GRAMMAR
from jaxserve.grammar.heap import heap_bytes
from tests.grammar.world import accepts, checker, compiler, vocabulary
from tests.server.world import tokenizer

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TAG = """{"type": "structural_tag", "triggers": ["<f"], "structures":
    [{"begin": "<f=x>", "schema": {"type": "integer"}, "end": "</f>"}]}"""


@pytest.mark.parametrize(
    ("asked", "good", "bad"),
    [
        ({"json": PERSON}, '{"name": "Ann", "age": 3}', '{"name": "Ann"}'),
        ({"json": PERSON}, '{"name":"Ann","age":3}', '{"name":"Ann","age":-3}'),
        ({"json": '{"enum": [1, "é"]}'}, '"é"', '"e"'),
        ({"json": True}, "[1, {}]", "[1, {}"),
        ({"json_object": True}, '{"a": [null]}', "[]"),
        ({"regex": "^a/(b|c)+$"}, "a/bcb", "a/"),
        ({"choice": ['say "yes"', "no\n"]}, 'say "yes"', "no"),
        ({"grammar": 'start: "a" B\nB: /[0-9]{2}/'}, "a12", "a1"),
        ({"grammar": 'root ::= "a" two\ntwo ::= [0-9] [0-9]\n'}, "a12", "a1"),
        ({"structural_tag": TAG}, "so <f=x>12</f>, then", "so <f=y>"),
        ({"regex": "a", "reasoning_end": "</think>"}, "<b> hm</think>\n\na", "a"),
        ({"regex": "a", "reasoning_end": "<|im_end|>"}, "hm<|im_end|>a", "hm a"),
    ],
)
def test_an_answer_is_what_was_asked_for(asked: dict[str, Any], good: str, bad: str) -> None:
    params = StructuredOutputsParams(**asked)
    checker().check(params)
    assert accepts(params, good)
    assert not accepts(params, bad)


THINKING: dict[str, Any] = {
    "regex": "a",
    "reasoning_begin": "<|im_start|>",
    "reasoning_end": "<|im_end|>",
}


@pytest.mark.parametrize(
    "text", ["a", "<|im_start|>hm<|im_end|>\n\na", "\n<|im_start|><|im_end|>a"]
)
def test_there_may_be_reasoning_or_none(text: str) -> None:
    assert accepts(StructuredOutputsParams(**THINKING), text)


@pytest.mark.parametrize("text", ["hm<|im_end|>a", "<|im_start|>hm", "hm"])
def test_reasoning_stands_between_its_marks(text: str) -> None:
    assert not accepts(StructuredOutputsParams(**THINKING), text)


@pytest.mark.parametrize("text", [" a", "\n\na"])
def test_an_answer_without_reasoning_begins_at_once(text: str) -> None:
    assert not accepts(StructuredOutputsParams(**THINKING), text)


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_reasoning_ends_when_its_tokens_are_used_up(limit: int) -> None:
    params = StructuredOutputsParams(**THINKING, max_reasoning_tokens=limit)
    matcher = compiler().matcher(params)
    begin, end = tokenizer().encode("<|im_start|><|im_end|>", add_special_tokens=False)
    thoughts = tokenizer().encode("zqzqzq", add_special_tokens=False)[:limit]
    assert matcher.consume_tokens([begin, *thoughts])
    assert matcher.compute_ff_tokens() == [end]


def test_a_limit_of_reasoning_that_only_text_ends_is_refused() -> None:
    params = StructuredOutputsParams(regex="a", reasoning_end="Well:", max_reasoning_tokens=5)
    with pytest.raises(InvalidRequestError, match=r"tokens is not supported: Well: is not a token"):
        checker().check(params)


def test_json_without_whitespace_has_none() -> None:
    params = StructuredOutputsParams(json=PERSON, disable_any_whitespace=True)
    assert accepts(params, '{"name":"Ann","age":3}')
    assert not accepts(params, '{"name": "Ann","age":3}')


def test_objects_can_be_kept_from_having_more_than_their_schema_says() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert accepts(StructuredOutputsParams(json=schema), '{"b": 1}')
    closed = StructuredOutputsParams(json=schema, disable_additional_properties=True)
    assert not accepts(closed, '{"b": 1}')


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"json": {"type": "array", "uniqueItems": True}}, "json", "uniqueItems"),
        ({"json": {"not": {}}}, "json", "not supported: not"),
        ({"json": {"not": {}, "x-guidance": {"lenient": True}}}, "json", "not supported: not"),
        ({"json": {"if": {}, "then": {}}}, "json", "if, then"),
        ({"json": {"type": "string", "format": "shoe-size"}}, "json", "shoe-size"),
        ({"json": {"$ref": "https://example.org/s.json"}}, "json", "has a $ref outside of itself"),
        ({"json": {"$ref": "#"}}, "json", "cannot be satisfied"),
        ({"json": {"type": "integer", "minimum": 2, "maximum": 1}}, "json", "cannot be satisfied"),
        ({"json": {"type": "string", "pattern": "(?=a)b"}}, "json", "look-ahead"),
        ({"json": "{"}, "json", "JSON schema"),
        ({"json": [1]}, "json", "an object, true or false"),
        ({"regex": "[a"}, "regex", "unclosed character class"),
        ({"regex": 1}, "regex", "must be a non-empty string"),
        ({"choice": []}, "choice", "list of non-empty strings"),
        ({"choice": "ab"}, "choice", "list of non-empty strings"),
        ({"choice": 5}, "choice", "list of non-empty strings"),
        ({"grammar": "hello"}, "grammar", "neither Lark nor GBNF"),
        ({"grammar": 'start: "a" b'}, "grammar", "unknown name"),
        ({"grammar": "start: start"}, "grammar", "cannot be satisfied"),
        ({"grammar": 'start: <|nobody|> "a"'}, "grammar", "unknown special token"),
        ({"structural_tag": "{}"}, "structural_tag", "triggers"),
        ({"structural_tag": TAG.replace("<f=x>", "<g>")}, "structural_tag", "a trigger"),
        ({"regex": "a" * (MAX_BYTES + 1)}, "regex", f"at most {MAX_BYTES} bytes"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(
    asked: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        checker().check(StructuredOutputsParams(**asked))
    assert refused.value.param == f"structured_outputs.{param}"
    assert words in refused.value.message


@pytest.mark.parametrize("asked", [{}, {"json": {}, "regex": "a"}, {"json_object": False}])
def test_exactly_one_form_is_asked_for(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="exactly one of"):
        StructuredOutputsParams(**asked)


def test_schemas_may_be_deep_but_not_without_end() -> None:
    def nested(depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "null"}
        for _ in range(depth - 1):
            schema = {"type": "array", "items": schema}
        return schema

    checker().check(StructuredOutputsParams(json=nested(MAX_DEPTH)))
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_DEPTH}"):
        StructuredOutputsParams(json=nested(MAX_DEPTH + 1))


HOSTILE: dict[str, dict[str, Any]] = {
    "backtracking": {"regex": "(a+)+(a|aa)+$"},
    "counted": {"regex": "((a{100}){100}){100}b"},
    "any_counted": {"regex": "(.*){500}x"},
    "giant_enum": {"json": {"enum": [f"value {i}" for i in range(10_000)]}},
    "many_properties": {"json": {"properties": {f"p{i}": {} for i in range(1000)}}},
    "recursive": {"json": {"anyOf": [{"properties": {f"p{i}": {"$ref": "#"}}} for i in range(99)]}},
    "mutual": {
        "json": {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "array", "items": {"$ref": "#"}}]},
                "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]},
            },
        }
    },
    "long_string": {"json": {"type": "string", "minLength": 1_000_000}},
    "long_array": {"json": {"type": "array", "minItems": 1_000_000, "items": {"type": "null"}}},
    "ambiguous": {"grammar": 'start: a\na: a a | "x" | ""'},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end_in_an_answer_or_a_refusal_soon(name: str) -> None:
    start_s = time.thread_time()
    with suppress(InvalidRequestError):
        checker().check(StructuredOutputsParams(**HOSTILE[name]))
    assert time.thread_time() - start_s < 5.0


def small_compiler(num_grammars: int) -> GrammarCompiler:
    return GrammarCompiler(vocabulary(), cache_bytes=num_grammars * (BYTES_PER_GRAMMAR + 10_000))


def test_a_grammar_is_compiled_once() -> None:
    compiler = small_compiler(4)
    params = StructuredOutputsParams(regex="a+")
    compiler.matcher(params)
    assert compiler.num_kept == 1
    compiler.matcher(StructuredOutputsParams(regex="a+"))
    assert compiler.num_kept == 1


def test_compiled_grammars_are_kept_within_a_bound_of_memory() -> None:
    compiler = small_compiler(4)
    for number in range(10):
        compiler.matcher(StructuredOutputsParams(regex=f"a{number}"))
    assert compiler.num_kept == 4


@pytest.mark.skipif(heap_bytes() == 0, reason="the C library does not tell")
def test_a_grammar_counts_with_what_it_really_holds() -> None:
    compiler = GrammarCompiler(vocabulary(), is_bare=True)
    assert compiler.compiled(StructuredOutputsParams(regex="a{20000}")).num_bytes > 5_000_000
    assert compiler.compiled(StructuredOutputsParams(regex="a{20}")).num_bytes < 2_000_000


def test_a_grammar_that_has_grown_with_its_answers_is_compiled_anew() -> None:
    compiler = small_compiler(4)
    params = StructuredOutputsParams(regex="a+")
    grammar = compiler.compiled(params)
    assert compiler.compiled(params) is grammar
    grammar.num_tokens = 1000
    assert compiler.compiled(params) is grammar, "whoever has it may go on"
    assert compiler.num_kept == 0
    assert compiler.compiled(params) is not grammar


def test_many_choices_take_little() -> None:
    choice = tuple(f"{number:08}" for number in range(25_000))
    grammar = compiler().compiled(StructuredOutputsParams(choice=choice))
    assert grammar.num_bytes < 64 * MAX_BYTES


class CountingChecker(GrammarChecker):
    num_judged = 0

    def judge(self, params: StructuredOutputsParams) -> InvalidRequestError | None:
        self.num_judged += 1
        return super().judge(params)


def test_a_grammar_is_judged_once() -> None:
    checker = CountingChecker(vocabulary())
    for _ in range(3):
        checker.check(StructuredOutputsParams(regex="a+"))
        with pytest.raises(InvalidRequestError, match="not"):
            checker.check(StructuredOutputsParams(json={"not": {}}))
    assert checker.num_judged == 2


def test_matchers_of_one_grammar_go_their_own_ways() -> None:
    compiler = small_compiler(4)
    params = StructuredOutputsParams(regex="ab")
    one, other = compiler.matcher(params), compiler.matcher(params)
    assert one.consume_token(vocabulary().whole().tokenize_str("a")[0])
    assert one.validate_tokens(vocabulary().whole().tokenize_str("a")) == 0
    assert other.validate_tokens(vocabulary().whole().tokenize_str("a")) == 1
