"""Paged attention written out in float64 numpy: what every backend must compute."""

import numpy as np

from pallas_kernels.paged_attention.worlds import World, quantize


def written(world: World) -> np.ndarray:
    """Return the cache, in the reference's layout, after the new keys and values are in it."""
    config = world.case.config
    cache = world.cache.copy()
    page_table = np.asarray(world.batch.page_table)
    live = slice(world.case.num_rows)
    new = [quantize(world.k[live], world.k_scale, config.cache_dtype)]
    if world.v is not None:
        new.append(quantize(world.v[live], world.v_scale, config.cache_dtype))
    row = 0
    for s, (rows, total) in enumerate(world.case.sequences):
        for position in range(total - rows, total):
            page = page_table[s, position // config.page_size]
            for plane in range(len(new)):
                cache[plane, page, :, position % config.page_size] = new[plane][row]
            row += 1
    return cache


def attended(world: World) -> np.ndarray:
    """Return the results in float64; rows of padding are zeros."""
    config = world.case.config
    cache, page_table = written(world), np.asarray(world.batch.page_table)
    out = np.zeros((*world.q.shape[:-1], config.result_dim), np.float64)
    first_row = 0
    for s, (rows, total) in enumerate(world.case.sequences):
        if rows == 0:
            continue
        # [planes, pages, kv_heads, page_size, head_dim] to [planes, tokens, kv_heads, head_dim].
        paged = cache[:, page_table[s, : world.case.pages_for(total)]].swapaxes(2, 3)
        tokens = paged.reshape(len(paged), -1, config.kv_heads, config.head_dim)[:, :total]
        keys, values = tokens.astype(np.float64)[[0, -1]]
        keys = keys if world.k_scale is None else keys * world.k_scale[:, None]
        values = values if world.v_scale is None else values * world.v_scale[:, None]
        values = values if config.value_dim is None else keys[..., : config.value_dim]
        live = slice(first_row, first_row + rows)
        out[live] = _attend(world, world.q[live].astype(np.float64), keys, values)
        first_row += rows
    return out


def _attend(world: World, q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Attend with the last rows of one sequence, causally."""
    config = world.case.config
    total = len(keys)
    positions = np.arange(total - len(q), total)[:, None]
    is_visible = np.arange(total) <= positions
    if config.sliding_window is not None:
        is_visible &= np.arange(total) > positions - config.sliding_window
    out = np.empty((len(q), config.heads, config.result_dim))
    for head in range(config.heads):
        kv_head = head // config.group
        scores = world.scale * q[:, head] @ keys[:, kv_head].T
        if config.soft_cap is not None:
            scores = config.soft_cap * np.tanh(scores / config.soft_cap)
        weights = np.where(is_visible, np.exp(scores), 0.0)
        total_weight = weights.sum(axis=1)
        if world.sinks is not None:
            total_weight += np.exp(world.sinks[head])
        out[:, head] = weights @ values[:, kv_head] / total_weight[:, None]
    return out
