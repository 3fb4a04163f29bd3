"""Bodies of /v1/embeddings, /v2/embed, /pooling, /score, /rerank and /classify.

/v1/embeddings is OpenAI's and /v2/embed Cohere's. The others are as in vLLM, which follows Jina and
Cohere.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BeforeValidator,
    FailFast,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema

from jaxserve.api.pooling import PoolingParams
from jaxserve.chat.template import ChatTemplate
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.chat import Chat
from jaxserve.frontend.chat_parts import TextPart
from jaxserve.frontend.schema.body import CACHE_SALT, NULL, Body, Int32, Truncation, given, wanted
from jaxserve.frontend.schema.fields import (
    IGNORED,
    REFUSED,
    TEXT_ONLY,
    UNREAD,
    WITH_MESSAGES,
    Unread,
)
from jaxserve.frontend.schema.generation import REQUEST_ID
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.frontend.schema.parsing import parse, renamed, show
from jaxserve.server.completions.schema import Prompt, SomeIds, read_prompts

# OpenAI's own limit.
MAX_INPUTS = 2048
# Names of the fields with the texts of a score.
FIRSTS = ("text_1", "data_1", "queries")
SECONDS = ("text_2", "data_2", "documents", "items")
# Cohere's input types.
INPUT_TYPES = (None, "search_document", "search_query", "classification", "clustering")
MAX_TOKENS = 2**31 - 1

type EmbedDtype = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
type Endianness = Literal["native", "big", "little"]


def _inputs(value: Any) -> list[Prompt]:
    prompts = read_prompts(value)
    if not all(prompts):
        raise wanted("texts and lists of token ids that are not empty")
    if len(prompts) > MAX_INPUTS:
        raise wanted(f"at most {MAX_INPUTS} entries")
    return prompts


def _listed(value: Any) -> Any:
    """Wrap a single text in a list."""
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
    """Fields shared by all of them.

    truncate_prompt_tokens: -1 keeps as many tokens as the model supports. truncation_side: whether
    to drop the first tokens (left) or the last (right).
    """

    unread = UNREAD

    model: str | None = None
    truncate_prompt_tokens: Truncation | None = None
    truncation_side: Literal["left", "right"] = "right"
    padding: Literal["max_length", "do_not_pad"] = "do_not_pad"
    add_special_tokens: bool = True
    use_activation: bool | None = None
    cache_salt: Annotated[str, Field(pattern=CACHE_SALT)] | None = None
    request_id: Annotated[str, Field(pattern=REQUEST_ID)] | None = None
    priority: Int32 = 0

    def params(self) -> PoolingParams:
        """Return the pooling parameters."""
        return PoolingParams(use_activation=self.use_activation)


class VectorBody(PoolingBody):
    """Fields of requests for vectors.

    encoding_format: JSON numbers, base64, or bytes with or without a header that gives the place of
    each vector. embed_dtype, endianness: for base64 and bytes. normalize: vLLM's deprecated name of
    use_activation.
    """

    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] = "float"
    embed_dtype: EmbedDtype = "float32"
    endianness: Endianness = "native"
    dimensions: int | None = None
    normalize: bool | None = None

    def params(self) -> PoolingParams:
        """See PoolingBody."""
        activates = self.normalize if self.use_activation is None else self.use_activation
        return PoolingParams(dimensions=self.dimensions, use_activation=activates)


class InputBody(PoolingBody):
    """Prompts to pool."""

    input: Inputs


class ConversationBody(PoolingBody, Chat):
    """A chat to pool, rendered by the model's template."""

    unread = Unread(ignored=IGNORED, refused={**REFUSED, "input": (WITH_MESSAGES, ())})

    add_special_tokens: bool = False
    add_generation_prompt: bool | None = False


class EmbeddingBody(VectorBody, InputBody):
    """Prompts to embed."""


class EmbeddingChatBody(ConversationBody, VectorBody):
    """A chat to embed."""


class VectorsBody(VectorBody, InputBody):
    """Prompts to pool into vectors."""

    task: str | None = None


class VectorsChatBody(ConversationBody, VectorBody):
    """A chat to pool into a vector."""

    task: str | None = None


