// Paged attention on CPUs, called by XLA; api.attend says what it computes.
//
// Queries that share a key/value head are the lanes of vectors: those of a token's group, and of as
// many tokens as fit. Every number of a key then multiplies all lanes at once: no sum goes across
// lanes, and a page is read where it lies, once for all of them. Meanwhile the next page is on its
// way. The softmax is online (Milakov and Gimelshein 2018, arXiv:1805.02867), page by page.
//
// C as GCC and Clang have it, whose vectors become whatever the processor has.

#include "xla.h"

enum { LANES = 8, MOST_VECTORS = 2, SUMS = 8 };

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

// Below every score, but finite: the difference of two of them is 0 and not NaN.
static const float MASKED = -1e30f;

INLINE Floats choose(Ints mask, Floats a, Floats b) {
  return (Floats)(((Ints)a & mask) | ((Ints)b & ~mask));
}

INLINE Floats larger(Floats a, Floats b) { return choose(a > b, a, b); }

// e to the x, for x <= 0: Cody and Waite's reduction, and a polynomial for what is left.
INLINE Floats exponential(Floats x) {
  const Floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the last bits are an integer
  const Floats power = shifted - 12582912.0f;
  const Floats rest = (x - power * 0.693359375f) + power * 2.12194440e-4f;
  Floats sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  const Ints scale = ((Ints)shifted - 0x4b400000 + 127) << 23;
  return choose(x < -87.0f, (Floats){0}, sum * (Floats)scale);
}

// cap * tanh(x / cap)
INLINE Floats capped(Floats x, float cap) {
  const Ints is_negative = x < 0.0f;
  const Floats decay = exponential(choose(is_negative, x, -x) * (2 / cap));
  const Floats size = cap * (1.0f - decay) / (1.0f + decay);
  return choose(is_negative, -size, size);
}

// ---- What a cache holds, as floats. Each returns where they are: where they were, or `into`.

typedef const float* Convert(const void* from, int64_t count, float* into);

INLINE float from_bits(uint32_t bits) {
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

static const float* of_float32(const void* from, int64_t count, float* into) {
  (void)count, (void)into;
  return from;
}

static const float* of_bfloat16(const void* from, int64_t count, float* into) {
  const uint16_t* x = from;
  for (int64_t i = 0; i < count; ++i) into[i] = from_bits((uint32_t)x[i] << 16);
  return into;
}

// A number with the exponent of a float32 but a bias that is `less`. Its subnormals are the distance
// from the smallest normal: as they are, they would be subnormal too, which XLA takes for zeros.
INLINE float rebiased(uint32_t bits, uint32_t less) {
  const uint32_t smallest = (less + 1) << 23;
  return bits < 1u << 23 ? from_bits(bits + smallest) - from_bits(smallest)
                         : from_bits(bits + (less << 23));
}

static const float* of_float16(const void* from, int64_t count, float* into) {
  const uint16_t* x = from;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = (x[i] & 0x7fffu) << 13;
    const float size = bits >= 0x0f800000 ? from_bits(bits | 0x7f800000) : rebiased(bits, 112);
    into[i] = x[i] & 0x8000u ? -size : size;
  }
  return into;
}

static const float* of_float8_e4m3fn(const void* from, int64_t count, float* into) {
  const uint8_t* x = from;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = (x[i] & 0x7fu) << 20;
    const float size = bits == 0x07f00000 ? from_bits(0x7fc00000) : rebiased(bits, 120);
    into[i] = x[i] & 0x80u ? -size : size;
  }
  return into;
}

static const float* of_int8(const void* from, int64_t count, float* into) {
  const int8_t* x = from;
  for (int64_t i = 0; i < count; ++i) into[i] = x[i];
  return into;
}

// ---- One call: its arrays by the names of api.attend, what it asks for, and how far it is.

typedef struct {
  const float* q;
  const char *k, *v;
  char* planes[2];  // of the cache: keys and values
  const int32_t *page_table, *query_starts, *kv_lengths;
  const float* sinks;  // NULL without
  float* out;
  int64_t num_tokens, num_sequences, table_width, heads, kv_heads, head_dim, page_size;
  float scale, soft_cap;   // 0: no cap
  int32_t sliding_window;  // 0: none
  size_t itemsize;         // of the cache
  Convert* convert;
  int64_t* first_items;  // of each sequence
} Call;

static int64_t rows_of(const Call* call, int64_t sequence) {
  return call->query_starts[sequence + 1] - call->query_starts[sequence];
}

// How many queries an item has, all heads of the group counted.
static int64_t width_of(const Call* call, int64_t sequence) {
  const int64_t queries = rows_of(call, sequence) * (call->heads / call->kv_heads);
  return queries <= LANES ? LANES : LANES * MOST_VECTORS;
}

