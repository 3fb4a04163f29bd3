// Products of rows and packed matrices on CPUs, called by XLA; api.py says what they compute.
//
// A matrix lies in panels of PANEL output channels each, in the order in which a product reads them: all
// channels' numbers of the first input, then of the second. A tile of rows stays in registers while it goes
// through a panel once (Goto and van de Geijn 2008, doi:10.1145/1356052.1356053), and a panel stays in the
// core's cache while the tiles of a block of rows go through it. With few rows that is one pass over the
// weights at the memory's speed, with many the processor's peak.
//
// C as GCC and Clang have it, whose vectors become whatever the processor has.

#if defined __AVX512VNNI__ || defined __AVXVNNI__
#include <immintrin.h>
#elif defined __ARM_FEATURE_DOTPROD
#include <arm_neon.h>
#endif

#include "xla.h"

#ifdef __AVX512F__
enum { LANES = 16, MOST_ROWS = 14 };
#elif defined __AVX__
enum { LANES = 8, MOST_ROWS = 6 };
#else
enum { LANES = 4, MOST_ROWS = 6 };
#endif
// Tiles have MOST_ROWS rows at most and WIDTH channels: their sums fill the processor's registers.
// BLOCK: tiles of rows that go through a panel together. LEAST_BYTES: of weights, for a thread to fetch.
// FEW: numbers not worth a second thread.
enum { PANEL = 32, VECTORS = 2, WIDTH = VECTORS * LANES };
enum { BLOCK = 16, LEAST_BYTES = 1 << 16, FEW = 1 << 15 };
// What a panel holds, as api.py numbers it.
enum { FLOAT32, BFLOAT16, INT8 };

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

// Of int8, four inputs at a time lie side by side for each channel. Before them are the channels' scales, and
// what sums start from: where the processor multiplies unsigned by signed numbers, rows are OFFSET higher.
typedef struct {
  float scales[PANEL];
  int32_t sums[PANEL];
  int8_t values[];
} Int8Panel;

#if defined __AVX512VNNI__ || defined __AVXVNNI__
enum { OFFSET = 128 };
#else
enum { OFFSET = 0 };
#endif

INLINE int64_t panels_of(int64_t channels) { return ceil_div(channels, PANEL); }

// Bytes of a channel in a panel.
static int64_t channel_bytes(int kind, int64_t inputs) {
  switch (kind) {
    case FLOAT32: return inputs * 4;
    case BFLOAT16: return inputs * 2;
    default: return ceil_div(inputs, 4) * 4;
  }
}

static int64_t panel_bytes(int kind, int64_t inputs) {
  return (kind == INT8 ? sizeof(Int8Panel) : 0) + channel_bytes(kind, inputs) * PANEL;
}

// Bytes of a row as tiles read it.
static int64_t row_bytes(int kind, int64_t inputs) { return channel_bytes(kind == INT8 ? INT8 : FLOAT32, inputs); }

// Bytes from one such row to the next. Were they a multiple of 4 KiB, what the rows of a tile have of an input
// would share one set of the first cache, which has fewer lines than a tile has rows.
static int64_t row_stride(int kind, int64_t inputs) {
  const int64_t num_bytes = row_bytes(kind, inputs);
  return num_bytes % 4096 == 0 ? num_bytes + 64 : num_bytes;
}

INLINE Floats load(const void* from) {
  Floats x;
  memcpy(&x, from, sizeof x);
  return x;
}

INLINE Floats load_bfloat16(const void* from) {
  Halves x;
  memcpy(&x, from, sizeof x);
  return (Floats)(__builtin_convertvector(x, Words) << 16);
}

// Add to each lane the product of four numbers of a row, and four of a channel.
INLINE Ints add_products(Ints sums, Ints weights, const uint8_t* row) {
  int32_t four;
  memcpy(&four, row, sizeof four);
#if defined __AVX512VNNI__
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, _mm512_set1_epi32(four), (__m512i)weights);
#elif defined __AVXVNNI__
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, _mm256_set1_epi32(four), (__m256i)weights);
#elif defined __ARM_FEATURE_DOTPROD
  return (Ints)vdotq_s32((int32x4_t)sums, (int8x16_t)weights, (int8x16_t)vdupq_n_s32(four));
