/* SPDX-License-Identifier: MIT */
/*
 * XXH64 and XXH3 of whole pages, written from xxHash's specification (doc/xxhash_spec.md of
 * the xxHash project), whose names for steps and constants are used here. A page is a multiple
 * of XXH3's block of 1024 bytes, so none of the specification's cases for odd lengths arise.
 *
 * The page reader: a guest writes its pages while they are read here, without any lock. That
 * race is the point of sampling: a page caught in the middle of a write hashes to a third value,
 * which counts it as dirty, and it is. READS_GUEST exempts these functions, and only these, from
 * the thread sanitizer.
 */
#include <string.h>

#include "page_hash.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define READS_GUEST __attribute__((no_sanitize("thread")))

/* The body of a kernel, of which KERNEL() makes one copy for one page and one for four. */
#define KERNEL_BODY READS_GUEST static inline __attribute__((always_inline)) void

#define KERNEL(name, body, target)                                                                 \
    target READS_GUEST static void name(const struct ps_hasher *hasher,                            \
                                        const uint8_t *const *pages, size_t n, size_t page_size,   \
                                        const uint8_t *const *ahead, uint64_t *hashes_ret)         \
    {                                                                                              \
        (void)hasher;                                                                              \
        if (n == PS_PAGES_AT_ONCE)                                                                 \
            body(pages, PS_PAGES_AT_ONCE, page_size, ahead, hashes_ret);                           \
        else                                                                                       \
            for (size_t i = 0; i < n; i++)                                                         \
                body(pages + i, 1, page_size, ahead ? ahead + i : NULL, hashes_ret + i);           \
    }

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "xxHash's lanes are little-endian");

enum { LINE = 64 }; /* a cache line; XXH3's stripe; two stripes of XXH64 */

static const uint64_t PRIME32_1 = 0x9E3779B1U;
static const uint64_t PRIME32_2 = 0x85EBCA77U;
static const uint64_t PRIME32_3 = 0xC2B2AE3DU;
static const uint64_t PRIME64_1 = 0x9E3779B185EBCA87U;
static const uint64_t PRIME64_2 = 0xC2B2AE3D27D4EB4FU;
static const uint64_t PRIME64_3 = 0x165667B19E3779F9U;
static const uint64_t PRIME64_4 = 0x85EBCA77C2B2AE63U;
static const uint64_t PRIME64_5 = 0x27D4EB2F165667C5U;
static const uint64_t PRIME_MX1 = 0x165667919E3779F9U;

static inline uint64_t rotl(uint64_t x, int r)
{
    return x << r | x >> (64 - r);
}

