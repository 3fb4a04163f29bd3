"""Request and response types of all endpoints, for the OpenAPI document."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxserve.server.admin.docs import get_docs, get_openapi
from jaxserve.server.admin.health import Load, Status, health, live, load, ready
from jaxserve.server.admin.keys import (
    KeyAnswer,
    KeyBody,
    KeyList,
    RotationBody,
    create_key,
    list_keys,
    revoke_key,
    rotate_key,
)
from jaxserve.server.admin.metrics import metrics
from jaxserve.server.admin.models import get_model, list_models
from jaxserve.server.admin.openapi import Operation
from jaxserve.server.admin.version import Version, version
from jaxserve.server.batches.files import (
    delete_file,
    get_file,
    get_file_content,
    list_files,
    upload_file,
)
from jaxserve.server.batches.handler import cancel_batch, create_batch, get_batch, list_batches
from jaxserve.server.batches.schema import Batch, BatchBody, BatchList, File, FileDeleted, FileList
from jaxserve.server.chat.conversations import ConversationsBody, create_chat_completions
from jaxserve.server.chat.handler import create_chat_completion
from jaxserve.server.chat.schema import ChatBody
from jaxserve.server.completions.handler import create_completion
from jaxserve.server.completions.schema import CompletionBody
from jaxserve.server.invocations import invoke
from jaxserve.server.messages.answers import Message, MessageStart, TokenCount
from jaxserve.server.messages.handler import count_tokens, create_message
from jaxserve.server.messages.schema import MessagesBody, MessagesPrompt
from jaxserve.server.pooling.answers import (
    Classification,
    CohereEmbeddings,
    Embeddings,
    Pooling,
    Ranking,
    Scores,
)
from jaxserve.server.pooling.handler import (
    classify,
    create_embeddings,
    embed_cohere,
    pool,
    rerank,
    score,
)
from jaxserve.server.pooling.schema import (
    ClassifyBody,
    ClassifyChatBody,
    CohereBody,
    EmbeddingBody,
    EmbeddingChatBody,
    RerankBody,
    ScoreBody,
    VectorsBody,
    VectorsChatBody,
)
from jaxserve.server.responses.answers import (
    InputTokens,
    ItemList,
    Response,
    ResponseDeleted,
    ResponseEvent,
)
from jaxserve.server.responses.handler import (
    cancel_response,
    count_input_tokens,
    create_response,
    delete_response,
    get_response,
    list_input_items,
)
from jaxserve.server.responses.schema import ResponsePrompt, ResponsesBody
from jaxserve.server.schema.answers import ChatChunk, ChatCompletion, Completion, Model, ModelList
from jaxserve.server.tokenize.handler import detokenize, tokenize, tokenizer_info
from jaxserve.server.tokenize.schema import (
    DetokenizeAnswer,
    DetokenizeBody,
    TokenizeAnswer,
    TokenizeBody,
    TokenizeChatBody,
)

TEXT = {"type": "string"}
PAGE: dict[str, dict[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 100},
    "after": TEXT,
}
FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"enum": ["batch"]},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    },
}

OPERATIONS: Mapping[Callable[..., Any], Operation] = {
    create_chat_completion: Operation(bodies=(ChatBody,), answer=ChatCompletion, event=ChatChunk),
    create_chat_completions: Operation(bodies=(ConversationsBody,), answer=ChatCompletion),
    create_completion: Operation(bodies=(CompletionBody,), answer=Completion, event=Completion),
    create_response: Operation(
        bodies=(ResponsesBody,),
        answer=Response,
        event=ResponseEvent,
    ),
    count_input_tokens: Operation(bodies=(ResponsePrompt,), answer=InputTokens),
    get_response: Operation(answer=Response),
    delete_response: Operation(answer=ResponseDeleted),
    cancel_response: Operation(answer=Response),
    list_input_items: Operation(answer=ItemList),
    create_message: Operation(
        bodies=(MessagesBody,),
        answer=Message,
        event=MessageStart,
    ),
    count_tokens: Operation(bodies=(MessagesPrompt,), answer=TokenCount),
    upload_file: Operation(form=FORM, answer=File),
    list_files: Operation(
        answer=FileList,
        query={**PAGE, "purpose": TEXT, "order": {"enum": ["asc", "desc"]}},
    ),
    get_file: Operation(answer=File),
    get_file_content: Operation(media="application/octet-stream"),
    delete_file: Operation(answer=FileDeleted),
    create_batch: Operation(bodies=(BatchBody,), answer=Batch),
    list_batches: Operation(answer=BatchList, query=PAGE),
    get_batch: Operation(answer=Batch),
    cancel_batch: Operation(answer=Batch),
    create_key: Operation(bodies=(KeyBody,), answer=KeyAnswer),
    list_keys: Operation(answer=KeyList, query={"tenant": TEXT}),
    revoke_key: Operation(answer=KeyAnswer),
    rotate_key: Operation(bodies=(RotationBody,), answer=KeyAnswer),
    list_models: Operation(answer=ModelList),
    get_model: Operation(answer=Model),
    create_embeddings: Operation(
        bodies=(EmbeddingBody, EmbeddingChatBody),
        answer=Embeddings,
    ),
    embed_cohere: Operation(bodies=(CohereBody,), answer=CohereEmbeddings),
    pool: Operation(
        bodies=(VectorsBody, VectorsChatBody),
        answer=Pooling,
    ),
    score: Operation(bodies=(ScoreBody,), answer=Scores),
    rerank: Operation(bodies=(RerankBody,), answer=Ranking),
    classify: Operation(
        bodies=(ClassifyBody, ClassifyChatBody),
        answer=Classification,
    ),
    tokenize: Operation(bodies=(TokenizeBody, TokenizeChatBody), answer=TokenizeAnswer),
    detokenize: Operation(bodies=(DetokenizeBody,), answer=DetokenizeAnswer),
    tokenizer_info: Operation(answer=dict[str, Any]),
    invoke: Operation(
        bodies=(
            ChatBody,
            CompletionBody,
            EmbeddingBody,
            EmbeddingChatBody,
            ScoreBody,
            RerankBody,
            ClassifyBody,
            ClassifyChatBody,
        ),
        answer=dict[str, Any],
    ),
    health: Operation(answer=Status),
    live: Operation(answer=Status),
    load: Operation(answer=Load),
    ready: Operation(answer=Status),
    metrics: Operation(media="text/plain"),
    version: Operation(answer=Version),
    get_openapi: Operation(answer=dict[str, Any]),
    get_docs: Operation(media="text/html"),
}