#else
  UNROLL for (int i = 0; i < 4; ++i) sums += (weights << (24 - 8 * i) >> 24) * (int32_t)(int8_t)row[i];
  return sums;
#endif
}

// ---- A product.

// Rows that follow each other and are multiplied by one matrix, and the first item of their product.
typedef struct {
  int64_t row, rows, item;
  const char* panels;
} Group;

typedef struct {
  int kind;
  int64_t rows, inputs, channels, panels_together, num_groups;
  const Group* groups;
  const float* given;
  float* out;
  // The rows as tiles read them, which may be those given, and the scale of each that is rounded to int8.
  char* x;
  int64_t stride;
  float* scales;
} Product;

INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Round a row to int8 so that its greatest number becomes 127. As bits, NaN is greater than any other.
static void round_row(const Product* call, int64_t row) {
  const int64_t inputs = call->inputs;
  const float* x = call->given + row * inputs;
  uint8_t* to = (uint8_t*)call->x + row * call->stride;
  uint32_t greatest = 0;
  for (int64_t i = 0; i < inputs; ++i) {
    const uint32_t size = bits_of(x[i]) & 0x7fffffff;
    greatest = size > greatest ? size : greatest;
  }
  float scale;
  memcpy(&scale, &greatest, sizeof scale);
  scale /= 127;
  call->scales[row] = scale;
  if (scale == 0) scale = 1;
  for (int64_t i = 0; i < inputs; ++i) {
    // 1.5 * 2^23 higher, its last bits are an integer.
    to[i] = (uint8_t)(bits_of(x[i] / scale + 12582912.0f) + OFFSET);
  }
  memset(to + inputs, 0, row_bytes(INT8, inputs) - inputs);
}

static void prepare_row(const void* data, int64_t row, void* scratch) {
  (void)scratch;
  const Product* call = data;
  if (call->kind == INT8) {
    round_row(call, row);
  } else {
    memcpy(call->x + row * call->stride, call->given + row * call->inputs, row_bytes(call->kind, call->inputs));
  }
}

// Multiply rows from `row` on by channels of a panel, from `channel` on. `out`: of the first row and the panel's
// first channel, `stride` numbers before the next row's.
typedef void Tile(const Product* call, int64_t row, const char* panel, int channel, float* out, int64_t stride);

INLINE void multiply_floats(const Product* call, const int rows, const int kind, int64_t row, const char* panel,
                            int channel, float* out, int64_t stride) {
  const int64_t inputs = call->inputs, size = kind == FLOAT32 ? 4 : 2, step = call->stride / sizeof(float);
  const float* x = (const float*)(call->x + row * call->stride);
  Floats sums[MOST_ROWS * VECTORS];
  UNROLL for (int i = 0; i < rows * VECTORS; ++i) sums[i] = (Floats){0};
  for (int64_t k = 0; k < inputs; ++k) {
    Floats weights[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; ++v) {
      const char* from = panel + (k * PANEL + channel + v * LANES) * size;
      weights[v] = kind == FLOAT32 ? load(from) : load_bfloat16(from);
    }
    UNROLL for (int i = 0; i < rows * VECTORS; ++i) {
      sums[i] += x[i / VECTORS * step + k] * weights[i % VECTORS];
    }
  }
  UNROLL for (int i = 0; i < rows * VECTORS; ++i) {
    memcpy(out + i / VECTORS * stride + channel + i % VECTORS * LANES, &sums[i], sizeof sums[i]);
  }
}