READS_GUEST static inline __attribute__((always_inline)) uint64_t load(const uint8_t *p)
{
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

/*
 * To the L2 cache, not to the L1: the L1 tracks few misses at a time, and those of the pages
 * that are being hashed need them, which is also why it comes after their loads. On a Zen 4 a
 * pass of XXH3 takes 0.72 of the time for the one and 0.96 for the other.
 */
static inline __attribute__((always_inline)) void prefetch(const uint8_t *line)
{
    __builtin_prefetch(line, 0, 2);
}

/* ---- XXH64 ---- */

enum { XXH64_SEED = 1 };

static inline uint64_t xxh64_round(uint64_t acc, uint64_t lane)
{
    return rotl(acc + lane * PRIME64_2, 31) * PRIME64_1;
}

static inline void xxh64_init(uint64_t acc[4])
{
    acc[0] = XXH64_SEED + PRIME64_1 + PRIME64_2;
    acc[1] = XXH64_SEED + PRIME64_2;
    acc[2] = XXH64_SEED;
    acc[3] = XXH64_SEED - PRIME64_1;
}

/* The low 32 bits, all that QEMU keeps. */
static inline uint32_t xxh64_finish(const uint64_t acc[4], size_t page_size)
{
    uint64_t h = rotl(acc[0], 1) + rotl(acc[1], 7) + rotl(acc[2], 12) + rotl(acc[3], 18);
    for (int i = 0; i < 4; i++)
        h = (h ^ xxh64_round(0, acc[i])) * PRIME64_1 + PRIME64_4;
    h += page_size;
    h = (h ^ h >> 33) * PRIME64_2;
    h = (h ^ h >> 29) * PRIME64_3;
    return (uint32_t)(h ^ h >> 32);
}

KERNEL_BODY xxh64_scalar_of(const uint8_t *const *pages, const int n, size_t page_size,
                            const uint8_t *const *ahead, uint64_t *hashes_ret)
{
    uint64_t acc[PS_PAGES_AT_ONCE][4];
    for (int p = 0; p < n; p++)
        xxh64_init(acc[p]);
    for (size_t at = 0; at < page_size; at += LINE) {
        for (int p = 0; p < n; p++) {
            for (int i = 0; i < 8; i++)
                acc[p][i % 4] = xxh64_round(acc[p][i % 4], load(pages[p] + at + 8 * i));
            if (ahead)
                prefetch(ahead[p] + at);
        }
    }
    for (int p = 0; p < n; p++)
        hashes_ret[p] = xxh64_finish(acc[p], page_size);
}
KERNEL(xxh64_base, xxh64_scalar_of, )

/* ---- XXH3 ---- */

enum { SECRET_SIZE = 192, BLOCK = 1024 };

static const uint8_t SECRET[SECRET_SIZE] __attribute__((aligned(LINE))) = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline void xxh3_init(uint64_t acc[8])
{
    const uint64_t initial[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3,
                                 PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    memcpy(acc, initial, sizeof initial);
}

static inline uint64_t xxh3_merge(const uint64_t acc[8], const uint8_t *secret, uint64_t h)
{
    for (int i = 0; i < 8; i += 2) {
        const unsigned __int128 product = (unsigned __int128)(acc[i] ^ load(secret + 8 * i)) *
                                          (acc[i + 1] ^ load(secret + 8 * i + 8));
        h += (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    h = (h ^ h >> 37) * PRIME_MX1;
    return h ^ h >> 32;
}

static inline uint64_t xxh3_finish(const uint64_t acc[8], size_t page_size)
{
    return xxh3_merge(acc, SECRET + 11, page_size * PRIME64_1);
}

static inline uint64_t xxh3_128_finish(const uint64_t acc[8], size_t page_size)
{
    return xxh3_finish(acc, page_size) ^
           xxh3_merge(acc, SECRET + SECRET_SIZE - LINE - 11, ~(page_size * PRIME64_2));
}

/* ---- the kernels of each SIMD level ---- */

#if defined(__x86_64__)

#define LEVEL(name) name##_base
#define TARGET
#define VEC_SIZE         16
#define MUL_LOW_32(a, b) _mm_mul_epu32((__m128i)(a), (__m128i)(b))
#define SWAP_PAIRS(a)    _mm_shuffle_epi32((__m128i)(a), 0x4E)
#include "page_hash_simd.h"

#define LEVEL(name)      name##_avx2
#define TARGET           __attribute__((target("avx2")))
#define VEC_SIZE         32
#define MUL_LOW_32(a, b) _mm256_mul_epu32((__m256i)(a), (__m256i)(b))
#define SWAP_PAIRS(a)    _mm256_shuffle_epi32((__m256i)(a), 0x4E)
#define MUL_64(a, b)                                                                               \
    ((VEC)MUL_LOW_32(a, b) +                                                                       \
     (((VEC)MUL_LOW_32((a) >> 32, b) + (VEC)MUL_LOW_32(a, (b) >> 32)) << 32))
#include "page_hash_simd.h"

/*
 * Of AVX-512, XXH64 gains by the multiplication and rotation of 64-bit lanes, XXH3 by twice the
 * registers. Vectors of 512 bits make neither faster on cold pages.
 */
#define LEVEL(name)      name##_avx512
#define TARGET           __attribute__((target("avx2,avx512f,avx512dq,avx512vl")))
#define VEC_SIZE         32
#define MUL_LOW_32(a, b) _mm256_mul_epu32((__m256i)(a), (__m256i)(b))
#define SWAP_PAIRS(a)    _mm256_shuffle_epi32((__m256i)(a), 0x4E)
#define MUL_64(a, b)     ((a) * (b))
#include "page_hash_simd.h"

#else

#define LEVEL(name) name##_base
#define TARGET
#define VEC_SIZE 16
#if defined(__aarch64__)
#define MUL_LOW_32(a, b) vmull_u32(vmovn_u64((uint64x2_t)(a)), vmovn_u64((uint64x2_t)(b)))
#else
#define MUL_LOW_32(a, b) (((a) & 0xFFFFFFFFU) * ((b) & 0xFFFFFFFFU))
#endif
#define SWAP_PAIRS(a) ((vec_base){(a)[1], (a)[0]})
#include "page_hash_simd.h"

#endif

/* ---- no hash ---- */

KERNEL_BODY touch_of(const uint8_t *const *pages, const int n, size_t page_size,
                     const uint8_t *const *ahead, uint64_t *hashes_ret)
{
    (void)page_size, (void)ahead;
    for (int p = 0; p < n; p++)
        hashes_ret[p] = load(pages[p]);
}
KERNEL(touch, touch_of, )

READS_GUEST static uint64_t has_content(const uint8_t *page, size_t page_size)
{
    for (size_t at = 0; at < page_size; at += LINE) {
        uint64_t line = 0;
        for (int i = 0; i < LINE; i += 8)
            line |= load(page + at + i);
        if (line)
            return 1;
    }
    return 0;
}

/* Most pages that are not zero say so in their first line, so only that is prefetched. */
KERNEL_BODY content_of(const uint8_t *const *pages, const int n, size_t page_size,
                       const uint8_t *const *ahead, uint64_t *hashes_ret)
{
    for (int p = 0; p < n; p++) {
        if (ahead)
            prefetch(ahead[p]);
        hashes_ret[p] = has_content(pages[p], page_size);
    }
}
KERNEL(content, content_of, )

/* ---- XXH32 ---- */

READS_GUEST static inline __attribute__((always_inline)) uint32_t load_32(const uint8_t *p)
{
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline uint32_t rotl_32(uint32_t x, int r)
{
    return x << r | x >> (32 - r);
}

KERNEL_BODY xxh32_of(const uint8_t *const *pages, const int n, size_t page_size,
                     const uint8_t *const *ahead, uint64_t *hashes_ret)
{
    const uint32_t prime_1 = (uint32_t)PRIME32_1;
    const uint32_t prime_2 = (uint32_t)PRIME32_2;
    const uint32_t initial[4] = {prime_1 + prime_2, prime_2, 0, -prime_1};
    uint32_t acc[PS_PAGES_AT_ONCE][4];
    for (int p = 0; p < n; p++)
        memcpy(acc[p], initial, sizeof initial);
    for (size_t at = 0; at < page_size; at += LINE) {
        for (int p = 0; p < n; p++) {
            for (int i = 0; i < LINE / 4; i++) {
                const uint32_t lane = load_32(pages[p] + at + 4 * i);
                acc[p][i % 4] = rotl_32(acc[p][i % 4] + lane * prime_2, 13) * prime_1;
            }
            if (ahead)
                prefetch(ahead[p] + at);
        }
    }
    for (int p = 0; p < n; p++) {
        uint32_t h = rotl_32(acc[p][0], 1) + rotl_32(acc[p][1], 7) + rotl_32(acc[p][2], 12) +
                     rotl_32(acc[p][3], 18);
        h += (uint32_t)page_size;
        h = (h ^ h >> 15) * prime_2;
        h = (h ^ h >> 13) * (uint32_t)PRIME32_3;
        hashes_ret[p] = h ^ h >> 16;
    }
}
KERNEL(xxh32, xxh32_of, )

/* ---- CRC-32 ---- */

typedef uint32_t (*isal_crc32_fn)(uint32_t crc, const unsigned char *buf, uint64_t len);

/* The library's loop has no room for prefetches: they go out in bursts between its calls. */
static void crc32_of(const struct ps_hasher *hasher, const uint8_t *const *pages, size_t n,
                     size_t page_size, const uint8_t *const *ahead, uint64_t *hashes_ret)
{
    /* Through the one function type that casts both ways without a warning. */
    const isal_crc32_fn isal = (isal_crc32_fn)(void (*)(void))hasher->crc32;
    const size_t chunk = ahead ? 512 : page_size;
    uint32_t crc[PS_PAGES_AT_ONCE] = {0};
    for (size_t at = 0; at < page_size; at += chunk) {
        for (size_t p = 0; p < n; p++) {
            for (size_t line = 0; ahead && line < chunk; line += LINE)
                prefetch(ahead[p] + at + line);
            if (hasher->hash == PS_HASH_CRC32_ISAL)
                crc[p] = isal(crc[p], pages[p] + at, chunk);
            else
                crc[p] = (uint32_t)hasher->crc32(crc[p], pages[p] + at, (unsigned int)chunk);
        }
    }
    for (size_t p = 0; p < n; p++)
        hashes_ret[p] = crc[p];
}

/* ---- choice at run time ---- */

int ps_simd_best(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return PS_SIMD_AVX512;
    if (__builtin_cpu_supports("avx2"))
        return PS_SIMD_AVX2;
#endif
    return PS_SIMD_BASE;
}

ps_kernel ps_kernel_of(const struct ps_hasher *hasher)
{
#if defined(__x86_64__)
    static const ps_kernel READ[] = {bare_read_base, bare_read_avx2, bare_read_avx512};
    static const ps_kernel XXH64[] = {xxh64_base, xxh64_avx2, xxh64_avx512};
    static const ps_kernel XXH3[] = {xxh3_base, xxh3_avx2, xxh3_avx512};
    static const ps_kernel XXH3_128[] = {xxh3_128_base, xxh3_128_avx2, xxh3_128_avx512};
#else
    static const ps_kernel READ[] = {bare_read_base};
    static const ps_kernel XXH64[] = {xxh64_base};
    static const ps_kernel XXH3[] = {xxh3_base};
    static const ps_kernel XXH3_128[] = {xxh3_128_base};
#endif

    if (hasher->simd < PS_SIMD_BASE || hasher->simd > ps_simd_best())
        return NULL;
    switch (hasher->hash) {
    case PS_HASH_TOUCH:
        return touch;
    case PS_HASH_CONTENT:
        return content;
    case PS_HASH_READ:
        return READ[hasher->simd];
    case PS_HASH_XXH64:
        return XXH64[hasher->simd];
    case PS_HASH_XXH3:
        return XXH3[hasher->simd];
    case PS_HASH_XXH32:
        return xxh32;
    case PS_HASH_XXH3_128:
        return XXH3_128[hasher->simd];
    case PS_HASH_CRC32:
    case PS_HASH_CRC32_ISAL:
        return hasher->crc32 ? crc32_of : NULL;
    default:
        return NULL;
    }
}
