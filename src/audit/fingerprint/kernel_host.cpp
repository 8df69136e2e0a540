// Runs the kernel of src/device/cuda/fingerprint.cu on the host, for kernel_tests.rs: each thread of
// a block is a context of its own, and another one runs where one waits.
//
// Standard input: cases of four u32 (bytes, address modulo 16, blocks, threads of a
// block) and the bytes. Standard output: two u64 for each.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(threads)

struct Index {
    unsigned x;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) ulonglong2 {
    unsigned long long x, y;
};

// Which threads wait for one another: waits of a warp are not counted as those of the block.
enum Group { WARP, BLOCK, GROUPS };
static void wait_for_threads(Group group, unsigned first, unsigned count);
static unsigned long long exchanged[1024];

static void __syncthreads() { wait_for_threads(BLOCK, 0, blockDim.x); }

static unsigned long long __shfl_xor_sync(unsigned, unsigned long long value, unsigned distance) {
    unsigned own = threadIdx.x, first = own / 32 * 32;
    exchanged[own] = value;
    wait_for_threads(WARP, first, 32);
    unsigned long long other = exchanged[first + ((own ^ distance) & 31)];
    wait_for_threads(WARP, first, 32);
    return other;
}

static unsigned long long atomicAdd(unsigned long long *to, unsigned long long value) {
    unsigned long long before = *to;
    *to += value;
    return before;
}

#include "fingerprint.cu"

struct Thread {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 << 10);
    bool ended = false;
    unsigned long long waits[GROUPS] = {};
};

static Thread threads[1024];
static ucontext_t host;
static unsigned long long turns;
static const u8 *data;
static u64 bytes, sums[2];

static void wait_for_threads(Group group, unsigned first, unsigned count) {
    unsigned own = threadIdx.x;
    unsigned long long mine = ++threads[own].waits[group];
    for (unsigned i = first; i < first + count; i++)
        while (threads[i].waits[group] < mine) {
            // Some wait, and others never will.
            if (++turns > 100000000)
                abort();
            swapcontext(&threads[own].context, &host);
        }
}

static void run_thread() {
    fingerprint(data, bytes, sums);
    threads[threadIdx.x].ended = true;
}

static void run_block() {
    for (unsigned i = 0; i < blockDim.x; i++) {
        Thread &thread = threads[i];
        thread.ended = false;
        memset(thread.waits, 0, sizeof thread.waits);
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = &host;
        makecontext(&thread.context, run_thread, 0);
    }
    for (bool all_ended = false; !all_ended;) {
        all_ended = true;
        for (unsigned i = 0; i < blockDim.x; i++)
            if (!threads[i].ended) {
                threadIdx.x = i;
                swapcontext(&host, &threads[i].context);
                all_ended = all_ended && threads[i].ended;
            }
    }
}

// Memory that ends, but for what the alignment takes, where nothing may be read.
static u8 *guarded(size_t size, size_t odd) {
    size_t page = 4096, pages = (size + 16 + page - 1) / page * page;
    void *all = mmap(nullptr, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect((u8 *)all + pages, page, PROT_NONE))
        abort();
    memset(all, 0xa5, pages);
    size_t at = pages - size;
    at -= (at - odd) % 16;
    return (u8 *)all + at;
}

int main() {
    uint32_t header[4];
    while (fread(header, sizeof header, 1, stdin) == 1) {
        u8 *memory = guarded(header[0], header[1]);
        if (header[0] && fread(memory, header[0], 1, stdin) != 1)
            return 1;
        data = memory, bytes = header[0];
        gridDim.x = header[2], blockDim.x = header[3];
        sums[0] = sums[1] = 0, turns = 0;
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
            run_block();
        fwrite(sums, sizeof sums, 1, stdout);
    }
    return 0;
}
