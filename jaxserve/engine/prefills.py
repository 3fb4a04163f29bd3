"""Chunked prefill: choose how many tokens of each prompt a step computes.

Steps should take about equally long, so that decoding sequences get their tokens at a steady rate.
Prompt chunks are therefore limited by their work, in the units of `WorkModel`, and not by their
number of tokens. Attention costs more for tokens deep in a long prompt, and padding costs as much
as tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxserve.api.engine_config import SchedulerConfig, WorkModel
from jaxserve.engine.sequence import Sequence

# Largest padded size of a step relative to its tokens, if a smaller step would be full. The rest of
# the prompts is left to the next step.
MAX_PADDING = 1.5
# Least budget of attention work per token of the step, so that prompts always make progress.
MIN_ATTENTION = 0.25


@dataclass(frozen=True, slots=True)
class PrefillBudget:
    """Budget of a step for prompts: number of tokens, and attention work (see WorkModel)."""

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
    """Return the prompts that a step computes, each with its number of tokens.

    max_tokens: limit of the whole step. num_planned: tokens planned already. num_decodes: decoding
    sequences among them, of one token each. decode_context: sum of their context lengths.
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
    """Return the budget of a step for `prompts` beside its decodes.

    The step takes at most `max_decode_slowdown` times as long as with the decodes alone. Without
    decodes, its work is at most `max_tokens` tokens and as much attention again. Among the sizes
    that steps are padded to, choose the one that computes most tokens of the first prompt.

    max_tokens: limit of the whole step. decode_context: sum of the decodes' context lengths.
    """
    work, most = config.work, max_tokens
    limit = 2.0 * most
    if num_decodes:
        # The decodes' attention and sampling take this time in any case.
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
    """Return whether to compute all tokens that grammars force in one step.

    The alternative is one token of each sequence per step. Computing all of them saves steps, but
    pads this step further, which slows down every sequence in it. num_decodes: other sequences,
    with one token each. num_jumps, num_tokens: sequences with forced tokens, and the sum of those.
    """
    num_rows = num_decodes + num_jumps
    sizes = (size for size in config.step_sizes if size >= num_decodes + num_tokens)
    size = next(sizes, num_decodes + num_tokens)
    free_tokens = config.work.free_tokens
    # Times in units of one token. One step less saves a sequence its share of a step.
    shortest = max(num_rows, free_tokens)
    saved = (num_tokens - num_jumps) * shortest / num_rows
    return max(size, free_tokens) - shortest <= saved


def divide(
    prompts: list[Sequence], budget: PrefillBudget, work: WorkModel
) -> list[tuple[Sequence, int]]:
    """Divide a budget among prompts; return each prompt that gets tokens, with their number.

    prompts: in order of precedence. One half of the budget is given in this order, the rest to the
    prompts with the fewest tokens left. So a short prompt does not wait for a long one, and no
    prompt waits more than twice as long as with first come, first served.
    """
    shares: dict[Sequence, int] = {}

    def give(sequences: Iterable[Sequence], num_tokens: int, attention: float) -> tuple[int, float]:
        """Give each sequence all that it lacks, one after the other; return the budget left."""
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
        # Rounded up, so that a budget of one token goes to the first prompt.
        half = (budget.num_tokens + 1) // 2
        num_tokens, attention = give(prompts, half, budget.attention / 2)
        num_tokens += budget.num_tokens - half
        give(sorted(prompts, key=_num_left), num_tokens, attention + budget.attention / 2)
    if not shares:
        shares[prompts[0]] = 1  # with a long context, one token can exceed the budget
    return list(shares.items())


def whole(prompts: list[Sequence], num_tokens: int) -> list[tuple[Sequence, int]]:
    """Return the prompts that a step computes as a whole, each with its number of tokens.

    prompts: in order of precedence. The first is always included; a prompt that does not fit is
    skipped, so that shorter ones can run.
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
