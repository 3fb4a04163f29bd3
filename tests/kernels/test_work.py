"""Work lists against what they are to cover, computed one by one."""

from collections import defaultdict
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.paged_attention import PagedBatch
from pallas_kernels.paged_attention.mosaic_gpu import work
from pallas_kernels.paged_attention.mosaic_gpu.work import (
    END_ITEM,
    FIRST_ITEM,
    FIRST_POSITION,
    FIRST_ROW,
    KEY_END,
    KEY_START,
    KV_LENGTH,
    NUM_ROWS,
    QUERY,
    SEQUENCE,
)

TILE = 64
SPLIT = 256
NUM_SEQUENCES = 6
NUM_TOKENS = 500
TABLE_TOKENS = 20_000


@dataclass(frozen=True)
class Step:
    """(rows, tokens) of each sequence; padding makes NUM_TOKENS rows of them."""

    sequences: list[tuple[int, int]]

    @property
    def rows(self) -> list[int]:
        return [rows for rows, _ in self.sequences]

    def batch(self) -> PagedBatch:
        lengths = [total for _, total in self.sequences]
        of_rows = np.repeat(np.arange(NUM_SEQUENCES), self.rows)
        positions = [np.arange(total - rows, total) for rows, total in self.sequences]
        padding = (0, NUM_TOKENS - sum(self.rows))
        return PagedBatch(
            page_table=jnp.zeros((NUM_SEQUENCES, 1), jnp.int32),
            query_starts=jnp.asarray(np.cumsum([0, *self.rows]), jnp.int32),
            kv_lengths=jnp.asarray(lengths, jnp.int32),
            row_sequences=jnp.asarray(np.pad(of_rows, padding), jnp.int32),
            positions=jnp.asarray(np.pad(np.concatenate(positions), padding), jnp.int32),
            max_query_length=300,
        )


@st.composite
def steps(draw: st.DrawFn) -> Step:
    sequences = []
    for _ in range(NUM_SEQUENCES):
        rows = draw(st.sampled_from([0, 1, 1, 2, 3, 40, 83]))
        before = draw(st.sampled_from([0, 1, 63, 64, 1000, TABLE_TOKENS - 300]))
        sequences.append((rows, rows + before))
    return Step(sequences)


