"""Convert SentencePiece models, which the Rust backend does not read.

transformers 5 converts only known classes, and loses the space before a text. The conversion here
follows the settings in the model file (Kudo and Richardson, 2018, arXiv:1808.06226).
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

MODEL = "tokenizer.model"
_SETTINGS = "tokenizer_config.json"
_COPIED = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
# Settings of the slow tokenizer classes.
_OF_SLOW_CLASSES = ("auto_map", "sp_model_kwargs", "legacy", "add_prefix_space", "from_slow")
_SPACE = "▁"
# Types of pieces in the protocol buffer.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6


@contextmanager
def fast_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder from which transformers loads the tokenizer with its Rust backend.

    This is `folder` itself unless it has only a SentencePiece model. Raises ValueError if the file
    is not a SentencePiece model, or its type is neither BPE nor unigram.
    """
    if (folder / "tokenizer.json").is_file() or not (folder / MODEL).is_file():
        yield folder
        return
    path = folder / _SETTINGS
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="jaxserve-tokenizer-") as made:
        proto = _read(folder / MODEL)
        _convert(proto, settings).save(f"{made}/tokenizer.json")
        roles = {
            f"{role}_token": proto.pieces[index].piece
            for role in ("bos", "eos", "unk", "pad")
            if (index := getattr(proto.trainer_spec, f"{role}_id")) >= 0
        }
        kept = {key: value for key, value in settings.items() if key not in _OF_SLOW_CLASSES}
        written = {**roles, **kept, "tokenizer_class": "PreTrainedTokenizerFast"}
        Path(made, _SETTINGS).write_text(json.dumps(written), "utf-8")
        for name in _COPIED:
            if (folder / name).is_file():
                shutil.copy(folder / name, made)
        yield Path(made)


def is_model(path: Path) -> bool:
    """Whether a file is a SentencePiece model."""
    try:
        _read(path)
    except ValueError:
        return False
    return True


def _read(path: Path) -> Any:
    """Return the parsed protocol buffer. Raises ValueError."""
    # Imported here because few models need them, and by name because they have no types.
    decode_error = import_module("google.protobuf.message").DecodeError
    proto = import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except decode_error as error:
        raise ValueError(f"{path.name} is not a SentencePiece model") from error
    if not proto.pieces:
        raise ValueError(f"{path.name} is not a SentencePiece model")
    return proto


def _convert(proto: Any, settings: Mapping[str, Any]) -> Backend:
    """Return the tokenizer that a SentencePiece model describes."""
    backend = Backend(_model(proto))
    spec = proto.normalizer_spec
    has_prefix = spec.add_dummy_prefix and settings.get("add_prefix_space") is not False
    is_legacy = settings.get("legacy") is not False
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if is_legacy:
        # As in transformers, text after a special token also gets a leading space.
        steps += [normalizers.Prepend(_SPACE)] if has_prefix else []
        steps.append(normalizers.Replace(" ", _SPACE))
    else:
        scheme = "first" if has_prefix else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, scheme, split=False)
    backend.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type != _USER_DEFINED)
            for piece in proto.pieces
            if piece.type in {_UNKNOWN, _CONTROL, _USER_DEFINED}
        ]
    )
    backend.post_processor = _around_texts(proto, settings)
    return backend


def _model(proto: Any) -> models.Model:
    spec = proto.trainer_spec
    match spec.model_type:
        case 1:  # unigram
            scored = [(piece.piece, piece.score) for piece in proto.pieces]
            return models.Unigram(scored, spec.unk_id, spec.byte_fallback)
        case 2:  # BPE
            return models.BPE(
                {piece.piece: index for index, piece in enumerate(proto.pieces)},
                _merges(proto),
                unk_token=spec.unk_piece,
                fuse_unk=True,
                byte_fallback=spec.byte_fallback,
            )
        case _:
            raise ValueError(f"{MODEL} must be of type BPE or unigram")


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Return all pairs of pieces that form a piece, ordered by its score.

    A SentencePiece model has scores in place of merges: any two pieces that form one may merge.
    """
    strange = {_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE}
    index_of = {p.piece: i for i, p in enumerate(proto.pieces) if p.type not in strange}
    ranked = sorted(index_of, key=lambda piece: -proto.pieces[index_of[piece]].score)
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in index_of and piece[cut:] in index_of
    ]


def _around_texts(proto: Any, settings: Mapping[str, Any]) -> processors.TemplateProcessing | None:
    """Return the processor that adds begin and end tokens; the begin token is on by default."""
    spec = proto.trainer_spec
    begin = spec.bos_id if settings.get("add_bos_token", True) else -1
    end = spec.eos_id if settings.get("add_eos_token", False) else -1
    ids = [index for index in (begin, end) if index >= 0]
    if not ids:
        return None
    first = [proto.pieces[begin].piece] if begin >= 0 else []
    last = [proto.pieces[end].piece] if end >= 0 else []
    return processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *first, "$B:1", *last],
        special_tokens=[(proto.pieces[index].piece, index) for index in ids],
    )
