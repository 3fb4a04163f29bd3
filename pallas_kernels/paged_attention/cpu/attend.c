// Paged attention on CPUs, called by XLA; api.attend says what it computes.
//
// Queries that share a key/value head go through its pages together, where they lie: those of a token's group,
// and of as many tokens of a prompt as an item has rows for. Lanes of vectors are dimensions of a head. The
// products of a few queries and a few keys stay in registers, until eight at a time are summed over their lanes.
// Meanwhile the tokens that come next are fetched. The softmax is online (Milakov and Gimelshein 2018,
// arXiv:1805.02867), by blocks of tokens.
//
// C as GCC and Clang have it, whose vectors become whatever the processor has.

#include <stdio.h>

#include "xla.h"

// ROWS: of an item at most. BLOCK: tokens that they go through together. SUMS: vectors in registers that are
// added to. FEW: rows that are not worth a second thread to write them.
#ifdef __AVX512VL__
enum { SUMS = 16 };
#else
enum { SUMS = 8 };
#endif
enum { LANES = 8, ROWS = 32, BLOCK = 32, FEW = 16 };

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

// Below every score, and what is not to be seen, below that. They are finite: the difference of two is not NaN.
static const float LOWEST = -1e29f, MASKED = -1e30f;

INLINE Floats load(const void* from) {
  Floats x;
  memcpy(&x, from, sizeof x);
  return x;
}

// Have memory come near, but not into the first cache: few lines at a time can be on their way there.
INLINE void fetch(const void* from) { __builtin_prefetch(from, 0, 2); }

INLINE void store(float* to, Floats x) { memcpy(to, &x, sizeof x); }

// Load what several products need: GCC would do it again for each of them.
INLINE Floats load_once(const void* from) {
  Floats x = load(from);
#ifdef __AVX__
  __asm__("" : "+v"(x));
#endif
  return x;
}

INLINE Floats choose(Ints mask, Floats a, Floats b) {
  return (Floats)(((Ints)a & mask) | ((Ints)b & ~mask));
}

INLINE Floats larger(Floats a, Floats b) { return choose(a > b, a, b); }

INLINE Floats plus(Floats a, Floats b) { return a + b; }

// Lanes of two vectors, by number; those of the second come after those of the first.
#if defined __clang__ || __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (Ints){__VA_ARGS__})
#endif

// Combine the lanes of each of eight vectors: lane i of the result is for the i-th.
#define ACROSS(name, combine)                                                                                       \
  INLINE Floats name(const Floats* x) {                                                                             \
    Floats pairs[4], fours[2];                                                                                      \
    UNROLL for (int i = 0; i < 4; ++i) {                                                                            \
      const Floats a = x[2 * i], b = x[2 * i + 1];                                                                  \
      pairs[i] = combine(PICK(a, b, 0, 8, 1, 9, 4, 12, 5, 13), PICK(a, b, 2, 10, 3, 11, 6, 14, 7, 15));             \
    }                                                                                                               \
    UNROLL for (int i = 0; i < 2; ++i) {                                                                            \
      const Floats a = pairs[2 * i], b = pairs[2 * i + 1];                                                          \
      fours[i] = combine(PICK(a, b, 0, 1, 8, 9, 4, 5, 12, 13), PICK(a, b, 2, 3, 10, 11, 6, 7, 14, 15));             \
    }                                                                                                               \
    const Floats a = fours[0], b = fours[1];                                                                        \
    return combine(PICK(a, b, 0, 1, 2, 3, 8, 9, 10, 11), PICK(a, b, 4, 5, 6, 7, 12, 13, 14, 15));                   \
  }
ACROSS(sums_across, plus)
ACROSS(greatest_across, larger)

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
  return (Floats)((Ints)(sum * (Floats)scale) & ~(x < -87.0f));
}

// cap * tanh(x / cap)
INLINE Floats capped(Floats x, float cap) {
  const Ints is_negative = x < 0.0f;
  const Floats decay = exponential(choose(is_negative, x, -x) * (2 / cap));
  const Floats size = cap * (1.0f - decay) / (1.0f + decay);
  return choose(is_negative, -size, size);
}

// ---- What a cache holds, as floats.

typedef void Convert(const void* from, int64_t count, float* into);

