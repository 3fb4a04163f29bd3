"""Translate the structured outputs of a request into a grammar for llguidance."""

import json

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from jaxserve.api.structured_outputs import StructuredOutputsParams, refusal
from jaxserve.config.structured_outputs import StructuredOutputsConfig
from jaxserve.errors import InvalidRequestError
from jaxserve.grammar.schemas import followed, whitespace_options
from jaxserve.grammar.tags import Markup, literals, read, tags_grammar

# White space between reasoning and answer.
GAP = r"[\x20\x0A\x0D\x09]{0,8}"


def grammar_source(
    params: StructuredOutputsParams, defaults: StructuredOutputsConfig, *, markup: Markup
) -> str:
    """Return the grammar of an answer. Raises InvalidRequestError if it cannot be parsed.

    defaults: the server's settings, for requests that do not set their own. markup: ids of the
    added tokens, by text.
    """
    grammar = _answer(params, defaults, markup)
    if params.frame is not None:
        try:
            lark = _of_tags(params.frame, params, defaults, markup, answer="@form")
        except InvalidRequestError as error:
            name = "structured_outputs.structural_tag"
            raise refusal("frame", error.message.removeprefix(name).strip()) from error
        grammar = _within(lark, grammar, name="form")
    if params.reasoning_end is None:
        return grammar
    end, limit = params.reasoning_end, params.max_reasoning_tokens
    if limit == 0:
        thought = f"thought: {literals(end, markup)}"
    elif end in markup:
        bound = "" if limit is None else f"[max_tokens={limit}]"
        thought = f"thought: idea {literals(end, markup)}\n"
        thought += f"idea{bound}: TEXT\nTEXT: /(.|\\n)*/"
    elif limit is None:
        thought = f"thought[lazy]: TEXT {json.dumps(end)}\nTEXT: /(.|\\n)*/"
    else:
        # Only a token can be forced; ordinary text could not be told from the reasoning.
        raise refusal(
            "max_reasoning_tokens", f"is not supported: {end} is not a token of the model"
        )
    reasoning = "thought GAP"
    if params.reasoning_begin is not None:
        # Without reasoning, white space would be part of the answer.
        reasoning = f"(GAP {literals(params.reasoning_begin, markup)} thought GAP)?"
    start = f"%llguidance {{}}\nstart: {reasoning} @answer\n{thought}\nGAP: /{GAP}/\n"
    return _within(start, grammar, name="answer")


def unspelled(source: str) -> str:
    """Return a grammar of the same texts that accepts every tokenization of them."""
    return _within('%llguidance {"no_forcing": true}\nstart: @whole\n', source, name="whole")


def _within(lark: str, source: str, *, name: str) -> str:
    """Return the Lark grammar `lark`, which includes the grammar `source` as `@name`."""
    first, *rest = json.loads(source)["grammars"]
    return json.dumps({"grammars": [{"lark_grammar": lark}, {**first, "name": name}, *rest]})


def _answer(
    params: StructuredOutputsParams, defaults: StructuredOutputsConfig, markup: Markup
) -> str:
    match params.kind:
        case "json":
            assert isinstance(params.json, str)
            return _of_schema(params.json, params, defaults)
        case "json_object":
            return _of_schema('{"type":"object"}', params, defaults)
        case "regex":
            assert params.regex is not None
            return LLMatcher.grammar_from_regex(params.regex)
        case "choice":
            assert params.choice is not None
            # A single terminal; one rule per choice takes five times the time and memory.
            return _of_lark("start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, params.choice)))
        case "grammar":
            assert params.grammar is not None
            try:
                return _of_lark(any_to_lark(params.grammar))
            except Exception as error:  # the converter raises bare Exception
                raise refusal("grammar", "is neither Lark nor GBNF that can be read") from error
        case _:
            assert params.structural_tag is not None
            return _of_lark(_of_tags(params.structural_tag, params, defaults, markup))


def _of_lark(lark: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def _of_schema(
    schema: str, params: StructuredOutputsParams, defaults: StructuredOutputsConfig
) -> str:
    value = read(schema)
    whitespace = whitespace_options(params, defaults)
    options = followed(value, whitespace, kind=params.kind, is_closed=_is_closed(params, defaults))
    try:
        return json.dumps({"grammars": [{"json_schema": options}]}, default=float)
    except ValueError as error:
        raise refusal(params.kind, "must have no integers of thousands of digits") from error


def _of_tags(
    text: str,
    params: StructuredOutputsParams,
    defaults: StructuredOutputsConfig,
    markup: Markup,
    *,
    answer: str | None = None,
) -> str:
    return tags_grammar(
        text,
        markup=markup,
        whitespace=whitespace_options(params, defaults),
        is_closed=_is_closed(params, defaults),
        answer=answer,
    )


def _is_closed(params: StructuredOutputsParams, defaults: StructuredOutputsConfig) -> bool:
    return params.disable_additional_properties or defaults.disable_additional_properties
