// Steps 1 and 2 of the hash of an audit (src/audit/fingerprint.rs, where the formula is), for one
// range of device memory. Results are added to `sums`, which the host has cleared.
//
// A warp takes one block of 4096 bytes at a time, in eight rows of 512: neighbouring lanes read
// neighbouring pairs, and a lane needs the keys of its eight pairs alone. Sums do not depend on
// their order, so that the result is the same for every grid.
//
// make-ptx.py makes fingerprint.ptx of it. kernel_tests.rs runs it on the host.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned __int128 u128;

#define GOLDEN 0x9E3779B97F4A7C15ull
#define KEYS 0x243F6A8885A308D3ull
#define BLOCKS 0x13198A2E03707344ull

#define BLOCK_BYTES 4096u
#define PAIR_BYTES 16u
#define LANES 32u
#define PAIRS (BLOCK_BYTES / PAIR_BYTES)
#define ROWS (PAIRS / LANES)
#define THREADS_MAX 256u
#define ALL_LANES 0xffffffffu

struct Pair {
    u64 first, second;
};

static __device__ __forceinline__ u64 mix(u64 x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

static __device__ __forceinline__ u64 key(u32 word) {
    return mix(KEYS + (word + 1) * GOLDEN);
}

static __device__ __forceinline__ u128 product(Pair words, Pair keys) {
    return (u128)(words.first + keys.first) * (words.second + keys.second);
}

// A whole pair at an address that is a multiple of ALIGNMENT.
template <u32 ALIGNMENT> static __device__ __forceinline__ Pair load(const u8 *at) {
    if (ALIGNMENT == 16) {
        ulonglong2 words = *(const ulonglong2 *)at;
        return Pair{words.x, words.y};
    }
    const u32 *parts = (const u32 *)at;
    return Pair{(u64)parts[1] << 32 | parts[0], (u64)parts[3] << 32 | parts[2]};
}

// A lane's pairs of a whole block.
template <u32 ALIGNMENT>
static __device__ __forceinline__ u128 whole_block(const u8 *at, const Pair *keys) {
    Pair pairs[ROWS];
#pragma unroll
    for (u32 row = 0; row < ROWS; row++)
        pairs[row] = load<ALIGNMENT>(at + row * LANES * PAIR_BYTES);
    u128 sum = 0;
#pragma unroll
    for (u32 row = 0; row < ROWS; row++)
        sum += product(pairs[row], keys[row]);
    return sum;
}

// A lane's pairs of `bytes` bytes of a block, at any address. Slow, and short as code: for the last
// block of a range, and for ranges that begin at an odd place.
static __device__ __noinline__ u128 any_block(const u8 *block, u32 bytes, const Pair *all_keys) {
    u128 sum = 0;
#pragma unroll 1
    for (u32 pair = threadIdx.x % LANES; pair * PAIR_BYTES < bytes; pair += LANES) {
        u64 words[2] = {0, 0};
#pragma unroll
        for (u32 i = 0; i < PAIR_BYTES; i++) {
            u32 at = pair * PAIR_BYTES + i;
            words[i / 8] |= at < bytes ? (u64)block[at] << (8 * (i % 8)) : 0;
        }
        sum += product(Pair{words[0], words[1]}, all_keys[pair]);
    }
    return sum;
}

// The sum over the lanes of a warp, in all of them.
static __device__ __forceinline__ u128 over_lanes(u128 sum) {
#pragma unroll
    for (u32 distance = LANES / 2; distance > 0; distance /= 2) {
        u64 low = __shfl_xor_sync(ALL_LANES, (u64)sum, distance);
        u64 high = __shfl_xor_sync(ALL_LANES, (u64)(sum >> 64), distance);
        sum += (u128)high << 64 | low;
    }
    return sum;
}

// The sums over every `warps`th block, from number `warp` on.
static __device__ __forceinline__ Pair blocks(const u8 *data, u64 bytes, u64 warp, u64 warps,
                                              const Pair *all_keys) {
    u32 lane = threadIdx.x % LANES;
    Pair keys[ROWS];
#pragma unroll
    for (u32 row = 0; row < ROWS; row++)
        keys[row] = all_keys[row * LANES + lane];
    u32 odd = (u32)(u64)data % PAIR_BYTES;
    Pair sums = {0, 0};
    for (u64 begin = warp * BLOCK_BYTES; begin < bytes; begin += warps * BLOCK_BYTES) {
        const u8 *block = data + begin;
        const u8 *own = block + lane * PAIR_BYTES;
        bool is_whole = bytes - begin >= BLOCK_BYTES;
        u128 sum;
        if (is_whole && odd == 0)
            sum = whole_block<16>(own, keys);
        else if (is_whole && odd % 4 == 0)
            sum = whole_block<4>(own, keys);
        else
            sum = any_block(block, is_whole ? BLOCK_BYTES : (u32)(bytes - begin), all_keys);
        sum = over_lanes(sum);
        u64 low = (u64)sum, high = (u64)(sum >> 64);
        high += mix(low ^ (BLOCKS + begin / BLOCK_BYTES * GOLDEN));
        low += mix(high);
        high += mix(low);
        sums.first += low;
        sums.second += high;
    }
    return sums;
}

// Any number of blocks of threads, each of whole warps, at most THREADS_MAX.
extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    fingerprint(const u8 *data, u64 bytes, u64 *sums) {
    // Computed once: in the loop over blocks they would cost more than the blocks.
    __shared__ Pair keys[PAIRS];
    __shared__ Pair of_warps[THREADS_MAX / LANES];
    for (u32 pair = threadIdx.x; pair < PAIRS; pair += blockDim.x)
        keys[pair] = Pair{key(2 * pair), key(2 * pair + 1)};
    __syncthreads();
    u32 own = threadIdx.x / LANES, count = blockDim.x / LANES;
    u64 warp = (u64)blockIdx.x * count + own, warps = (u64)gridDim.x * count;
    Pair sum = blocks(data, bytes, warp, warps, keys);
    if (threadIdx.x % LANES == 0)
        of_warps[own] = sum;
    __syncthreads();
    if (threadIdx.x != 0)
        return;
#pragma unroll 1
    for (u32 other = 1; other < count; other++) {
        sum.first += of_warps[other].first;
        sum.second += of_warps[other].second;
    }
    atomicAdd(&sums[0], sum.first);
    atomicAdd(&sums[1], sum.second);
}