INLINE float from_bits(uint32_t bits) {
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

static void of_bfloat16(const void* from, int64_t count, float* into) {
  const uint16_t* x = from;
  for (int64_t i = 0; i < count; ++i) into[i] = from_bits((uint32_t)x[i] << 16);
}

// A number with the exponent of a float32 but a bias that is `less`. Its subnormals are the distance
// from the smallest normal: as they are, they would be subnormal too, which XLA takes for zeros.
INLINE float rebiased(uint32_t bits, uint32_t less) {
  const uint32_t smallest = (less + 1) << 23;
  return bits < 1u << 23 ? from_bits(bits + smallest) - from_bits(smallest)
                         : from_bits(bits + (less << 23));
}

static void of_float16(const void* from, int64_t count, float* into) {
  const uint16_t* x = from;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = (x[i] & 0x7fffu) << 13;
    const float size = bits >= 0x0f800000 ? from_bits(bits | 0x7f800000) : rebiased(bits, 112);
    into[i] = x[i] & 0x8000u ? -size : size;
  }
}

static void of_float8_e4m3fn(const void* from, int64_t count, float* into) {
  const uint8_t* x = from;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = (x[i] & 0x7fu) << 20;
    const float size = bits == 0x07f00000 ? from_bits(0x7fc00000) : rebiased(bits, 120);
    into[i] = x[i] & 0x80u ? -size : size;
  }
}

static void of_int8(const void* from, int64_t count, float* into) {
  const int8_t* x = from;
  for (int64_t i = 0; i < count; ++i) into[i] = x[i];
}

// ---- One call: its arrays by the names of api.attend, what it asks for, and how far it is.

typedef struct {
  const float* q;
  const char *k, *v;
  char* cache;
  const int32_t *page_table, *query_starts, *kv_lengths;
  const float* sinks;  // NULL without
  float* out;
  int64_t num_tokens, num_sequences, num_pages, table_width, heads, kv_heads, head_dim, page_size;
  int64_t planes, value_dim;  // one plane: values are the first numbers of the keys
  float scale, soft_cap;   // 0: no cap
  int32_t sliding_window;  // 0: none
  size_t itemsize;         // of the cache
  Convert* convert;        // NULL where it holds floats
  int32_t* first_items;    // of each sequence
} Call;

enum { KEYS, VALUES };

static int64_t rows_of(const Call* call, int64_t sequence) {
  return (int64_t)call->query_starts[sequence + 1] - call->query_starts[sequence];
}

// The last sequence that starts there or before.
static int64_t sequence_at(const Call* call, const int32_t* starts, int64_t index) {
  int64_t sequence = 0, beyond = call->num_sequences;
  while (beyond - sequence > 1) {
    const int64_t middle = (sequence + beyond) / 2;
    if (starts[middle] <= index) {
      sequence = middle;
    } else {
      beyond = middle;
    }
  }
  return sequence;
}

// Where a token's key or value is, before those that follow in its page. A page that the cache does not have,
// negative ones included, is page 0.
INLINE char* slot(const Call* call, int plane, int64_t sequence, int64_t kv_head, int64_t token) {
  const uint32_t entry = call->page_table[sequence * call->table_width + token / call->page_size];
  const int64_t page = entry < call->num_pages ? entry : 0;
  const int64_t rows_before = ((page * call->kv_heads + kv_head) * call->planes + plane) * call->page_size;
  const int64_t row = rows_before + token % call->page_size;
  return call->cache + row * call->head_dim * call->itemsize;
}

static void write_row(const void* data, int64_t row, void* scratch) {
  (void)scratch;
  const Call* call = data;
  const int64_t sequence = sequence_at(call, call->query_starts, row);
  const int64_t token = call->kv_lengths[sequence] - call->query_starts[sequence + 1] + row;
  const size_t num_bytes = call->head_dim * call->itemsize;
  for (int64_t head = 0; head < call->kv_heads; ++head) {
    const size_t from = (row * call->kv_heads + head) * num_bytes;
    memcpy(slot(call, KEYS, sequence, head, token), call->k + from, num_bytes);
    if (call->planes > VALUES) memcpy(slot(call, VALUES, sequence, head, token), call->v + from, num_bytes);
  }
}

// ---- An item: rows of a sequence that share a key/value head.

