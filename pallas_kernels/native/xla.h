// What every function here needs of XLA, which calls it: errors, attributes, and its threads.

#pragma once

#include <stdatomic.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "xla/ffi/api/c_api.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static XLA_FFI_Error* error(const XLA_FFI_CallFrame* frame, XLA_FFI_Error_Code code, const char* message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, message, code};
  return frame->api->XLA_FFI_Error_Create(&args);
}

// The value of an attribute, NULL where it was not given.
static const void* attribute(const XLA_FFI_CallFrame* frame, const char* name) {
  for (int64_t i = 0; i < frame->attrs.size; ++i) {
    const XLA_FFI_ByteSpan* span = frame->attrs.names[i];
    if (span->len == strlen(name) && memcmp(span->ptr, name, span->len) == 0) {
      return ((const XLA_FFI_Scalar*)frame->attrs.attrs[i])->value;
    }
  }
  return NULL;
}

INLINE const XLA_FFI_Buffer* input(const XLA_FFI_CallFrame* frame, int64_t i) { return frame->args.args[i]; }

INLINE const XLA_FFI_Buffer* output(const XLA_FFI_CallFrame* frame, int64_t i) { return frame->rets.rets[i]; }

// Whether XLA only asks for the version of its interface that this was compiled against: told here.
static int is_question(const XLA_FFI_CallFrame* frame) {
  XLA_FFI_InternalExtension* asked = frame->extension_start;
  if (asked == NULL || asked->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata* metadata = ((XLA_FFI_Metadata_Extension*)asked)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  metadata->traits = 0;
  return 1;
}

// Ask for large pages, of memory that nobody has touched: a processor finds them sooner.
static void want_large_pages(void* data, size_t num_bytes) {
#ifdef MADV_HUGEPAGE
  const uintptr_t page = 1 << 12, first = ((uintptr_t)data + page - 1) / page * page;
  const uintptr_t beyond = ((uintptr_t)data + num_bytes) / page * page;
  if (first < beyond) (void)madvise((void*)first, beyond - first, MADV_HUGEPAGE);
#else
  (void)data, (void)num_bytes;
#endif
}

// ---- Threads. A call is cut into items, which XLA's threads and the one that calls take one by one.

// Does an item of `call`; `scratch` is the thread's own.
typedef void Item(const void* call, int64_t item, void* scratch);

// The last thread to leave frees it. One that comes late finds no item, and touches no call.
typedef struct {
  Item* item;
  const void* call;
  int64_t num_items;
  size_t scratch_bytes;
  char* scratch;
  atomic_llong next_item, items_done;
  atomic_int next_thread, threads_left;
} Work;

static void leave(Work* work) {
  if (atomic_fetch_sub(&work->threads_left, 1) == 1) free(work);
}

static void work_on(void* data) {
  Work* work = data;
  void* scratch = work->scratch + atomic_fetch_add(&work->next_thread, 1) * work->scratch_bytes;
  int64_t item;
  while ((item = atomic_fetch_add(&work->next_item, 1)) < work->num_items) {
    work->item(work->call, item, scratch);
    atomic_fetch_add(&work->items_done, 1);
  }
  leave(work);
}

static int64_t pool_size(const XLA_FFI_CallFrame* frame) {
  int64_t size = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL,
                                             frame->ctx, &size};
  XLA_FFI_Error* failure = frame->api->XLA_FFI_ThreadPool_NumThreads(&args);
  if (failure == NULL) return size;
  XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, failure};
  frame->api->XLA_FFI_Error_Destroy(&destroy);
  return 1;
}

static void schedule(const XLA_FFI_CallFrame* frame, Work* work) {
  XLA_FFI_ThreadPool_Schedule_Args args = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL,
                                           frame->ctx, work_on, work};
  XLA_FFI_Error* failure = frame->api->XLA_FFI_ThreadPool_Schedule(&args);
  if (failure == NULL) return;
  XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, failure};
  frame->api->XLA_FFI_Error_Destroy(&destroy);
  work_on(work);
}

INLINE size_t aligned(size_t num_bytes) { return (num_bytes + 63) / 64 * 64; }

// Do all items of a call, and return when they are done: an error where memory is short, else NULL.
// A thread has `scratch_bytes` of memory to work with, at a multiple of 64.
static XLA_FFI_Error* do_items(const XLA_FFI_CallFrame* frame, int64_t num_items, Item* item, const void* call,
                               size_t scratch_bytes) {
  int64_t num_threads = pool_size(frame);
  if (num_threads > num_items) num_threads = num_items > 0 ? num_items : 1;
  scratch_bytes = aligned(scratch_bytes);
  char* memory = aligned_alloc(64, aligned(sizeof(Work)) + num_threads * scratch_bytes);
  if (memory == NULL) return error(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "out of memory");
  Work* work = (Work*)memory;
  *work = (Work){.item = item, .call = call, .num_items = num_items, .scratch_bytes = scratch_bytes};
  work->scratch = memory + aligned(sizeof(Work));
  atomic_init(&work->threads_left, (int)num_threads + 1);  // and the one that waits for all
  for (int64_t i = 1; i < num_threads; ++i) schedule(frame, work);
  work_on(work);
  while (atomic_load(&work->items_done) < num_items) sched_yield();
  leave(work);
  return NULL;
}