INLINE void multiply_int8(const Product* call, const int rows, int64_t row, const Int8Panel* panel, int channel,
                          float* out, int64_t stride) {
  const int64_t num_bytes = row_bytes(INT8, call->inputs), step = call->stride;
  const uint8_t* x = (const uint8_t*)call->x + row * step;
  Ints sums[MOST_ROWS * VECTORS];
  UNROLL for (int i = 0; i < rows * VECTORS; ++i) {
    memcpy(&sums[i], panel->sums + channel + i % VECTORS * LANES, sizeof sums[i]);
  }
  for (int64_t k = 0; k < num_bytes; k += 4) {
    Ints weights[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; ++v) {
      memcpy(&weights[v], panel->values + k * PANEL + 4 * (channel + v * LANES), sizeof weights[v]);
    }
    UNROLL for (int i = 0; i < rows * VECTORS; ++i) {
      sums[i] = add_products(sums[i], weights[i % VECTORS], x + i / VECTORS * step + k);
    }
  }
  UNROLL for (int i = 0; i < rows * VECTORS; ++i) {
    const int c = channel + i % VECTORS * LANES;
    const Floats sum = __builtin_convertvector(sums[i], Floats);
    const Floats product = sum * call->scales[row + i / VECTORS] * load(panel->scales + c);
    memcpy(out + i / VECTORS * stride + c, &product, sizeof product);
  }
}

#ifdef __AVX512F__
#define SIZES(x) x(1) x(2) x(3) x(4) x(5) x(6) x(7) x(8) x(9) x(10) x(11) x(12) x(13) x(14)
#else
#define SIZES(x) x(1) x(2) x(3) x(4) x(5) x(6)
#endif
#define TILE(rows)                                                                                              \
  static void tile_##rows(const Product* call, int64_t row, const char* panel, int channel, float* out,         \
                          int64_t stride) {                                                                     \
    if (call->kind == FLOAT32) {                                                                                \
      multiply_floats(call, rows, FLOAT32, row, panel, channel, out, stride);                                   \
    } else if (call->kind == BFLOAT16) {                                                                        \
      multiply_floats(call, rows, BFLOAT16, row, panel, channel, out, stride);                                  \
    } else {                                                                                                    \
      multiply_int8(call, rows, row, (const Int8Panel*)panel, channel, out, stride);                            \
    }                                                                                                           \
  }
#define NAME(rows) tile_##rows,
SIZES(TILE)
static Tile* const TILES[] = {SIZES(NAME)};
_Static_assert(sizeof TILES / sizeof *TILES == MOST_ROWS, "a function for each size");

INLINE int64_t tiles_of(int64_t rows) { return ceil_div(rows, MOST_ROWS); }

// How the tiles of a group are cut into blocks, and the panels into spans; an item is one of each.
INLINE int64_t blocks_of(int64_t rows) { return ceil_div(tiles_of(rows), BLOCK); }

INLINE int64_t spans_of(const Product* call) {
  return ceil_div(panels_of(call->channels), call->panels_together);
}

// The last group whose items begin at `item` or before.
static const Group* group_of(const Product* call, int64_t item) {
  int64_t first = 0, beyond = call->num_groups;
  while (beyond - first > 1) {
    const int64_t middle = (first + beyond) / 2;
    if (call->groups[middle].item <= item) first = middle;
    else beyond = middle;
  }
  return call->groups + first;
}

static void multiply_item(const void* data, int64_t item, void* scratch) {
  const Product* call = data;
  const Group* group = group_of(call, item);
  const int64_t spans = spans_of(call), blocks = blocks_of(group->rows), tiles = tiles_of(group->rows);
  const int64_t block = (item - group->item) / spans;
  const int64_t first = (item - group->item) % spans * call->panels_together;
  const int64_t beyond = least(panels_of(call->channels), first + call->panels_together);
  for (int64_t p = first; p < beyond; ++p) {
    const char* panel = group->panels + p * panel_bytes(call->kind, call->inputs);
    const int64_t channels = least(PANEL, call->channels - p * PANEL);
    for (int64_t t = tiles * block / blocks; t < tiles * (block + 1) / blocks; ++t) {
      const int64_t before = group->rows * t / tiles, rows = group->rows * (t + 1) / tiles - before;
      const int64_t row = group->row + before;
      float* out = call->out + row * call->channels + p * PANEL;
      // The last panel may be wider than what is left of the result.
      float* whole = channels == PANEL ? out : scratch;
      const int64_t stride = channels == PANEL ? call->channels : PANEL;
      for (int c = 0; c < PANEL; c += WIDTH) TILES[rows - 1](call, row, panel, c, whole, stride);
      if (channels == PANEL) continue;
      for (int64_t r = 0; r < rows; ++r) {
        memcpy(out + r * call->channels, whole + r * PANEL, channels * sizeof *out);
      }
    }
  }
}