// Where a token's key or value is, before those that follow in its page.
INLINE char* slot(const Call* call, int plane, int64_t sequence, int64_t kv_head, int64_t token) {
  const int64_t page = call->page_table[sequence * call->table_width + token / call->page_size];
  const int64_t row = (page * call->kv_heads + kv_head) * call->page_size + token % call->page_size;
  return call->planes[plane] + row * call->head_dim * call->itemsize;
}

static void write_rows(const Call* call, int64_t sequence) {
  const size_t num_bytes = call->head_dim * call->itemsize;
  const int64_t end = call->query_starts[sequence + 1], length = call->kv_lengths[sequence];
  for (int64_t row = call->query_starts[sequence]; row < end; ++row) {
    for (int64_t head = 0; head < call->kv_heads; ++head) {
      const size_t from = (row * call->kv_heads + head) * num_bytes;
      memcpy(slot(call, 0, sequence, head, length - end + row), call->k + from, num_bytes);
      memcpy(slot(call, 1, sequence, head, length - end + row), call->v + from, num_bytes);
    }
  }
}

// Products of `count` keys with the queries. Fetches as many bytes from `next` on.
INLINE void multiply(const Call* call, const Floats* queries, int vectors, const float* keys, int count,
                     const char* next, Floats* scores) {
  Floats sums[SUMS] = {0};
  for (int64_t d = 0; d < call->head_dim; ++d) {
    __builtin_prefetch(next + d * count * call->itemsize);
    UNROLL for (int n = 0; n < count; ++n) {
      for (int u = 0; u < vectors; ++u) {
        sums[n * vectors + u] += queries[d * vectors + u] * keys[n * call->head_dim + d];
      }
    }
  }
  UNROLL for (int i = 0; i < count * vectors; ++i) scores[i] = sums[i];
}

// Add values, as the weights say, to what is left of `sums`. Fetches as many bytes from `next` on.
INLINE void add(const Call* call, const Floats* weights, int vectors, const float* values, int64_t count,
                const char* next, const Floats* decay, Floats* sums) {
  const int dims = SUMS / vectors;
  for (int64_t d = 0; d < call->head_dim; d += dims) {
    Floats partial[SUMS];
    UNROLL for (int i = 0; i < SUMS; ++i) partial[i] = sums[d * vectors + i] * decay[i % vectors];
    for (int64_t n = 0; n < count; ++n, next += dims * call->itemsize) {
      __builtin_prefetch(next);
      UNROLL for (int i = 0; i < SUMS; ++i) {
        partial[i] += weights[n * vectors + i % vectors] * values[n * call->head_dim + d + i / vectors];
      }
    }
    UNROLL for (int i = 0; i < SUMS; ++i) sums[d * vectors + i] = partial[i];
  }
}

