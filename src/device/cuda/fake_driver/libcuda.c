/* A stand-in for libcuda.so.1, of host memory. It is stricter than the driver: no call without a
   current context, no copy from or to memory that is not page-locked, nothing freed twice. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
enum { OK = 0, INVALID = 1, NO_CONTEXT = 201, NOT_READY = 600, ILLEGAL_ADDRESS = 700 };

struct event { int recorded, asked, destroyed; };
struct stream { int destroyed; long waits; };

static _Thread_local int depth;
static long counts[8]; /* pushes, pops, copies, waits, locks, unlocks, events, streams */
static struct { char *begin; size_t bytes; } locked[64];

long fakeCount(int which) { return counts[which]; }

static int is_locked(const char *at, size_t bytes) {
  for (int i = 0; i < 64; i++)
    if (locked[i].begin && at >= locked[i].begin && at + bytes <= locked[i].begin + locked[i].bytes)
      return 1;
  return 0;
}

/* FAKE_CUDA_FAIL is the number of the copy that fails, from 1. */
static R copied(void *to, const void *from, size_t bytes, const void *host, struct stream *stream) {
  const char *fail = getenv("FAKE_CUDA_FAIL");
  if (!depth) return NO_CONTEXT;
  if (!stream || stream->destroyed || !stream->waits || !is_locked(host, bytes)) return INVALID;
  counts[2]++;
  if (fail && atol(fail) == counts[2]) return ILLEGAL_ADDRESS;
  memcpy(to, from, bytes);
  return OK;
}

R cuInit(unsigned flags) { return flags ? INVALID : OK; }
R cuDriverGetVersion(int *version) { *version = 13000; return OK; }
R cuDeviceGetCount(int *count) { *count = 2; return OK; }
R cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return OK; }
R cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, device, 16); return OK; }
R cuDeviceGetAttribute(int *value, int which, int device) { *value = 1; (void)which; (void)device; return OK; }
R cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(intptr_t)(1000 + device); return OK; }
R cuCtxPushCurrent_v2(void *context) {
  if ((intptr_t)context < 1040 || (intptr_t)context > 1041) return INVALID;
  depth++; counts[0]++;
  return OK;
}
R cuCtxPopCurrent_v2(void **context) {
  if (!depth) return NO_CONTEXT;
  depth--; counts[1]++; *context = NULL;
  return OK;
}
R cuStreamCreate(struct stream **stream, unsigned flags) {
  if (!depth || flags != 1) return INVALID;
  counts[7]++;
  *stream = calloc(1, sizeof **stream);
  return OK;
}
R cuStreamDestroy_v2(struct stream *stream) {
  if (!depth || stream->destroyed) return INVALID;
  stream->destroyed = 1; counts[7]--;
  return OK;
}
R cuEventCreate(struct event **event, unsigned flags) {
  if (!depth || flags != 2) return INVALID;
  counts[6]++;
  *event = calloc(1, sizeof **event);
  return OK;
}
R cuEventDestroy_v2(struct event *event) {
  if (!depth || event->destroyed) return INVALID;
  event->destroyed = 1; counts[6]--;
  return OK;
}
R cuEventRecord(struct event *event, struct stream *stream) {
  if (!depth || event->destroyed || (stream && stream->destroyed)) return INVALID;
  event->recorded = 1; event->asked = 0;
  return OK;
}
/* Each mark is reached when it is asked for the third time. */
R cuEventQuery(struct event *event) {
  if (!depth || !event->recorded || event->destroyed) return INVALID;
  return ++event->asked < 3 ? NOT_READY : OK;
}
R cuStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
  if (!depth || !event->recorded || flags) return INVALID;
  counts[3]++;
  if (stream) stream->waits++;
  return OK;
}
R cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, struct stream *stream) {
  return copied(to, (void *)(uintptr_t)from, bytes, to, stream);
}
R cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, struct stream *stream) {
  return copied((void *)(uintptr_t)to, from, bytes, from, stream);
}
R cuMemHostRegister_v2(void *begin, size_t bytes, unsigned flags) {
  if (!depth || flags != 1 || (uintptr_t)begin % 4096) return INVALID;
  for (int i = 0; i < 64; i++)
    if (!locked[i].begin) {
      locked[i].begin = begin; locked[i].bytes = bytes; counts[4]++;
      return OK;
    }
  return INVALID;
}
R cuMemHostUnregister(void *begin) {
  for (int i = 0; i < 64; i++)
    if (depth && locked[i].begin == begin) {
      locked[i].begin = NULL; counts[5]++;
      return OK;
    }
  return INVALID;
}
R cuGetErrorName(R result, const char **name) {
  *name = result == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OTHER";
  return OK;
}
R cuGetErrorString(R result, const char **text) {
  *text = result == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : "something else";
  return OK;
}
/* No kernels: whoever wants one has to do without. */
R cuModuleLoadData(void **module, const void *image) { (void)module; (void)image; return 218; }
R cuModuleGetFunction(void **f, void *m, const char *n) { (void)f; (void)m; (void)n; return INVALID; }
R cuLaunchKernel(void) { return INVALID; }
R cuMemAlloc_v2(uint64_t *at, size_t bytes) { (void)at; (void)bytes; return INVALID; }
R cuMemFree_v2(uint64_t at) { (void)at; return INVALID; }
R cuMemsetD32Async(void) { return INVALID; }
R cuOccupancyMaxActiveBlocksPerMultiprocessor(void) { return INVALID; }
