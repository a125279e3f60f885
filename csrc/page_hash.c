/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "page_hash.h"

enum { LINE = 64 };

static const uint64_t PRIME_1 = 0x9E3779B185EBCA87U;
static const uint64_t PRIME_2 = 0xC2B2AE3D27D4EB4FU;
static const uint64_t PRIME_3 = 0x165667B19E3779F9U;
static const uint64_t PRIME_4 = 0x85EBCA77C2B2AE63U;

static inline uint64_t rotl(uint64_t x, int r)
{
    return x << r | x >> (64 - r);
}

static inline uint64_t load(const uint8_t *p)
{
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline uint64_t xxh64_round(uint64_t acc, uint64_t lane)
{
    return rotl(acc + lane * PRIME_2, 31) * PRIME_1;
}

static uint64_t xxh64(const struct ps_hasher *hasher, const uint8_t *page, size_t page_size,
                      const uint8_t *next)
{
    enum { SEED = 1 };
    uint64_t acc[4] = {SEED + PRIME_1 + PRIME_2, SEED + PRIME_2, SEED, SEED - PRIME_1};
    (void)hasher;
    for (size_t at = 0; at < page_size; at += LINE) {
        if (next)
            __builtin_prefetch(next + at);
        for (int i = 0; i < 8; i++)
            acc[i % 4] = xxh64_round(acc[i % 4], load(page + at + 8 * i));
    }
    uint64_t h = rotl(acc[0], 1) + rotl(acc[1], 7) + rotl(acc[2], 12) + rotl(acc[3], 18);
    for (int i = 0; i < 4; i++)
        h = (h ^ xxh64_round(0, acc[i])) * PRIME_1 + PRIME_4;
    h += page_size;
    h = (h ^ h >> 33) * PRIME_2;
    h = (h ^ h >> 29) * PRIME_3;
    return (uint32_t)(h ^ h >> 32);
}

static uint64_t bare_read(const struct ps_hasher *hasher, const uint8_t *page, size_t page_size,
                          const uint8_t *next)
{
    uint64_t sum = 0;
    (void)hasher;
    for (size_t at = 0; at < page_size; at += LINE) {
        if (next)
            __builtin_prefetch(next + at);
        for (int i = 0; i < 8; i++)
            sum |= load(page + at + 8 * i);
    }
    return sum;
}

static uint64_t crc32_by_zlib(const struct ps_hasher *hasher, const uint8_t *page,
                              size_t page_size, const uint8_t *next)
{
    enum { CHUNK = 512 };
    unsigned long crc = 0;
    for (size_t at = 0; at < page_size; at += CHUNK) {
        for (size_t line = 0; next && line < CHUNK; line += LINE)
            __builtin_prefetch(next + at + line);
        crc = hasher->crc32(crc, page + at, CHUNK);
    }
    return crc;
}

int ps_simd_best(void)
{
    return PS_SIMD_BASE;
}

ps_kernel ps_kernel_of(const struct ps_hasher *hasher)
{
    if (hasher->simd < PS_SIMD_BASE || hasher->simd > ps_simd_best())
        return NULL;
    switch (hasher->hash) {
    case PS_HASH_READ:
        return bare_read;
    case PS_HASH_XXH64:
        return xxh64;
    case PS_HASH_CRC32:
        return hasher->crc32 ? crc32_by_zlib : NULL;
    default:
        return NULL;
    }
}