// Attend with an item: queries from `first` on, counted over the tokens of a sequence and its heads.
INLINE void attend(const Call* call, int64_t sequence, int64_t kv_head, int64_t first, const int vectors,
                   void* scratch) {
  const int64_t group = call->heads / call->kv_heads, head_dim = call->head_dim;
  const int64_t page_size = call->page_size, length = call->kv_lengths[sequence];
  const int64_t rows = rows_of(call, sequence), start = call->query_starts[sequence];
  const int64_t left = rows * group - first, lanes = left < vectors * LANES ? left : vectors * LANES;

  Floats *queries = scratch, *sums = queries + head_dim * vectors, *scores = sums + head_dim * vectors;
  float* converted = (float*)(scores + page_size * vectors);
  Ints positions[MOST_VECTORS];
  Floats maximum[MOST_VECTORS], total[MOST_VECTORS];
  memset(queries, 0, 2 * head_dim * vectors * sizeof *queries);
  for (int u = 0; u < vectors; ++u) {
    positions[u] = (Ints){0} - 1;
    maximum[u] = (Floats){0} + MASKED;
    total[u] = (Floats){0};
  }
  for (int64_t i = 0; i < lanes; ++i) {
    const int64_t row = (first + i) / group, head = kv_head * group + (first + i) % group;
    const float* query = call->q + ((start + row) * call->heads + head) * head_dim;
    float* lane = (float*)queries + i;
    for (int64_t d = 0; d < head_dim; ++d) lane[d * vectors * LANES] = query[d];
    positions[i / LANES][i % LANES] = length - rows + row;
    if (call->sinks != NULL) {
      // A sink is a key that was seen before all others, and whose value is 0.
      maximum[i / LANES][i % LANES] = call->sinks[head];
      total[i / LANES][i % LANES] = 1;
    }
  }

  const int64_t end = length - rows + (first + lanes - 1) / group + 1;
  int64_t token = 0;
  if (call->sliding_window > 0) {
    const int64_t earliest = length - rows + first / group + 1 - call->sliding_window;
    token = earliest > 0 ? earliest : 0;
  }
  for (int64_t count; token < end; token += count) {
    count = page_size - token % page_size;
    count = count < end - token ? count : end - token;
    const int64_t next = token + count < end ? token + count : token;
    const float* keys = call->convert(slot(call, 0, sequence, kv_head, token), count * head_dim, converted);
    const char* next_keys = slot(call, 0, sequence, kv_head, next);
    const int together = SUMS / vectors;
    int64_t n = 0;
    for (; n + together <= count; n += together, next_keys += together * head_dim * call->itemsize) {
      multiply(call, queries, vectors, keys + n * head_dim, together, next_keys, scores + n * vectors);
    }
    for (; n < count; ++n) {
      multiply(call, queries, vectors, keys + n * head_dim, 1, next_keys, scores + n * vectors);
    }

    Floats decay[MOST_VECTORS];
    for (int u = 0; u < vectors; ++u) {
      Floats highest = maximum[u];
      for (n = 0; n < count; ++n) {
        const int32_t position = (int32_t)(token + n);
        Ints is_visible = positions[u] >= position;
        if (call->sliding_window > 0) is_visible &= positions[u] - call->sliding_window < position;
        Floats score = scores[n * vectors + u] * call->scale;
        if (call->soft_cap > 0) score = capped(score, call->soft_cap);
        score = choose(is_visible, score, (Floats){0} + MASKED);
        scores[n * vectors + u] = score;
        highest = larger(score, highest);
      }
      decay[u] = exponential(maximum[u] - highest);
      maximum[u] = highest;
      total[u] *= decay[u];
      for (n = 0; n < count; ++n) {
        const Floats score = scores[n * vectors + u];
        const Floats weight = choose(score == MASKED, (Floats){0}, exponential(score - highest));
        scores[n * vectors + u] = weight;
        total[u] += weight;
      }
    }

    const float* values = call->convert(slot(call, 1, sequence, kv_head, token), count * head_dim, converted);
    add(call, scores, vectors, values, count, slot(call, 1, sequence, kv_head, next), decay, sums);
  }

  for (int64_t i = 0; i < lanes; ++i) {
    const int64_t row = (first + i) / group, head = kv_head * group + (first + i) % group;
    float* result = call->out + ((start + row) * call->heads + head) * head_dim;
    const float* lane = (const float*)sums + i;
    const float share = 1 / total[i / LANES][i % LANES];
    for (int64_t d = 0; d < head_dim; ++d) result[d] = lane[d * vectors * LANES] * share;
  }
}

// ---- Items: rows of a sequence that share a KV head.

static int64_t items_of(const Call* call, int64_t sequence) {
  const int64_t width = width_of(call, sequence);
  const int64_t queries = rows_of(call, sequence) * (call->heads / call->kv_heads);
  return (queries + width - 1) / width * call->kv_heads;
}

static void attend_item(const void* data, int64_t item, void* scratch) {
  const Call* call = data;
  int64_t sequence = 0, beyond = call->num_sequences;
  while (beyond - sequence > 1) {  // the last one whose items begin there or before
    const int64_t middle = (sequence + beyond) / 2;
    if (call->first_items[middle] <= item) {
      sequence = middle;
    } else {
      beyond = middle;
    }
  }
  const int64_t own = item - call->first_items[sequence], width = width_of(call, sequence);
  const int64_t kv_head = own % call->kv_heads, first = own / call->kv_heads * width;
  if (width == LANES) {
    attend(call, sequence, kv_head, first, 1, scratch);
  } else {
    attend(call, sequence, kv_head, first, MOST_VECTORS, scratch);
  }
}

// ---- XLA's side.

typedef struct {
  XLA_FFI_DataType dtype;
  size_t itemsize;
  Convert* convert;
} Kind;

// What is known of a cache's dtype, NULL if nothing.
static const Kind* kind_of(XLA_FFI_DataType dtype) {
  static const Kind kinds[] = {
      {XLA_FFI_DataType_F32, 4, of_float32},   {XLA_FFI_DataType_BF16, 2, of_bfloat16},
      {XLA_FFI_DataType_F16, 2, of_float16},   {XLA_FFI_DataType_F8E4M3FN, 1, of_float8_e4m3fn},
      {XLA_FFI_DataType_S8, 1, of_int8},
  };
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; ++i) {
    if (kinds[i].dtype == dtype) return &kinds[i];
  }
  return NULL;
}

