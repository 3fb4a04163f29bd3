"""How much a step computes of which prompts.

A step is to take about the same time whatever it computes, or who is decoding would notice. So
what counts is not the number of tokens but their work, in the units of `WorkModel`: a token deep
in a long prompt has much to attend to, and padding takes as long as tokens do.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxserve.api.engine_config import SchedulerConfig, WorkModel
from jaxserve.engine.sequence import Sequence

# A step is padded by no more than this factor where a smaller one would be full: what is left of
# its prompts takes the next step.
MAX_PADDING = 1.5
# What attention may always take, as a share of the step's tokens: prompts get on, however little.
MIN_ATTENTION = 0.25


@dataclass(frozen=True, slots=True)
class PrefillBudget:
    """What a step may take on of prompts: tokens, and the work of their attention."""

    num_tokens: int
    attention: float


def chunks(
    config: SchedulerConfig,
    prompts: list[Sequence],
    *,
    max_tokens: int,
    num_planned: int,
    num_decodes: int,
    decode_context: int,
) -> list[tuple[Sequence, int]]:
    """Return the chunks of prompts that a step computes: sequences and numbers of tokens.

    max_tokens: of the whole step. num_planned: tokens that the step computes already. num_decodes:
    sequences among them with one token. decode_context: tokens that these attend to, added up.
    """
    if config.whole_prompts:
        return whole(prompts, max_tokens)
    if all(sequence.is_jumping for sequence in prompts) and not are_jumps_worth(
        config,
        num_decodes=num_decodes,
        num_jumps=len(prompts),
        num_tokens=sum(sequence.length - sequence.num_scheduled for sequence in prompts),
    ):
        return [(sequence, 1) for sequence in prompts]
    budget = prefill_budget(
        config,
        max_tokens=max_tokens,
        num_decodes=num_planned,
        decode_context=decode_context,
        prompts=prompts,
    )
    return divide(prompts, budget, config.work)


def prefill_budget(
    config: SchedulerConfig,
    *,
    max_tokens: int,
    num_decodes: int,
    decode_context: int,
    prompts: list[Sequence],
) -> PrefillBudget:
    """Return what a step may take on of `prompts` beside its decodes.

    It is to take at most `max_decode_slowdown` times as long as without them, and while nothing
    decodes as long as `max_tokens` and as much attention. Of the sizes that steps are
    padded to, it gets that in which the first prompt gets on most. max_tokens: of the whole step.
    decode_context: tokens that the decodes attend to, added up.
    """
    work, most = config.work, max_tokens
    limit = 2.0 * most
    if num_decodes:
        # What the decodes attend to and draw takes its time either way.
        fixed = decode_context * work.decode_attention + num_decodes * work.sampling
        decodes = max(num_decodes, work.free_tokens) + fixed
        limit = min(limit, config.max_decode_slowdown * decodes - fixed)
    num_wanted = sum([prompt.length - prompt.num_scheduled for prompt in prompts])
    start = prompts[0].num_scheduled
    best: PrefillBudget | None = None
    most_tokens = 0.0
    for size in config.step_sizes or (min(most, max(int(limit), num_decodes + 1)),):
        room = min(size, most) - num_decodes
        if room <= 0:
            continue
        if best is not None and size > limit:
            break
        attention = max(limit - max(size, work.free_tokens), MIN_ATTENTION * size)
        num_tokens = min(room, num_wanted, work.tokens_within(start, attention))
        is_full = size <= MAX_PADDING * (num_decodes + num_tokens)
        if best is None or (is_full and num_tokens > most_tokens):
            best, most_tokens = PrefillBudget(room, attention), num_tokens
    assert best is not None, "no room for prompts beside the decodes"
    return best


def are_jumps_worth(
    config: SchedulerConfig, *, num_decodes: int, num_jumps: int, num_tokens: int
) -> bool:
    """Return whether a step is to compute all tokens that grammars force, and not the next of each.

    That saves the sequences steps of their own, but the step is padded further, and takes longer
    for everybody. num_decodes: other sequences, of a token each. num_jumps and num_tokens:
    sequences that lack forced tokens, and how many tokens.
    """
    num_rows = num_decodes + num_jumps
    sizes = (size for size in config.step_sizes if size >= num_decodes + num_tokens)
    size = next(sizes, num_decodes + num_tokens)
    free_tokens = config.work.free_tokens
    # Times, in those of a token. A sequence's share of a step is what a step less saves.
    shortest = max(num_rows, free_tokens)
    saved = (num_tokens - num_jumps) * shortest / num_rows
    return max(size, free_tokens) - shortest <= saved


def divide(
    prompts: list[Sequence], budget: PrefillBudget, work: WorkModel
) -> list[tuple[Sequence, int]]:
    """Divide a budget among prompts, given in order of precedence; return the tokens of each.

    One half goes to them in this order, the rest to those that lack least. So a short prompt does
    not wait for a long one, and no prompt waits more than twice as long as in a queue.
    """
    shares: dict[Sequence, int] = {}

    def give(sequences: Iterable[Sequence], num_tokens: int, attention: float) -> tuple[int, float]:
        """Give all that they lack to one after the other; return what is left."""
        for sequence in sequences:
            had = shares.get(sequence, 0)
            start = sequence.num_scheduled + had
            num_left = sequence.length - start
            count = int(min(num_left, num_tokens, work.tokens_within(start, attention)))
            if count > 0:
                shares[sequence] = had + count
                num_tokens -= count
                attention -= work.attention(start, count)
            if count < num_left:
                break
        return num_tokens, attention

    if len(prompts) == 1:
        give(prompts, budget.num_tokens, budget.attention)
    else:
        # Rounded up, so that a budget of one token goes to the first.
        half = (budget.num_tokens + 1) // 2
        num_tokens, attention = give(prompts, half, budget.attention / 2)
        num_tokens += budget.num_tokens - half
        give(sorted(prompts, key=_num_left), num_tokens, attention + budget.attention / 2)
    if not shares:
        shares[prompts[0]] = 1  # deep in its context, one token takes more than there is
    return list(shares.items())


def whole(prompts: list[Sequence], num_tokens: int) -> list[tuple[Sequence, int]]:
    """Return the prompts that a step computes whole, in order of precedence, with their tokens.

    The first is always among them; one that does not fit lets shorter ones pass.
    """
    shares: list[tuple[Sequence, int]] = []
    for sequence in prompts:
        if sequence.length <= num_tokens:
            shares.append((sequence, sequence.length))
            num_tokens -= sequence.length
    assert shares[0][0] is prompts[0], "a step is too small for a prompt"
    return shares


def _num_left(sequence: Sequence) -> int:
    return sequence.length - sequence.num_scheduled