// Tokens of a sequence: where their keys and values are. Where there are fewer, the last one stands for the rest.
typedef struct {
  int64_t first, count;
  const void *keys[BLOCK], *values[BLOCK];
} Block;

static void locate(const Call* call, int64_t sequence, int64_t kv_head, int64_t first, int64_t end, Block* block) {
  const size_t num_bytes = call->head_dim * call->itemsize;
  block->first = first;
  block->count = least(BLOCK - first % BLOCK, end - first);
  for (int64_t n = 0; n < block->count;) {
    const int64_t left = call->page_size - (first + n) % call->page_size, beyond = least(n + left, block->count);
    const char* key = slot(call, KEYS, sequence, kv_head, first + n);
    const char* value = call->planes > VALUES ? slot(call, VALUES, sequence, kv_head, first + n) : key;
    for (; n < beyond; ++n, key += num_bytes, value += num_bytes) block->keys[n] = key, block->values[n] = value;
  }
  for (int64_t n = block->count; n < BLOCK; ++n) {
    block->keys[n] = block->keys[block->count - 1];
    block->values[n] = block->values[block->count - 1];
  }
}

// What a thread works with: what rows have come to, and what a block makes of them.
typedef struct {
  float maximum[ROWS], total[ROWS];    // of the softmax
  float decay[ROWS];                   // what a block leaves of the sums before it
  float weights[ROWS][BLOCK];  // of a block's values; first the scores
  int32_t positions[ROWS];
  Block blocks[2];
  const void* converted[BLOCK];
  float numbers[] __attribute__((aligned(64)));  // of head_dim each: ROWS queries and sums, BLOCK converted
} State;

// A block's keys or values as floats.
INLINE const void* const* floats_of(const Call* call, State* state, const void* const* from, int64_t count) {
  if (call->convert == NULL) return from;
  const size_t num_bytes = call->head_dim * call->itemsize;
  float* into = state->numbers + 2 * ROWS * call->head_dim;
  for (int64_t n = 0, run; n < count; n += run) {
    run = 1;
    while (n + run < count && from[n + run] == (const char*)from[n] + run * num_bytes) ++run;
    call->convert(from[n], run * call->head_dim, into + n * call->head_dim);
  }
  for (int64_t n = 0; n < BLOCK; ++n) state->converted[n] = into + least(n, count - 1) * call->head_dim;
  return state->converted;
}

// How many of a block's tokens a row sees, those below its window counted; at most 0 if it sees none.
INLINE int64_t seen_by(const State* state, int64_t row, const Block* block) {
  return least(block->count, state->positions[row] + 1 - block->first);
}

// How many keys, or vectors of values, are in registers together with so many rows.
INLINE int beside(const int rows) { return rows * LANES <= SUMS ? LANES : SUMS / rows; }

// Scores of `rows` queries from `row` on. Meanwhile keys of the next block are fetched.
INLINE void multiply(const Call* call, State* state, const int rows, int64_t row, const void* const* keys,
                     const Block* block, const Block* next) {
  const int64_t dims = call->head_dim, count = seen_by(state, row + rows - 1, block);
  const int together = beside(rows);
  const float* queries = state->numbers + row * dims;
  for (int64_t n = 0; n < count; n += together) {
    const float* key[LANES];
    UNROLL for (int i = 0; i < together; ++i) key[i] = keys[n + i];
    Floats sums[SUMS] = {0};
    for (int64_t d = 0; d < dims; d += LANES) {
      // Lines are two vectors of floats, so lines of half of the keys each time.
      const int64_t half = n + d / LANES % 2 * (together / 2);
      UNROLL for (int i = 0; i < together / 2; ++i) fetch((const char*)next->keys[half + i] + d * call->itemsize);
      Floats values[LANES];
      UNROLL for (int i = 0; i < together; ++i) values[i] = load_once(key[i] + d);
      UNROLL for (int r = 0; r < rows; ++r) {
        const Floats query = load_once(queries + r * dims + d);
        UNROLL for (int i = 0; i < together; ++i) sums[r * together + i] += query * values[i];
      }
    }
    Floats scores[SUMS / LANES];
    UNROLL for (int i = 0; i < rows * together / LANES; ++i) scores[i] = sums_across(sums + i * LANES);
    UNROLL for (int r = 0; r < rows; ++r) {
      memcpy(&state->weights[row + r][n], (const float*)scores + r * together, together * sizeof(float));
    }
  }
}

