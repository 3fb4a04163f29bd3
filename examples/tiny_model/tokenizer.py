"""The tokenizer, byte-level BPE with single digits learnt from the corpus; the chat template."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from examples.tiny_model.exchange import Conversation

VOCAB_SIZE = 2048
END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
CONTROL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
# Not "special": they are part of the answer that a tool parser reads, so decoding keeps them.
TOOL_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

TEMPLATE = Path(__file__).with_name("chat_template.jinja")

# Letters with one space before, one digit (so that sums line up), marks, spaces.
_PIECES = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def render(text: Conversation | str, *, add_generation_prompt: bool = False) -> str:
    """Write a conversation by the chat template; a plain text gets its end token."""
    if isinstance(text, str):
        return text + END_OF_TEXT
    tools: list[Any] = list(text.tools)
    # Any: declared to return a string, it returns the strings and the spans of the answers.
    rendered: Any = render_jinja_template(
        [text.messages],
        tools=tools or None,
        chat_template=TEMPLATE.read_text(),
        add_generation_prompt=add_generation_prompt,
    )
    return str(rendered[0][0])


def train_tokenizer(
    texts: Iterator[str], *, vocab_size: int = VOCAB_SIZE
) -> PreTrainedTokenizerFast:
    """Learn the merges from rendered conversations; same texts, same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(_PIECES, behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TOOL_TOKENS),
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=3,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TOOL_TOKENS])
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": [TURN_START]})
    fast.chat_template = TEMPLATE.read_text()
    return fast