XLA_FFI_Error* paged_attention(const XLA_FFI_CallFrame* frame) {
  if (is_question(frame)) return NULL;
  enum { Q, K, V, CACHE, PAGE_TABLE, QUERY_STARTS, KV_LENGTHS, SINKS, NUM_ARGS };
  enum { OUT, UPDATED, NUM_RETS };
  if (frame->args.size != NUM_ARGS || frame->rets.size != NUM_RETS) {
    return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, "paged attention: wrong arguments");
  }
  const XLA_FFI_Buffer *cache = input(frame, CACHE), *updated = output(frame, UPDATED);
  const int64_t* shape = cache->dims;
  const Kind* kind = kind_of(cache->dtype);
  if (kind == NULL || input(frame, Q)->dtype != XLA_FFI_DataType_F32) {
    return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, "paged attention: wrong dtypes");
  }
  Call call = {
      .q = input(frame, Q)->data,
      .k = input(frame, K)->data,
      .v = input(frame, V)->data,
      .page_table = input(frame, PAGE_TABLE)->data,
      .query_starts = input(frame, QUERY_STARTS)->data,
      .kv_lengths = input(frame, KV_LENGTHS)->data,
      .sinks = input(frame, SINKS)->dims[0] ? input(frame, SINKS)->data : NULL,
      .out = output(frame, OUT)->data,
      .num_tokens = input(frame, Q)->dims[0],
      .num_sequences = input(frame, KV_LENGTHS)->dims[0],
      .table_width = input(frame, PAGE_TABLE)->dims[1],
      .heads = input(frame, Q)->dims[1],
      .kv_heads = shape[2],
      .page_size = shape[3],
      .head_dim = shape[4],
      .scale = *(const float*)attribute(frame, "scale"),
      .soft_cap = *(const float*)attribute(frame, "soft_cap"),
      .sliding_window = *(const int32_t*)attribute(frame, "sliding_window"),
      .itemsize = kind->itemsize,
      .convert = kind->convert,
  };
  const size_t plane = shape[1] * shape[2] * shape[3] * shape[4] * call.itemsize;
  call.planes[0] = updated->data;
  call.planes[1] = call.planes[0] + plane;
  if (updated->data != cache->data) memcpy(updated->data, cache->data, 2 * plane);

  for (int64_t s = 0; s < call.num_sequences; ++s) write_rows(&call, s);
  const int64_t real = call.query_starts[call.num_sequences], row = call.heads * call.head_dim;
  memset(call.out + real * row, 0, (call.num_tokens - real) * row * sizeof(float));

  call.first_items = malloc(call.num_sequences * sizeof(int64_t));
  if (call.first_items == NULL) {
    return error(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "paged attention: out of memory");
  }
  int64_t num_items = 0;
  for (int64_t s = 0; s < call.num_sequences; ++s) {
    call.first_items[s] = num_items;
    num_items += items_of(&call, s);
  }
  const size_t floats = (2 * call.head_dim + call.page_size) * MOST_VECTORS * LANES + call.page_size * call.head_dim;
  XLA_FFI_Error* failure = do_items(frame, num_items, attend_item, &call, floats * sizeof(float));
  free(call.first_items);
  return failure;
}

// ---- A cache that holds nothing yet. Low pages are used first, so memory is fetched for them now; the others
// take none until they are used.

enum { FETCHED_SHARE = 8, CHUNK = 1 << 21 };

typedef struct {
  char* cache;
  size_t plane, fetched;  // bytes: of a plane, and of its low pages
} EmptyCache;

INLINE int64_t chunks_of(const EmptyCache* call) { return (call->fetched + CHUNK - 1) / CHUNK; }

static void fetch_item(const void* data, int64_t item, void* scratch) {
  (void)scratch;
  const EmptyCache* call = data;
  const size_t start = item % chunks_of(call) * CHUNK, left = call->fetched - start;
  memset(call->cache + item / chunks_of(call) * call->plane + start, 0, left < CHUNK ? left : CHUNK);
}

XLA_FFI_Error* paged_attention_empty_cache(const XLA_FFI_CallFrame* frame) {
  if (is_question(frame)) return NULL;
  const XLA_FFI_Buffer* cache = output(frame, 0);
  const Kind* kind = kind_of(cache->dtype);
  if (kind == NULL) {
    return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, "paged attention: wrong dtype");
  }
  const int64_t* shape = cache->dims;
  EmptyCache call = {.cache = cache->data, .plane = shape[1] * shape[2] * shape[3] * shape[4] * kind->itemsize};
  call.fetched = call.plane / FETCHED_SHARE;
  want_large_pages(call.cache, shape[0] * call.plane);
  return do_items(frame, shape[0] * chunks_of(&call), fetch_item, &call, 0);
}