// ---- XLA's side.

static int kind_of(const XLA_FFI_CallFrame* frame) { return *(const int32_t*)attribute(frame, "kind"); }

// Fill `groups` with the matrices that have rows, and return the number of items.
static int64_t plan_groups(Product* call, Group* groups, const char* panels, const XLA_FFI_Buffer* sizes,
                           int64_t num_matrices, int64_t most_rows) {
  const int64_t num_bytes = panels_of(call->channels) * panel_bytes(call->kind, call->inputs);
  int64_t item = 0;
  call->groups = groups;
  for (int64_t i = 0; i < num_matrices; ++i) {
    const int64_t size = least(((const int32_t*)sizes->data)[i], most_rows - call->rows);
    if (size <= 0) continue;
    groups[call->num_groups++] = (Group){call->rows, size, item, panels + i * num_bytes};
    call->rows += size;
    item += blocks_of(size) * spans_of(call);
  }
  return item;
}

// The rows lie by matrix: sizes say how many each matrix multiplies. The others are padding.
XLA_FFI_Error* packed_linear_multiply(const XLA_FFI_CallFrame* frame) {
  if (is_question(frame)) return NULL;
  const XLA_FFI_Buffer *x = input(frame, 0), *panels = input(frame, 1), *sizes = input(frame, 2);
  const XLA_FFI_Buffer* out = output(frame, 0);
  Product call = {
      .kind = kind_of(frame),
      .inputs = x->dims[1],
      .channels = out->dims[1],
      .given = x->data,
      .out = out->data,
      .x = x->data,
  };
  const int64_t num_matrices = sizes->dims[0];
  const int64_t num_bytes = panel_bytes(call.kind, call.inputs), num_panels = panels_of(call.channels);
  if (x->dtype != XLA_FFI_DataType_F32 || panels->dims[0] != num_matrices * num_panels ||
      panels->dims[1] != num_bytes) {
    return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, "packed linear: wrong arguments");
  }
  call.panels_together = ceil_div(LEAST_BYTES, num_bytes);
  call.stride = row_stride(call.kind, call.inputs);
  const int prepares = call.kind == INT8 || call.stride != row_bytes(call.kind, call.inputs);
  const size_t groups_bytes = aligned(num_matrices * sizeof(Group));
  const size_t scales_bytes = prepares ? aligned(x->dims[0] * sizeof(float)) : 0;
  const size_t rows_bytes = prepares ? aligned(x->dims[0] * call.stride) : 0;
  char* memory = aligned_alloc(64, groups_bytes + scales_bytes + rows_bytes);
  if (memory == NULL) {
    return error(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "packed linear: out of memory");
  }
  const int64_t num_items = plan_groups(&call, (Group*)memory, panels->data, sizes, num_matrices, x->dims[0]);
  memset(call.out + call.rows * call.channels, 0, (x->dims[0] - call.rows) * call.channels * sizeof(float));
  XLA_FFI_Error* failure = NULL;
  if (prepares) {
    call.scales = (float*)(memory + groups_bytes);
    call.x = memory + groups_bytes + scales_bytes;
    if (call.rows * call.inputs < FEW) {
      for (int64_t row = 0; row < call.rows; ++row) prepare_row(&call, row, NULL);
    } else {
      failure = do_items(frame, call.rows, prepare_row, &call, 0);
    }
  }
  if (failure == NULL) {
    failure = do_items(frame, num_items, multiply_item, &call, MOST_ROWS * PANEL * sizeof(float));
  }
  free(memory);
  return failure;
}

// ---- Packing, and rows again: a matrix of which products are made may be a table as well.

typedef struct {
  int kind;
  int64_t inputs, channels;
  int64_t input_step, channel_step;  // from one number of a matrix to the next, in numbers
  const char* matrix;
  const float* scales;
  char* panels;
} Packing;