class ClassifyBody(InputBody):
    """Prompts to classify."""


class ClassifyChatBody(ConversationBody):
    """A chat to classify."""


class TextInput(Body):
    """Text parts, joined to one text to embed."""

    content: Annotated[list[TextPart], FailFast(), Field(min_length=1, max_length=MAX_INPUTS)]


type TextInputs = Annotated[list[TextInput], FailFast(), Field(min_length=1, max_length=MAX_INPUTS)]


class CohereBody(Body):
    """Texts to embed, in Cohere's form.

    truncate: the side on which long texts are truncated; NONE refuses them. input_type: no effect,
    because no model here has prompts by input type.
    """

    unread = Unread(
        ignored=IGNORED,
        repeated={"input_type": ()},
        refused={
            "images": (TEXT_ONLY, ([],)),
        },
    )

    model: str | None = None
    input_type: str | None = None
    texts: SomeTexts | None = None
    inputs: TextInputs | None = None
    output_dimension: int | None = None
    embedding_types: Annotated[
        tuple[Literal["float", "binary", "ubinary", "base64"], ...],
        Field(strict=False, min_length=1, max_length=4),
    ] = ("float",)
    truncate: Literal["NONE", "START", "END"] = "END"
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    priority: Int32 = 0

    def embedding(self) -> EmbeddingBody:
        """Return the equivalent body of OpenAI's API. Raises InvalidRequestError."""
        if self.input_type not in INPUT_TYPES:
            raise InvalidRequestError(
                f"Unsupported input_type {show(self.input_type)}: it must be one of"
                f" {', '.join(filter(None, INPUT_TYPES))}",
                param="input_type",
            )
        if (self.texts is None) == (self.inputs is None):
            raise InvalidRequestError("exactly one of texts and inputs is required", param="texts")
        texts: list[Prompt] = (
            [*self.texts]
            if self.texts
            else ["".join(part.text for part in each.content) for each in self.inputs or ()]
        )
        limit = self.max_tokens
        if limit is None and self.truncate != "NONE":
            limit = -1
        fields = {
            "model": self.model,
            "input": texts,
            "dimensions": self.output_dimension,
            "truncate_prompt_tokens": limit,
            "truncation_side": "left" if self.truncate == "START" else "right",
            "priority": self.priority,
        }
        with renamed({"input": "texts" if self.texts else "inputs"}):
            return parse(fields, EmbeddingBody)


class PairBody(PoolingBody):
    """Fields of requests that score pairs of texts.

    max_tokens_per_query, max_tokens_per_doc: number of tokens to keep of each text; 0 keeps all.
    instruction: the task, for chat templates that render pairs and have a place for it;
    chat_template_kwargs: further variables of such templates.
    """

    max_tokens_per_query: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 0
    max_tokens_per_doc: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 0
    instruction: str | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    def variables(self, template: ChatTemplate | None, ignored: IgnoredFields) -> dict[str, Any]:
        """Return the variables for a pair's template. ignored: collects those that it lacks."""
        asked = dict(self.chat_template_kwargs)
        if self.instruction is not None:
            asked.setdefault("instruction", self.instruction)
        readable = {} if template is None else template.readable(asked)
        for name in asked.keys() - readable.keys():
            is_field = name not in self.chat_template_kwargs
            ignored.add((name,) if is_field else ("chat_template_kwargs", name))
        return readable


class ScoreBody(PairBody):
    """Pairs of texts to score: one text with each of many, or two lists of equal length."""

    text_1: Annotated[Texts, Field(validation_alias=AliasChoices(*FIRSTS))]
    text_2: Annotated[Texts, Field(validation_alias=AliasChoices(*SECONDS))]

    @model_validator(mode="before")
    @classmethod
    def _under_one_name(cls, fields: object) -> object:
        body = {} if not isinstance(fields, dict) else fields
        for names in (FIRSTS, SECONDS):
            found = [name for name in names if body.get(name) is not None]
            if len(found) > 1:
                raise wanted(f"an object with only one of {', '.join(found)}")
        return fields

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Add the alternative names of the fields."""
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


class RerankBody(PairBody):
    """Documents to rank by relevance to a query. top_n: number to return; 0 returns all."""

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