// Turn scores of a block into weights of its values, for up to LANES rows from `row` on.
INLINE void weigh(const Call* call, State* state, int64_t row, int64_t beyond, const Block* block) {
  Floats across[LANES];
  UNROLL for (int i = 0; i < LANES; ++i) across[i] = (Floats){0} + LOWEST;
  for (int64_t r = row; r < beyond; ++r) {
    const int32_t position = state->positions[r], last = (int32_t)least(position, block->first + block->count - 1);
    Floats highest = (Floats){0} + LOWEST;
    for (int64_t n = 0; n < block->count; n += LANES) {
      const Ints tokens = (Ints){0, 1, 2, 3, 4, 5, 6, 7} + (int32_t)(block->first + n);
      Ints is_visible = tokens <= last;
      if (call->sliding_window > 0) is_visible &= tokens > position - call->sliding_window;
      Floats score = load(&state->weights[r][n]);
      if (call->soft_cap > 0) score = capped(score, call->soft_cap);
      score = choose(is_visible, score, (Floats){0} + MASKED);
      store(&state->weights[r][n], score);
      highest = larger(score, highest);
    }
    across[r - row] = highest;
  }
  const Floats before = load(state->maximum + row), maximum = larger(greatest_across(across), before);
  const Floats decay = exponential(before - maximum);
  store(state->maximum + row, maximum);
  store(state->decay + row, decay);
  for (int64_t r = row; r < beyond; ++r) {
    Floats total = {0};
    for (int64_t n = 0; n < block->count; n += LANES) {
      const Floats weight = exponential(load(&state->weights[r][n]) - state->maximum[r]);
      store(&state->weights[r][n], weight);
      total += weight;
    }
    across[r - row] = total;
  }
  store(state->total + row, load(state->total + row) * decay + sums_across(across));
}

// Add `vectors` vectors of values to what is left of the sums of `rows` queries, from dimension `d` on.
INLINE void add_part(const Call* call, State* state, const int rows, const int vectors, int64_t row, int64_t d,
                     const void* const* values, int64_t count, const Block* next) {
  const int64_t dims = call->head_dim;
  float* to = state->numbers + (ROWS + row) * dims + d;
  Floats sums[SUMS];
  UNROLL for (int i = 0; i < rows * vectors; ++i) {
    sums[i] = load(to + i / vectors * dims + i % vectors * LANES) * state->decay[row + i / vectors];
  }
  for (int64_t n = 0; n < count; ++n) {
    UNROLL for (int v = 0; v < vectors; v += 2) fetch((const char*)next->values[n] + (d + v * LANES) * call->itemsize);
    Floats value[LANES];
    UNROLL for (int v = 0; v < vectors; ++v) value[v] = load_once((const float*)values[n] + d + v * LANES);
    UNROLL for (int i = 0; i < rows * vectors; ++i) {
      sums[i] += state->weights[row + i / vectors][n] * value[i % vectors];
    }
  }
  UNROLL for (int i = 0; i < rows * vectors; ++i) store(to + i / vectors * dims + i % vectors * LANES, sums[i]);
}

INLINE void add(const Call* call, State* state, const int rows, int64_t row, const void* const* values,
                const Block* block, const Block* next) {
  const int64_t count = seen_by(state, row + rows - 1, block);
  const int vectors = beside(rows);
  if (count <= 0) return;
  int64_t d = 0;
  for (; d + vectors * LANES <= call->value_dim; d += vectors * LANES) {
    add_part(call, state, rows, vectors, row, d, values, count, next);
  }
  for (; d < call->value_dim; d += LANES) add_part(call, state, rows, 1, row, d, values, count, next);
}

// Do something with all rows, as many at a time as there is code for.
#define BY_ROWS(function, ...)                                \
  for (int64_t row = 0, left; (left = rows - row) > 0;) {     \
    if (left >= 4) {                                          \
      function(call, state, 4, row, __VA_ARGS__), row += 4;   \
    } else if (left >= 2) {                                   \
      function(call, state, 2, row, __VA_ARGS__), row += 2;   \
    } else {                                                  \
      function(call, state, 1, row, __VA_ARGS__), row += 1;   \
    }                                                         \
  }

