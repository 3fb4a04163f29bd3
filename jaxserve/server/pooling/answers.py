"""Answers of /v1/embeddings, /v2/embed, /pooling, /score, /rerank and /classify."""

import msgspec
from msgspec import UNSET

from jaxserve.server.schema.answers import Maybe, PromptTokensDetails


class PoolingUsage(msgspec.Struct):
    """Token counts; no tokens are generated."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens: int = 0


class Embedding(msgspec.Struct):
    """An embedding, as numbers or as base64."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class Embeddings(msgspec.Struct, kw_only=True):
    """Answer of /v1/embeddings. id and created are vLLM's fields."""

    id: str
    created: int
    data: list[Embedding]
    model: str
    usage: PoolingUsage
    object: str = "list"


class Pooled(msgspec.Struct):
    """The vector of a prompt, as numbers or as base64."""

    index: int
    data: list[float] | str
    object: str = "pooling"


class Pooling(msgspec.Struct, kw_only=True):
    """Answer of /pooling."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Pooled]
    usage: PoolingUsage


class PoolingMetadata(msgspec.Struct, kw_only=True):
    """The header `metadata` of a binary answer: the place of each vector in it."""

    id: str
    created: int
    model: str
    data: list["BytesPlace"]
    usage: PoolingUsage


class BytesPlace(msgspec.Struct, kw_only=True):
    """A vector in a binary answer: its range [start, end), shape, dtype and byte order."""

    index: int
    embed_dtype: str
    endianness: str
    start: int
    end: int
    shape: tuple[int, ...]


class EmbeddingsByType(msgspec.Struct, omit_defaults=True, rename={"floats": "float"}):
    """Embeddings in Cohere's form, in each of the requested types."""

    floats: Maybe[list[list[float]]] = UNSET
    binary: Maybe[list[list[int]]] = UNSET
    ubinary: Maybe[list[list[int]]] = UNSET
    base64: Maybe[list[str]] = UNSET


class ApiVersion(msgspec.Struct):
    """The version of Cohere's API."""

    version: str = "2"


class BilledUnits(msgspec.Struct):
    """Number of tokens, as Cohere reports it."""

    input_tokens: int
    image_tokens: int = 0


class EmbedMeta(msgspec.Struct):
    """Usage of a call, in Cohere's form."""

    billed_units: BilledUnits
    api_version: ApiVersion = msgspec.field(default_factory=ApiVersion)


class CohereEmbeddings(msgspec.Struct, kw_only=True):
    """Answer of /v2/embed."""

    id: str
    embeddings: EmbeddingsByType
    texts: list[str]
    meta: EmbedMeta
    response_type: str = "embeddings_by_type"


class Score(msgspec.Struct):
    """The score of a pair."""

    index: int
    score: float
    object: str = "score"


class Scores(msgspec.Struct, kw_only=True):
    """Answer of /score."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Score]
    usage: PoolingUsage


class Document(msgspec.Struct):
    """A document, as sent."""

    text: str


class Ranked(msgspec.Struct, omit_defaults=True):
    """A document's index in the request, and its relevance."""

    index: int
    relevance_score: float
    document: Document | None = None


class Ranking(msgspec.Struct):
    """Answer of /rerank, most relevant documents first."""

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
    """Answer of /classify."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Classified]
    usage: PoolingUsage