static void pack_panel(const void* data, int64_t item, void* scratch) {
  (void)scratch;
  const Packing* call = data;
  const int64_t i = item / panels_of(call->channels), p = item % panels_of(call->channels);
  const int64_t channels = least(PANEL, call->channels - p * PANEL);
  const int64_t matrix = i * call->inputs * call->channels;
  char* panel = call->panels + item * panel_bytes(call->kind, call->inputs);
  memset(panel, 0, panel_bytes(call->kind, call->inputs));
  Int8Panel* of_int8 = (Int8Panel*)panel;
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t start = matrix + (p * PANEL + c) * call->channel_step;
    if (call->kind == INT8) of_int8->scales[c] = call->scales[i * call->channels + p * PANEL + c];
    for (int64_t k = 0; k < call->inputs; ++k) {
      const int64_t from = start + k * call->input_step;
      if (call->kind == FLOAT32) {
        ((float*)panel)[k * PANEL + c] = ((const float*)call->matrix)[from];
      } else if (call->kind == BFLOAT16) {
        ((uint16_t*)panel)[k * PANEL + c] = ((const uint16_t*)call->matrix)[from];
      } else {
        const int8_t value = ((const int8_t*)call->matrix)[from];
        of_int8->values[(k / 4 * PANEL + c) * 4 + k % 4] = value;
        of_int8->sums[c] -= OFFSET * value;
      }
    }
  }
}

XLA_FFI_Error* packed_linear_pack(const XLA_FFI_CallFrame* frame) {
  if (is_question(frame)) return NULL;
  const XLA_FFI_Buffer *matrix = input(frame, 0), *scales = input(frame, 1), *panels = output(frame, 0);
  const int channels_first = *(const int32_t*)attribute(frame, "channels_first");
  Packing call = {
      .kind = kind_of(frame),
      .inputs = matrix->dims[channels_first ? 2 : 1],
      .channels = matrix->dims[channels_first ? 1 : 2],
      .input_step = channels_first ? 1 : matrix->dims[2],
      .channel_step = channels_first ? matrix->dims[2] : 1,
      .matrix = matrix->data,
      .scales = scales->data,
      .panels = panels->data,
  };
  const int64_t num_bytes = panel_bytes(call.kind, call.inputs);
  if (panels->dims[0] != matrix->dims[0] * panels_of(call.channels) || panels->dims[1] != num_bytes) {
    return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, "packed linear: wrong arguments");
  }
  want_large_pages(call.panels, panels->dims[0] * num_bytes);
  return do_items(frame, panels->dims[0], pack_panel, &call, 0);
}

XLA_FFI_Error* packed_linear_take(const XLA_FFI_CallFrame* frame) {
  if (is_question(frame)) return NULL;
  const XLA_FFI_Buffer *panels = input(frame, 0), *indices = input(frame, 1), *out = output(frame, 0);
  const int kind = kind_of(frame);
  const int64_t inputs = out->dims[1], num_bytes = panel_bytes(kind, inputs);
  if (panels->dims[1] != num_bytes) {
    return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, "packed linear: wrong arguments");
  }
  for (int64_t i = 0; i < out->dims[0]; ++i) {
    float* row = (float*)out->data + i * inputs;
    const int64_t channel = ((const int32_t*)indices->data)[i], c = channel % PANEL;
    const char* panel = (const char*)panels->data + channel / PANEL * num_bytes;
    const Int8Panel* of_int8 = (const Int8Panel*)panel;
    for (int64_t k = 0; k < inputs; ++k) {
      if (kind == FLOAT32) {
        row[k] = ((const float*)panel)[k * PANEL + c];
      } else if (kind == BFLOAT16) {
        const uint32_t bits = (uint32_t)((const uint16_t*)panel)[k * PANEL + c] << 16;
        memcpy(row + k, &bits, sizeof bits);
      } else {
        row[k] = of_int8->values[(k / 4 * PANEL + c) * 4 + k % 4] * of_int8->scales[c];
      }
    }
  }
  return NULL;
}
