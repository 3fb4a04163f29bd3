"""The bodies of /v1/embeddings, /score, /rerank and /classify, and their answers.

Embeddings are OpenAI's; the others are vLLM's, which are Jina's and Cohere's.
"""

from typing import Annotated, Any, Literal

import msgspec
from pydantic import AliasChoices, BeforeValidator, FailFast, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from jaxserve.errors import InvalidRequestError
from jaxserve.pooling import PoolingParams
from jaxserve.server.protocol.answers import PromptTokensDetails
from jaxserve.server.protocol.body import CACHE_SALT, NULL, Body, Int32, Truncation, given, wanted
from jaxserve.server.protocol.completions import Prompt, SomeIds, read_prompts
from jaxserve.server.protocol.fields import IGNORED, Unread

# OpenAI's own limit.
MAX_INPUTS = 2048
# What the fields of a score's texts are called.
FIRSTS = ("text_1", "data_1", "queries")
SECONDS = ("text_2", "data_2", "documents")


def _inputs(value: Any) -> list[Prompt]:
    prompts = read_prompts(value)
    if not all(prompts):
        raise wanted("texts and lists of token ids that are not empty")
    if len(prompts) > MAX_INPUTS:
        raise wanted(f"at most {MAX_INPUTS} entries")
    return prompts


def _listed(value: Any) -> Any:
    """One text is a list of it."""
    return [value] if isinstance(value, str) else value


type SomeText = Annotated[str, Field(min_length=1)]
type Inputs = Annotated[
    list[Prompt],
    BeforeValidator(
        _inputs,
        json_schema_input_type=SomeText
        | SomeIds
        | Annotated[list[SomeText], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[SomeIds], Field(min_length=1, max_length=MAX_INPUTS)],
    ),
]
type SomeTexts = Annotated[list[str], FailFast(), Field(min_length=1, max_length=MAX_INPUTS)]
type Texts = Annotated[SomeTexts, BeforeValidator(_listed, json_schema_input_type=str | SomeTexts)]


class PoolingBody(Body):
    """What all share. truncate_prompt_tokens: -1 is as many as the model takes."""

    unread = Unread(ignored=IGNORED)

    model: str | None = None
    truncate_prompt_tokens: Truncation | None = None
    add_special_tokens: bool = True
    use_activation: bool | None = None
    cache_salt: Annotated[str, Field(pattern=CACHE_SALT)] | None = None
    priority: Int32 = 0

    def params(self) -> PoolingParams:
        """Return what is to be made of vectors."""
        return PoolingParams(use_activation=self.use_activation)


class EmbeddingBody(PoolingBody):
    """Prompts to embed, each by itself. normalize: vLLM's older word for use_activation."""

    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    normalize: bool | None = None

    def params(self) -> PoolingParams:
        """See PoolingBody."""
        activates = self.normalize if self.use_activation is None else self.use_activation
        return PoolingParams(dimensions=self.dimensions, use_activation=activates)


class ClassifyBody(PoolingBody):
    """Prompts to classify, each by itself."""

    input: Inputs


class ScoreBody(PoolingBody):
    """Pairs of texts: one with each of many, or each with the one at its place."""

    text_1: Annotated[Texts, Field(validation_alias=AliasChoices(*FIRSTS))]
    text_2: Annotated[Texts, Field(validation_alias=AliasChoices(*SECONDS))]

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Tell of the other names too."""
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        described = handler.resolve_ref_schema(schema)
        for names in (FIRSTS, SECONDS):
            described["required"].remove(names[0])
            texts = {"anyOf": [described["properties"][names[0]], NULL]}
            described["properties"] |= dict.fromkeys(names, texts)
        described["allOf"] = [
            {"oneOf": [given(name) for name in names]} for names in (FIRSTS, SECONDS)
        ]
        return schema


class TextDocument(Body):
    """A document as an object."""

    text: str


class RerankBody(PoolingBody):
    """Documents to put into the order of their relevance to a query; top_n: 0 is all of them."""

    query: str
    documents: Annotated[
        list[str | TextDocument], FailFast(), Field(min_length=1, max_length=MAX_INPUTS)
    ]
    top_n: Annotated[int, Field(ge=0)] = 0
    return_documents: bool = True

    @property
    def texts(self) -> list[str]:
        """The documents as texts."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


def check_pairs(num_firsts: int, num_seconds: int, *, param: str) -> None:
    """Raise InvalidRequestError unless one text meets many, or as many meet as many."""
    if num_firsts not in {1, num_seconds}:
        raise InvalidRequestError(
            f"the first texts must be one, or as many as the second ({num_seconds}),"
            f" got {num_firsts}",
            param=param,
        )


class PoolingUsage(msgspec.Struct):
    """Tokens read; none are generated."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens: int = 0


class Embedding(msgspec.Struct):
    """An embedding: numbers, or float32 little-endian as base64."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class Embeddings(msgspec.Struct, kw_only=True):
    """The answer to /v1/embeddings. id, created: vLLM's."""

    id: str
    created: int
    data: list[Embedding]
    model: str
    usage: PoolingUsage
    object: str = "list"


class Score(msgspec.Struct):
    """The score of a pair."""

    index: int
    score: float
    object: str = "score"


class Scores(msgspec.Struct, kw_only=True):
    """The answer to /score."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Score]
    usage: PoolingUsage


class Document(msgspec.Struct):
    """A document as it came."""

    text: str


class Ranked(msgspec.Struct, omit_defaults=True):
    """A document's place among those of the query, and how relevant it is."""

    index: int
    relevance_score: float
    document: Document | None = None


class Ranking(msgspec.Struct):
    """The answer to /rerank, the most relevant first."""

    id: str
    model: str
    usage: PoolingUsage
    results: list[Ranked]


class Classified(msgspec.Struct):
    """The most likely label of a prompt, and the probabilities of all."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classification(msgspec.Struct, kw_only=True):
    """The answer to /classify."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Classified]
    usage: PoolingUsage
