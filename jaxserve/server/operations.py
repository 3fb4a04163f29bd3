"""What every endpoint reads and writes, for the OpenAPI document."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxserve.server.endpoints import (
    batches,
    chat_completions,
    completions,
    docs,
    files,
    health,
    invocations,
    messages,
    metrics,
    models,
    pooling,
    responses,
    tokenize,
    version,
)
from jaxserve.server.openapi import Operation
from jaxserve.server.protocol import (
    answers,
    message_answers,
    pooling_answers,
    response_answers,
)
from jaxserve.server.protocol import (
    batches as batch_protocol,
)
from jaxserve.server.protocol import (
    pooling as pooling_protocol,
)
from jaxserve.server.protocol.chat import ChatBody
from jaxserve.server.protocol.completions import CompletionBody
from jaxserve.server.protocol.messages import MessagesBody, MessagesPrompt
from jaxserve.server.protocol.responses import ResponsePrompt, ResponsesBody
from jaxserve.server.protocol.tokens import (
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
    chat_completions.create_chat_completion: Operation(
        bodies=(ChatBody,), answer=answers.ChatCompletion, event=answers.ChatChunk
    ),
    completions.create_completion: Operation(
        bodies=(CompletionBody,), answer=answers.Completion, event=answers.Completion
    ),
    responses.create_response: Operation(
        bodies=(ResponsesBody,),
        answer=response_answers.Response,
        event=response_answers.ResponseEvent,
    ),
    responses.count_input_tokens: Operation(
        bodies=(ResponsePrompt,), answer=response_answers.InputTokens
    ),
    responses.get_response: Operation(answer=response_answers.Response),
    responses.delete_response: Operation(answer=response_answers.ResponseDeleted),
    responses.cancel_response: Operation(answer=response_answers.Response),
    responses.list_input_items: Operation(answer=response_answers.ItemList),
    messages.create_message: Operation(
        bodies=(MessagesBody,),
        answer=message_answers.Message,
        event=message_answers.MessageStart,
    ),
    messages.count_tokens: Operation(bodies=(MessagesPrompt,), answer=message_answers.TokenCount),
    files.upload_file: Operation(form=FORM, answer=batch_protocol.File),
    files.list_files: Operation(
        answer=batch_protocol.FileList,
        query={**PAGE, "purpose": TEXT, "order": {"enum": ["asc", "desc"]}},
    ),
    files.get_file: Operation(answer=batch_protocol.File),
    files.get_file_content: Operation(media="application/octet-stream"),
    files.delete_file: Operation(answer=batch_protocol.FileDeleted),
    batches.create_batch: Operation(
        bodies=(batch_protocol.BatchBody,), answer=batch_protocol.Batch
    ),
    batches.list_batches: Operation(answer=batch_protocol.BatchList, query=PAGE),
    batches.get_batch: Operation(answer=batch_protocol.Batch),
    batches.cancel_batch: Operation(answer=batch_protocol.Batch),
    models.list_models: Operation(answer=answers.ModelList),
    models.get_model: Operation(answer=answers.Model),
    pooling.create_embeddings: Operation(
        bodies=(pooling_protocol.EmbeddingBody, pooling_protocol.EmbeddingChatBody),
        answer=pooling_answers.Embeddings,
    ),
    pooling.embed_cohere: Operation(
        bodies=(pooling_protocol.CohereBody,), answer=pooling_answers.CohereEmbeddings
    ),
    pooling.pool: Operation(
        bodies=(pooling_protocol.VectorsBody, pooling_protocol.VectorsChatBody),
        answer=pooling_answers.Pooling,
    ),
    pooling.score: Operation(bodies=(pooling_protocol.ScoreBody,), answer=pooling_answers.Scores),
    pooling.rerank: Operation(
        bodies=(pooling_protocol.RerankBody,), answer=pooling_answers.Ranking
    ),
    pooling.classify: Operation(
        bodies=(pooling_protocol.ClassifyBody, pooling_protocol.ClassifyChatBody),
        answer=pooling_answers.Classification,
    ),
    tokenize.tokenize: Operation(bodies=(TokenizeBody, TokenizeChatBody), answer=TokenizeAnswer),
    tokenize.detokenize: Operation(bodies=(DetokenizeBody,), answer=DetokenizeAnswer),
    tokenize.tokenizer_info: Operation(answer=dict[str, Any]),
    invocations.invoke: Operation(
        bodies=(
            ChatBody,
            CompletionBody,
            pooling_protocol.EmbeddingBody,
            pooling_protocol.EmbeddingChatBody,
            pooling_protocol.ScoreBody,
            pooling_protocol.RerankBody,
            pooling_protocol.ClassifyBody,
            pooling_protocol.ClassifyChatBody,
        ),
        answer=dict[str, Any],
    ),
    health.health: Operation(answer=health.Status),
    health.live: Operation(answer=health.Status),
    health.load: Operation(answer=health.Load),
    health.ready: Operation(answer=health.Status),
    metrics.metrics: Operation(media="text/plain"),
    version.version: Operation(answer=version.Version),
    docs.get_openapi: Operation(answer=dict[str, Any]),
    docs.get_docs: Operation(media="text/html"),
}