// Attend with queries from `first` on, counted over the tokens of a sequence and the heads of a group.
static void attend(const Call* call, int64_t sequence, int64_t kv_head, int64_t first, State* state) {
  const int64_t group = call->heads / call->kv_heads, dims = call->head_dim;
  const int64_t tokens = rows_of(call, sequence), rows = least(tokens * group - first, ROWS);
  float *queries = state->numbers, *sums = queries + ROWS * dims;
  memset(state, 0, sizeof *state);
  memset(sums, 0, rows * dims * sizeof *sums);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t token = (first + i) / group, head = kv_head * group + (first + i) % group;
    const float* query = call->q + ((call->query_starts[sequence] + token) * call->heads + head) * dims;
    for (int64_t d = 0; d < dims; ++d) queries[i * dims + d] = query[d] * call->scale;
    state->positions[i] = (int32_t)(call->kv_lengths[sequence] - tokens + token);
    // A sink is a key that was seen before all others, and whose value is 0.
    state->maximum[i] = call->sinks == NULL ? LOWEST : call->sinks[head];
    state->total[i] = call->sinks != NULL;
  }

  const int64_t end = state->positions[rows - 1] + 1, earliest = state->positions[0] + 1 - call->sliding_window;
  locate(call, sequence, kv_head, call->sliding_window > 0 && earliest > 0 ? earliest : 0, end, state->blocks);
  for (int i = 0, is_last = 0; !is_last; i = !i) {
    const Block *block = &state->blocks[i], *next = block;
    const int64_t beyond = block->first + block->count;
    is_last = beyond == end;
    if (!is_last) {
      locate(call, sequence, kv_head, beyond, end, &state->blocks[!i]);
      next = &state->blocks[!i];
    }
    const void* const* keys = floats_of(call, state, block->keys, block->count);
    BY_ROWS(multiply, keys, block, next)
    for (int64_t row = 0; row < rows; row += LANES) weigh(call, state, row, least(rows, row + LANES), block);
    const void* const* values = keys;
    if (call->planes > VALUES) values = floats_of(call, state, block->values, block->count);
    BY_ROWS(add, values, block, next)
  }

  for (int64_t i = 0; i < rows; ++i) {
    const int64_t token = (first + i) / group, head = kv_head * group + (first + i) % group;
    float* out = call->out + ((call->query_starts[sequence] + token) * call->heads + head) * call->value_dim;
    const float share = 1 / state->total[i];
    for (int64_t d = 0; d < call->value_dim; ++d) out[d] = sums[i * dims + d] * share;
  }
}

static int64_t items_of(const Call* call, int64_t sequence) {
  const int64_t queries = rows_of(call, sequence) * (call->heads / call->kv_heads);
  return ceil_div(queries, ROWS) * call->kv_heads;
}

static void attend_item(const void* data, int64_t item, void* scratch) {
  const Call* call = data;
  const int64_t sequence = sequence_at(call, call->first_items, item), own = item - call->first_items[sequence];
  attend(call, sequence, own % call->kv_heads, own / call->kv_heads * ROWS, scratch);
}

// ---- XLA's side.

// An error for query ranges or lengths that lead outside of the arrays, NULL where there are none.
static XLA_FFI_Error* check(const XLA_FFI_CallFrame* frame, const Call* call) {
  const int64_t capacity = call->table_width * call->page_size;
  const char* name = "query_starts";
  int64_t entry = 0, lowest = 0, highest = 0, found = call->query_starts[0];
  for (int64_t s = 0; s < call->num_sequences && found >= lowest && found <= highest; ++s) {
    name = "query_starts", entry = s + 1;
    lowest = call->query_starts[s], highest = call->num_tokens, found = call->query_starts[s + 1];
    const int64_t rows = found - lowest;
    if (rows <= 0 || found > highest) continue;
    name = "kv_lengths", entry = s;
    lowest = rows, highest = capacity, found = call->kv_lengths[s];
  }
  if (found >= lowest && found <= highest) return NULL;
  char message[160];
  snprintf(message, sizeof message, "paged attention: %s[%lld] must be in [%lld, %lld], got %lld", name,
           (long long)entry, (long long)lowest, (long long)highest, (long long)found);
  return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, message);
}