def first_key(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


def live(items: jax.Array) -> list[list[int]]:
    return [item for item in np.asarray(items).tolist() if item[NUM_ROWS]]


def list_decode(step: Step, query_tokens: int, window: int | None, cores: int) -> work.DecodeWork:
    num_items = work.num_decode_items(
        num_sequences=NUM_SEQUENCES,
        table_tokens=TABLE_TOKENS,
        split_tokens=SPLIT,
        cores=cores,
        blocks=work.Blocks(decode_tokens=1, decode_keys=TILE, prefill_tokens=1, item_blocks=2),
    )
    return work.decode_work(
        step.batch(),
        num_tokens=NUM_TOKENS,
        query_tokens=query_tokens,
        num_items=num_items,
        tile_tokens=TILE,
        split_tokens=SPLIT,
        sliding_window=window,
    )


QUERY_TOKENS = st.sampled_from([1, 3])
WINDOWS = st.sampled_from([None, 1, 100, 5000])
CORES = st.sampled_from([1, 8, 132])


@settings(max_examples=50)
@given(step=steps(), query_tokens=QUERY_TOKENS, window=WINDOWS, cores=CORES)
def test_splits_cover_the_keys_of_short_sequences_once(
    step: Step, query_tokens: int, window: int | None, cores: int
) -> None:
    parts = defaultdict(list)
    for item in live(list_decode(step, query_tokens, window, cores).items):
        sequence = item[SEQUENCE]
        rows, total = step.sequences[sequence]
        assert item[FIRST_ROW] == sum(step.rows[:sequence])
        assert item[NUM_ROWS] == rows
        assert item[FIRST_POSITION] == total - rows
        assert item[KV_LENGTH] == total
        parts[sequence].append((item[KEY_START], item[KEY_END]))
    short = {s for s, rows in enumerate(step.rows) if 0 < rows <= query_tokens}
    assert parts.keys() == short
    for sequence, ranges in parts.items():
        rows, total = step.sequences[sequence]
        starts, ends = zip(*ranges, strict=True)
        assert starts[0] == first_key(total - rows, window) // TILE * TILE
        assert ends[-1] == total
        assert starts[1:] == ends[:-1]
        assert all(start % TILE == 0 and start < end for start, end in ranges)


@settings(max_examples=50)
@given(step=steps(), query_tokens=QUERY_TOKENS, cores=CORES)
def test_every_decoded_row_knows_its_items(step: Step, query_tokens: int, cores: int) -> None:
    todo = list_decode(step, query_tokens, None, cores)
    items, row_items = np.asarray(todo.items).tolist(), np.asarray(todo.row_items).tolist()
    row = 0
    for sequence, rows in enumerate(step.rows):
        mine = [i for i, item in enumerate(items) if item[NUM_ROWS] and item[SEQUENCE] == sequence]
        for query in range(rows):
            found = row_items[row]
            assert list(range(found[FIRST_ITEM], found[END_ITEM])) == mine
            assert not mine or found[QUERY] == query
            row += 1
    assert all(found[FIRST_ITEM] == found[END_ITEM] for found in row_items[row:])


def test_one_long_sequence_is_split_over_all_cores() -> None:
    step = Step([(1, 18_000)] + [(0, 0)] * (NUM_SEQUENCES - 1))
    lengths = [
        item[KEY_END] - item[KEY_START] for item in live(list_decode(step, 1, None, 8).items)
    ]
    assert len(lengths) == 16  # for each of 2 KV heads: 4 thread blocks on each of 8 cores
    assert max(lengths) - min(lengths) <= TILE


def test_short_sequences_are_not_split() -> None:
    step = Step([(1, SPLIT)] * NUM_SEQUENCES)
    assert len(live(list_decode(step, 1, None, 132).items)) == NUM_SEQUENCES


@settings(max_examples=50)
@given(
    step=steps(), decoded=st.sampled_from([1, 3]), window=WINDOWS, block=st.sampled_from([2, 32])
)
def test_blocks_cover_the_rows_that_are_not_decoded_once(
    step: Step, decoded: int, window: int | None, block: int
) -> None:
    items = work.prefill_work(
        step.batch(),
        num_tokens=NUM_TOKENS,
        decoded_tokens=decoded,
        block_tokens=block,
        sliding_window=window,
    )
    wanted: dict[int, tuple[int, int]] = {}  # position and sequence by row
    row = 0
    for sequence, (rows, total) in enumerate(step.sequences):
        if rows > decoded:
            wanted |= {row + i: (total - rows + i, sequence) for i in range(rows)}
        row += rows
    padding = set(range(row, NUM_TOKENS))
    covered: list[int] = []
    for item in live(items):
        first, end = item[FIRST_ROW], item[FIRST_ROW] + item[NUM_ROWS]
        assert item[NUM_ROWS] <= block
        covered += range(first, end)
        if first in padding:
            assert item[KEY_START] == item[KEY_END] == 0
            continue
        for row in range(first, end):
            assert wanted[row] == (item[FIRST_POSITION] + row - first, item[SEQUENCE])
        assert item[KEY_START] == first_key(item[FIRST_POSITION], window)
        assert item[KEY_END] == item[FIRST_POSITION] + item[NUM_ROWS]
        assert item[KV_LENGTH] == step.sequences[item[SEQUENCE]][1]
    assert sorted(covered) == sorted(wanted.keys() | padding)


def test_blocks_with_the_most_keys_come_first() -> None:
    step = Step([(300, 300)] + [(0, 0)] * (NUM_SEQUENCES - 1))
    items = work.prefill_work(
        step.batch(), num_tokens=NUM_TOKENS, decoded_tokens=1, block_tokens=32, sliding_window=None
    )
    ends = [item[KEY_END] for item in live(items) if item[KEY_END]]
    assert ends == sorted(ends, reverse=True)
