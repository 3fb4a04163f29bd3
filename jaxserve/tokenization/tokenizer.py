"""A model's tokenizer: text to ids, ids to text and bytes, chats to prompts."""

import importlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from jaxserve.errors import CheckpointError, ContextLengthError
from jaxserve.loading.diagnosis import broken_tokenizer, read_backend, read_object
from jaxserve.tokenization.sentencepiece_model import fast_folder

# Settings that say where a tokenizer was loaded from.
LOCAL_SETTINGS = frozenset({"name_or_path", "is_local", "local_files_only"})


class Tokenizer:
    """A tokenizer of a checkpoint folder, safe to use from several threads at once.

    transformers builds it, so that every class it knows means here what it means there; the work
    is done by the Rust `backend`, which the engine's detokenizer shares. Ids and texts are plain
    Python; nothing is padded or truncated. `pretrained` is transformers' own object.
    """

    def __init__(self, pretrained: Any) -> None:
        self.pretrained = pretrained
        self.backend: Backend = pretrained.backend_tokenizer
        # A tokenizer.json may ask for either; both would silently change prompts.
        self.backend.no_padding()
        self.backend.no_truncation()
        self._added: dict[int, bytes] = {
            token_id: token.content.encode()
            for token_id, token in self.backend.get_added_tokens_decoder().items()
        }
        self.special_ids = frozenset(
            token_id
            for token_id, token in self.backend.get_added_tokens_decoder().items()
            if token.special
        )
        # Read here, since it takes a tenth of a second that no request should wait for.
        self.max_token_bytes = max(len(token.encode()) for token in self.backend.get_vocab())

    @staticmethod
    def preload() -> None:
        """Import what `load` needs, which takes seconds, before there is anything to load."""
        _auto_tokenizer()

    @classmethod
    def load(cls, folder: Path, *, chat_template: str | None = None) -> "Tokenizer":
        """Load the tokenizer of a local folder, never running code from it.

        chat_template: an operator's Jinja template in place of the folder's own. Raises
        CheckpointError when the folder holds no tokenizer that works without its own code.
        """
        if not folder.is_dir():
            raise CheckpointError(f"no tokenizer: {folder} is not a folder")
        try:
            with fast_folder(folder) as source:
                pretrained = _auto_tokenizer().from_pretrained(
                    source, trust_remote_code=False, local_files_only=True
                )
        except Exception as error:  # tokenizers raises bare Exception on a malformed file
            raise CheckpointError(
                f"cannot load a tokenizer from {folder}: {broken_tokenizer(folder)}"
            ) from error
        if not pretrained.is_fast:
            raise CheckpointError(f"the tokenizer of {folder} has no fast (Rust) implementation")
        named = pretrained.chat_template
        if chat_template is not None:
            pretrained.chat_template = chat_template
        elif isinstance(named, dict) and len(named) == 1:
            # Whatever it is called, there is no other.
            (pretrained.chat_template,) = named.values()
        return cls(pretrained)

    def with_chat_template(self, template: str) -> "Tokenizer":
        """Return this tokenizer with another Jinja template of chats."""
        twin = copy(self)
        twin.pretrained = copy(self.pretrained)
        twin.pretrained.chat_template = template
        return twin

    @cached_property
    def vocab_size(self) -> int:
        """Ids the tokenizer knows, added ones included; a model's logits may be wider."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokenizer's end-of-text ids; a model's generation config may name more."""
        eos = self.pretrained.eos_token_id
        return () if eos is None else (eos,)

    @cached_property
    def pad_id(self) -> int | None:
        """The id of the padding token, None where there is none."""
        pad_id: int | None = self.pretrained.pad_token_id
        return pad_id

    @cached_property
    def special_texts(self) -> frozenset[str]:
        """The texts of all special tokens, which are left out of texts where they are skipped."""
        added = self.backend.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Special tokens by role, such as `bos_token`, as chat templates see them."""
        return dict(self.pretrained.special_tokens_map)

    @property
    def chat_template(self) -> str | Mapping[str, str] | None:
        """The Jinja template of chats, several by name, or None when the model is not for chat."""
        template: str | dict[str, str] | None = self.pretrained.chat_template
        return template

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The tokenizer's settings as JSON values, without paths of files on this machine."""
        settings = {
            name: _json_value(value)
            for name, value in self.pretrained.init_kwargs.items()
            if name not in LOCAL_SETTINGS and not name.endswith("_file")
        }
        settings["tokenizer_class"] = type(self.pretrained).__name__
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        return settings

    @cached_property
    def render_parameters(self) -> frozenset[str]:
        """The renderer's own parameters, which no variable of a template may be named."""
        return frozenset(inspect.signature(self.pretrained.apply_chat_template).parameters)

    def check_num_chars(self, num_chars: int, *, max_model_len: int, param: str) -> None:
        """Raise ContextLengthError when so long a text cannot fit in `max_model_len` tokens.

        Done before encoding, which takes time: even the longest tokens could not cover the text.
        """
        limit = max_model_len * self.max_token_bytes
        if num_chars > limit:
            raise ContextLengthError(
                f"This model's maximum context length is {max_model_len} tokens, which is at most"
                f" {limit} characters, but {param} has {num_chars}. Please reduce the length of the"
                " input prompt.",
                param=param,
            )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Return the ids of `text`, which must hold no lone surrogates.

        The GIL is released meanwhile (plain `encode` of the backend would hold it).
        """
        batch = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return tuple(batch[0].ids)

    def encode_parts(
        self,
        text: str,
        second: str | None = None,
        *,
        add_special_tokens: bool = True,
        max_tokens: int | None = None,
        part_limits: Sequence[int | None] = (),
        side: Literal["left", "right"] = "right",
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids of a text, or of a pair of them, and of which of the two each id is.

        part_limits: tokens kept of each text. max_tokens: of all together; the last text is cut to
        leave no more, if it can. side: where texts are cut.
        """
        texts = [text] if second is None else [text, second]
        parts = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        for part, limit in zip(parts, part_limits, strict=False):
            if limit is not None:
                part.truncate(limit, direction=side)
        if max_tokens is not None:
            num_others = sum(len(part) for part in parts[:-1])
            if add_special_tokens:
                num_others += self.backend.num_special_tokens_to_add(second is not None)
            parts[-1].truncate(max(max_tokens - num_others, 0), direction=side)
        join: Any = self.backend.post_process  # its stub is wrong
        whole = join(parts[0], None if second is None else parts[1], add_special_tokens)
        return tuple(whole.ids), tuple(whole.type_ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of `token_ids`; ids the tokenizer does not know add nothing."""
        return self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; joined, they are the text of a sequence.

        Empty for an id the tokenizer does not know. A token may be part of a character.
        """
        added = self._added.get(token_id)
        if added is not None:
            return added
        token = self.backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_of is not None and self._byte_of.keys() >= set(token):
            return bytes(self._byte_of[char] for char in token)
        if token.startswith("<0x") and token.endswith(">") and len(token) == len("<0x00>"):
            return bytes.fromhex(token[3:-1])
        return token.replace("▁", " ").encode()

    def token_text(self, token_id: int) -> str:
        """Return a token as text, with U+FFFD for what is only part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_string(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it, or an empty string for an unknown id."""
        return self.backend.id_to_token(token_id) or ""

    def bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the token sequences that spell `words`, at the start of a word and inside one.

        The rule is vLLM's: the word alone, and the word after a space where that is another
        sequence of the same length.
        """
        sequences: list[tuple[int, ...]] = []
        for word in words:
            inside = self.encode(word.lstrip(), add_special_tokens=False)
            start = self.encode(" " + word.lstrip(), add_special_tokens=False)
            if inside:
                sequences.append(inside)
            if start and len(start) == len(inside) and start[0] != inside[0]:
                sequences.append(start)
        return tuple(sequences)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt of a chat as text, rendered by transformers in its Jinja sandbox.

        variables: further names the template reads; the caller answers for their being harmless.
        Raises whatever the template raises: chat/template.py makes requests' errors of it.
        """
        prompt: str = self.pretrained.apply_chat_template(
            [dict(message) for message in messages],
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=False,
            **(variables or {}),
        )
        return prompt

    @cached_property
    def _byte_of(self) -> Mapping[str, int] | None:
        """The byte each character of a byte-level vocabulary stands for; None for other kinds."""
        decoder = self.backend.decoder
        # The decoder's state is its part of tokenizer.json, the only place that tells its kind.
        state = json.loads(decoder.__getstate__()) if decoder is not None else {}
        kinds = {state.get("type")} | {part["type"] for part in state.get("decoders", ())}
        if "ByteLevel" not in kinds:
            return None
        from transformers.convert_slow_tokenizer import bytes_to_unicode  # noqa: PLC0415

        chars: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
        return {char: byte for byte, char in chars.items()}


def _json_value(value: object) -> object:
    """Return a setting as JSON: an added token is its text, and anything unknown is a string."""
    match value:
        case AddedToken():
            return value.content
        case Mapping():
            return {str(name): _json_value(each) for name, each in value.items()}
        case list() | tuple():
            return [_json_value(each) for each in value]
        case None | bool() | int() | float() | str():
            return value
    return str(value)


def _auto_tokenizer() -> Any:
    """Return transformers' AutoTokenizer; the first call takes seconds."""
    # At the end of its import, transformers replaces itself in sys.modules. A thread that waited
    # for another thread's import gets the replaced module, which has no AutoTokenizer.
    importlib.import_module("transformers")
    return sys.modules["transformers"].AutoTokenizer


def truncated(token_ids: tuple[int, ...], limit: int, *, side: str) -> tuple[int, ...]:
    """Return at most `limit` ids, at least one; those that are too many go from this side."""
    return token_ids[-limit:] if side == "left" else token_ids[:limit]


def load_backend(folder: Path) -> Backend:
    """Load what of a tokenizer maps tokens to texts, in a fraction of the time of `Tokenizer.load`.

    That is so where one file holds it all: otherwise it is loaded whole, and raises the same.
    """
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    backend = read_backend(path)
    if backend is not None:
        known = backend.get_added_tokens_decoder()
        added = (read_object(settings) or {}).get("added_tokens_decoder") or {}
        if all(int(token_id) in known for token_id in added):
            return backend
    return Tokenizer.load(folder).backend