typedef struct {
  XLA_FFI_DataType dtype;
  size_t itemsize;
  Convert* convert;  // NULL: they are floats
} Kind;

// What is known of a cache's dtype, NULL if nothing.
static const Kind* kind_of(XLA_FFI_DataType dtype) {
  static const Kind kinds[] = {
      {XLA_FFI_DataType_F32, 4, NULL},       {XLA_FFI_DataType_BF16, 2, of_bfloat16},
      {XLA_FFI_DataType_F16, 2, of_float16}, {XLA_FFI_DataType_F8E4M3FN, 1, of_float8_e4m3fn},
      {XLA_FFI_DataType_S8, 1, of_int8},
  };
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; ++i) {
    if (kinds[i].dtype == dtype) return &kinds[i];
  }
  return NULL;
}

// Bytes of a cache: pages, kv_heads, planes, offsets, head_dim.
static size_t bytes_of(const XLA_FFI_Buffer* cache, const Kind* kind) {
  size_t size = kind->itemsize;
  for (int64_t i = 0; i < cache->rank; ++i) size *= cache->dims[i];
  return size;
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
      .num_pages = shape[0],
      .table_width = input(frame, PAGE_TABLE)->dims[1],
      .heads = input(frame, Q)->dims[1],
      .kv_heads = shape[1],
      .planes = shape[2],
      .page_size = shape[3],
      .head_dim = shape[4],
      .value_dim = output(frame, OUT)->dims[2],
      .scale = *(const float*)attribute(frame, "scale"),
      .soft_cap = *(const float*)attribute(frame, "soft_cap"),
      .sliding_window = *(const int32_t*)attribute(frame, "sliding_window"),
      .itemsize = kind->itemsize,
      .convert = kind->convert,
  };
  XLA_FFI_Error* failure = check(frame, &call);
  if (failure != NULL) return failure;
  call.cache = updated->data;
  if (updated->data != cache->data) memcpy(updated->data, cache->data, bytes_of(cache, kind));

  const int64_t rows = call.query_starts[call.num_sequences], row_size = call.heads * call.value_dim;
  memset(call.out + rows * row_size, 0, (call.num_tokens - rows) * row_size * sizeof(float));
  if (rows < FEW) {
    for (int64_t row = 0; row < rows; ++row) write_row(&call, row, NULL);
  } else {
    failure = do_items(frame, rows, write_row, &call, 0);
  }
  if (failure != NULL) return failure;

  call.first_items = malloc(call.num_sequences * sizeof *call.first_items);
  if (call.first_items == NULL) {
    return error(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "paged attention: out of memory");
  }
  int64_t num_items = 0;
  for (int64_t s = 0; s < call.num_sequences; ++s) {
    call.first_items[s] = (int32_t)num_items;
    num_items += items_of(&call, s);
  }
  const size_t numbers = (2 * ROWS + BLOCK) * call.head_dim * sizeof(float);
  failure = do_items(frame, num_items, attend_item, &call, sizeof(State) + numbers);
  free(call.first_items);
  return failure;
}

// ---- A cache that holds nothing yet. Low pages are used first, so memory is fetched for them now; the others
// take none until they are used.

enum { FETCHED_SHARE = 8, CHUNK = 1 << 21 };

typedef struct {
  char* cache;
  size_t fetched;  // bytes
} EmptyCache;

static void fetch_chunk(const void* data, int64_t chunk, void* scratch) {
  (void)scratch;
  const EmptyCache* call = data;
  memset(call->cache + chunk * CHUNK, 0, least(call->fetched - chunk * CHUNK, CHUNK));
}

XLA_FFI_Error* paged_attention_empty_cache(const XLA_FFI_CallFrame* frame) {
  if (is_question(frame)) return NULL;
  const XLA_FFI_Buffer* cache = output(frame, 0);
  const Kind* kind = kind_of(cache->dtype);
  if (kind == NULL) {
    return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, "paged attention: wrong dtype");
  }
  const size_t num_bytes = bytes_of(cache, kind);
  const EmptyCache call = {.cache = cache->data, .fetched = num_bytes / FETCHED_SHARE};
  want_large_pages(call.cache, num_bytes);
  return do_items(frame, ceil_div(call.fetched, CHUNK), fetch_chunk, &call, 0);
}
