"""Named cases with realistic shapes, for tests, benchmarks and tuning."""

from dataclasses import dataclass, replace

from pallas_kernels.paged_attention.batch import AttentionConfig


@dataclass(frozen=True, kw_only=True)
class Case:
    """A step of one layer: configuration, and the sequences with their rows.

    sequences: (rows in this step, total tokens) of each sequence; a sequence without rows is
    padding, whatever its length. is_decode: whether the step promises at most one row per sequence
    (see PagedBatch); then padding rows are padding sequences too. table_width: pages per row of the
    page table; None for as many as the longest sequence has.
    """

    config: AttentionConfig
    sequences: tuple[tuple[int, int], ...]
    is_decode: bool = False
    padding_rows: int = 0
    padding_sequences: int = 0
    table_width: int | None = None

    def __post_init__(self) -> None:
        if self.is_decode and any(rows != 1 for rows, _ in self.sequences):
            raise ValueError(f"sequences of a decode step have one row, got {self.sequences}")
        if self.is_decode and self.padding_rows != self.padding_sequences:
            raise ValueError(
                f"padding_rows of a decode step must be its padding_sequences"
                f" ({self.padding_sequences}), got {self.padding_rows}"
            )

    @property
    def num_rows(self) -> int:
        """Number of rows without padding."""
        return sum(rows for rows, _ in self.sequences)

    @property
    def num_tokens(self) -> int:
        """Number of rows of the step, including padding."""
        return self.num_rows + self.padding_rows

    @property
    def num_sequences(self) -> int:
        """Number of rows of the page table, including padding."""
        return len(self.sequences) + self.padding_sequences

    @property
    def max_query_length(self) -> int:
        """As in PagedBatch."""
        return 1 if self.is_decode else self.num_tokens

    @property
    def max_pages(self) -> int:
        """Width of the page table."""
        needed = max((self.pages_for(total) for _, total in self.sequences), default=1)
        return needed if self.table_width is None else self.table_width

    def pages_for(self, num_tokens: int) -> int:
        """Return how many pages `num_tokens` tokens need."""
        return -(-num_tokens // self.config.page_size)

    @property
    def num_pairs(self) -> int:
        """Number of (row, visible key) pairs of all sequences, for one head."""
        window = self.config.sliding_window
        pairs = 0
        for rows, total in self.sequences:
            first = total - rows + 1  # keys that the first row sees without a window
            if window is None or window >= total:
                pairs += rows * (first + total) // 2
            else:
                short = max(0, min(window, total) - first + 1)  # rows that see less than the window
                pairs += short * (2 * first + short - 1) // 2 + (rows - short) * window
        return pairs

    @property
    def num_keys(self) -> int:
        """Number of keys that at least one row sees, over all sequences: the least to be read."""
        window = self.config.sliding_window
        keys = 0
        for rows, total in self.sequences:
            if rows:
                keys += total if window is None else min(total, rows + window - 1)
        return keys


def _layer(
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: bool = False,
    value_dim: int | None = None,
) -> AttentionConfig:
    return AttentionConfig(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        page_size=64,
        dtype="bfloat16",
        cache_dtype="bfloat16",
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        sinks=sinks,
        value_dim=value_dim,
    )


# One layer of each model; the most demanding one if layers differ.
LAYERS = {
    "llama-2-7b": _layer(32, 32, 128),
    "llama-3.1-8b": _layer(32, 8, 128),
    "llama-3.1-70b": _layer(64, 8, 128),
    "qwen3-0.6b": _layer(16, 8, 128),
    "qwen3-8b": _layer(32, 8, 128),
    "qwen3-32b": _layer(64, 8, 128),
    "gemma-2b": _layer(8, 1, 256),
    "gemma-2-9b": _layer(16, 8, 256, sliding_window=4096, soft_cap=50.0),
    "phi-3-mini": _layer(32, 32, 96, sliding_window=2047),
    "gpt-oss-20b": _layer(64, 8, 64, sliding_window=128, sinks=True),
    "nemotron-4-340b": _layer(96, 8, 192),
    "deepseek-v3": _layer(128, 1, 576, value_dim=512),
}


def shard(config: AttentionConfig, devices: int) -> AttentionConfig:
    """Return the configuration of a layer on one of `devices`. Latents are on all of them."""
    kv_heads = config.kv_heads if config.value_dim else config.kv_heads // devices
    return replace(config, heads=config.heads // devices, kv_heads=kv_heads)


def decode(config: AttentionConfig, lengths: tuple[int, ...], *, padding: int = 0) -> Case:
    """Return a decode step of one row per sequence; lengths include the new token."""
    return Case(
        config=config,
        sequences=tuple((1, length) for length in lengths),
        is_decode=True,
        padding_rows=padding,
        padding_sequences=padding,
    )


def ragged(config: AttentionConfig, *sequences: tuple[int, int], width: int | None = None) -> Case:
    """Return a step with (rows, total tokens) per sequence, and some padding."""
    return Case(
        config=config, sequences=sequences, padding_rows=3, padding_sequences=2, table_width=width
    )


def _tests() -> dict[str, Case]:
    """Return small steps that together cover the interface of `attend`."""
    llama = replace(shard(LAYERS["llama-3.1-8b"], 4), page_size=16)
    qwen = shard(LAYERS["qwen3-0.6b"], 8)
    gemma = replace(shard(LAYERS["gemma-2-9b"], 8), sliding_window=21, soft_cap=5.0, page_size=32)
    oss = replace(shard(LAYERS["gpt-oss-20b"], 8), sliding_window=20, page_size=16)
    phi = replace(shard(LAYERS["phi-3-mini"], 16), sliding_window=70)
    nemotron = shard(LAYERS["nemotron-4-340b"], 8)
    deepseek = replace(shard(LAYERS["deepseek-v3"], 8), page_size=32)
    fp8 = replace(nemotron, cache_dtype="float8_e4m3fn", page_size=32)
    int8 = replace(qwen, cache_dtype="int8", page_size=128)
    mixed = ((1, 9), (1, 50), (17, 60), (0, 0), (33, 33), (0, 40), (5, 5))
    # The window ends inside a tile of keys, whatever its size. The last two rows of the chunk see
    # nothing in the tile that its first row starts in: they start at key 128, and it at key 127.
    past_window, window = ((3, 196), (1, 150)), 67
    return {
        "decode": decode(llama, (1, 16, 17, 90), padding=2),
        "decode_of_one": decode(qwen, (100,)),
        "decode_of_unequal_lengths": decode(qwen, (3, 500, 64, 65)),
        "decode_in_a_window": decode(replace(llama, sliding_window=17), (150, 3, 33)),
        "decode_with_sinks_in_a_window": decode(oss, (1, 90, 20, 21)),
        "decode_under_a_soft_cap": decode(replace(gemma, sliding_window=None), (40, 7)),
        "decode_of_multi_query": decode(LAYERS["gemma-2b"], (70, 12)),
        "decode_of_multi_head": decode(replace(phi, sliding_window=None), (70, 12)),
        "decode_of_head_dim_192": decode(nemotron, (70, 12)),
        "decode_of_large_pages": decode(replace(qwen, page_size=128), (300, 129)),
        "decode_from_float8": decode(fp8, (70, 12), padding=1),
        "decode_from_int8": decode(int8, (300, 12), padding=1),
        "decode_of_float32": decode(
            replace(qwen, dtype="float32", cache_dtype="float32"), (70, 12), padding=1
        ),
        "decode_of_latents": decode(deepseek, (70, 1, 33), padding=1),
        "decode_of_padding_only": decode(qwen, (), padding=2),
        "prefill": ragged(llama, (13, 13), (70, 70)),
        "prefill_of_many_rows": ragged(phi, (150, 150), (1, 80), width=5),
        "chunk_in_the_middle": ragged(qwen, (20, 150), (64, 128)),
        "mixed": ragged(llama, *mixed),
        "mixed_of_few_rows": ragged(qwen, (4, 70), (0, 0), (1, 1), (3, 3)),
        "mixed_in_a_window": ragged(replace(llama, sliding_window=9), (1, 150), (40, 90), (1, 3)),
        "mixed_with_sinks_in_a_window": ragged(oss, *mixed),
        "mixed_under_a_soft_cap_in_a_window": ragged(gemma, *mixed),
        "mixed_of_multi_query": ragged(LAYERS["gemma-2b"], (1, 30), (12, 12)),
        "mixed_of_multi_head": ragged(phi, (1, 80), (12, 90)),
        "mixed_of_head_dim_192": ragged(nemotron, (1, 30), (12, 12)),
        "mixed_of_large_pages": ragged(replace(qwen, page_size=128), (1, 300), (50, 200)),
        "mixed_from_float8": ragged(fp8, (1, 70), (33, 40), (0, 0), (1, 1)),
        "mixed_from_int8": ragged(int8, (1, 300), (50, 200), (0, 0), (1, 1)),
        "mixed_of_float32": ragged(
            replace(qwen, dtype="float32", cache_dtype="float32"), (1, 70), (33, 40)
        ),
        "mixed_of_float16": ragged(
            replace(qwen, dtype="float16", cache_dtype="float16"), (1, 70), (33, 40)
        ),
        "mixed_of_latents": ragged(deepseek, (1, 30), (40, 60), (0, 0), (5, 5)),
        "mixed_of_float8_latents": ragged(
            replace(deepseek, cache_dtype="float8_e4m3fn"), (1, 30), (33, 33)
        ),
        "mixed_of_padding_only": ragged(qwen),
        "odd_table_width": ragged(llama, (30, 150), width=19),
        **{
            f"past_the_window_of_head_dim_{head_dim}_and_group_{group}": ragged(
                replace(_layer(group, 1, head_dim, sliding_window=window), page_size=32),
                *past_window,
            )
            for head_dim, group in ((64, 1), (96, 2), (128, 4), (192, 12), (224, 1), (256, 64))
        },
        # As above at key 64, with few enough rows to be decoded together.
        "few_rows_past_the_window": ragged(
            replace(qwen, head_dim=64, sliding_window=9), (4, 75), (2, 150), (1, 1)
        ),
    }


def _benchmarks() -> dict[str, Case]:
    """Return steps of a server, by operation, model and size; bfloat16 unless named otherwise."""
    batches = {  # (sequences, tokens of each)
        "llama-3.1-8b": (
            *((1, 128), (1, 4096), (1, 32768), (8, 1024), (8, 32768), (64, 1024), (64, 4096)),
            *((256, 128), (256, 1024), (256, 4096)),
        ),
        "llama-3.1-70b": ((1, 4096), (64, 4096)),
        "llama-2-7b": ((1, 4096), (64, 1024)),
        "gemma-2-9b": ((1, 32768), (64, 4096)),
        "gpt-oss-20b": ((64, 4096),),
    }
    cases = {
        f"decode/{model}/{batch}x{length}": decode(LAYERS[model], (length,) * batch)
        for model, sizes in batches.items()
        for batch, length in sizes
    }
    llama, qwen = LAYERS["llama-3.1-8b"], LAYERS["qwen3-32b"]
    unequal = tuple(128 * 2 ** (i % 9) for i in range(64))  # 128 to 32768
    cases["decode/llama-3.1-8b/64xunequal"] = decode(llama, unequal)
    cases["decode/qwen3-32b/tp8/64x4096"] = decode(shard(qwen, 8), (4096,) * 64)
    for dtype in ("float8_e4m3fn", "int8"):
        quantized = replace(llama, cache_dtype=dtype)
        cases[f"decode/llama-3.1-8b/{dtype}/64x4096"] = decode(quantized, (4096,) * 64)
    for model in ("llama-3.1-8b", "llama-3.1-70b", "gemma-2-9b"):
        for length in (4096, 16384):
            sequences = ((length, length),)
            name = f"prefill/{model}/1x{length}"
            cases[name] = Case(config=LAYERS[model], sequences=sequences)
    short, chunk = ((512, 512),) * 8, ((2048, 32768),)
    cases["prefill/llama-3.1-8b/8x512"] = Case(config=llama, sequences=short)
    cases["prefill/llama-3.1-8b/2048of32768"] = Case(config=llama, sequences=chunk)
    mixed = ((1, 2048),) * 64 + ((960, 960), (1024, 8192))
    cases["mixed/llama-3.1-8b/64x2048+2chunks"] = Case(config=llama, sequences=mixed)
    return cases


def shrunk(case: Case) -> Case:
    """Return a smaller case of the same kind, to simulate on a CPU: one KV head, few rows."""
    config = case.config
    window = config.sliding_window
    small = replace(
        shard(config, config.kv_heads),
        page_size=32,
        sliding_window=None if window is None else -(-window // 64),
    )
    sequences = tuple((-(-rows // 64), -(-total // 64)) for rows, total in case.sequences[-4:])
    return replace(case, config=small, sequences=sequences)


TESTS = _tests()
BENCHMARKS = _benchmarks()
