/* SPDX-License-Identifier: MIT */
/*
 * The bare read and both XXH3 with vectors of VEC_SIZE bytes. No include guard: page_hash.c includes
 * it once per SIMD level, with these macros, which end here:
 *   LEVEL(name)       name with the level's suffix
 *   TARGET            function attribute that permits the level's instructions
 *   VEC_SIZE          16, 32 or 64
 *   MUL_LOW_32(a, b)  product of the low halves of each pair of 64-bit lanes
 *   SWAP_PAIRS(a)     lane i goes to lane i xor 1
 */
typedef uint64_t LEVEL(vec) __attribute__((vector_size(VEC_SIZE)));
/* The same in memory of any alignment and type. */
typedef uint64_t LEVEL(vec_in_memory)
    __attribute__((vector_size(VEC_SIZE), aligned(1), may_alias));

#define VEC LEVEL(vec)
#define LOAD_VEC(p) (*(const LEVEL(vec_in_memory) *)(p))

enum { LEVEL(VECS) = LINE / VEC_SIZE };

TARGET READS_GUEST static uint64_t LEVEL(bare_read)(const struct ps_hasher *hasher,
                                                    const uint8_t *page, size_t page_size,
                                                    const uint8_t *ahead)
{
    VEC fold[LEVEL(VECS)] = {0};
    (void)hasher;
    for (size_t at = 0; at < page_size; at += LINE) {
        if (ahead)
            prefetch(ahead + at);
        for (int i = 0; i < LEVEL(VECS); i++)
            fold[i] ^= LOAD_VEC(page + at + i * VEC_SIZE);
    }
    uint64_t lanes[8], sum = 0;
    memcpy(lanes, fold, sizeof lanes);
    for (int i = 0; i < 8; i++)
        sum ^= lanes[i];
    return sum;
}

TARGET READS_GUEST static inline __attribute__((always_inline)) void
LEVEL(xxh3_lanes)(const uint8_t *page, size_t page_size, const uint8_t *ahead, uint64_t lanes[8])
{
    const VEC prime = (VEC){0} + PRIME32_1;
    VEC acc[LEVEL(VECS)];
    xxh3_init(lanes);
    memcpy(acc, lanes, sizeof acc);
    for (size_t block = 0; block < page_size; block += BLOCK) {
        const int last_block = block + BLOCK == page_size;
        /* What each stripe adds to its neighbour lanes is added up and swapped once a block. */
        VEC neighbour[LEVEL(VECS)] = {0};
#pragma GCC unroll 16
        for (int n = 0; n < BLOCK / LINE; n++) {
            const size_t at = block + n * LINE;
            /* The page's last stripe is the specification's "last 64 bytes". */
            const uint8_t *const secret =
                SECRET + (last_block && n == BLOCK / LINE - 1 ? SECRET_SIZE - 71 : 8 * n);
            if (ahead)
                prefetch(ahead + at);
            for (int i = 0; i < LEVEL(VECS); i++) {
                const VEC data = LOAD_VEC(page + at + i * VEC_SIZE);
                const VEC value = data ^ LOAD_VEC(secret + i * VEC_SIZE);
                neighbour[i] += data;
                acc[i] += (VEC)MUL_LOW_32(value, value >> 32);
            }
        }
        for (int i = 0; i < LEVEL(VECS); i++)
            acc[i] += (VEC)SWAP_PAIRS(neighbour[i]);
        if (last_block)
            break;
        for (int i = 0; i < LEVEL(VECS); i++) { /* round_scramble */
            const VEC x =
                acc[i] ^ acc[i] >> 47 ^ LOAD_VEC(SECRET + SECRET_SIZE - LINE + i * VEC_SIZE);
            acc[i] = (VEC)MUL_LOW_32(x, prime) + ((VEC)MUL_LOW_32(x >> 32, prime) << 32);
        }
    }
    memcpy(lanes, acc, sizeof acc);
}

TARGET READS_GUEST static uint64_t LEVEL(xxh3)(const struct ps_hasher *hasher, const uint8_t *page,
                                               size_t page_size, const uint8_t *ahead)
{
    uint64_t lanes[8];
    (void)hasher;
    LEVEL(xxh3_lanes)(page, page_size, ahead, lanes);
    return xxh3_finish(lanes, page_size);
}

TARGET READS_GUEST static uint64_t LEVEL(xxh3_128)(const struct ps_hasher *hasher,
                                                   const uint8_t *page, size_t page_size,
                                                   const uint8_t *ahead)
{
    uint64_t lanes[8];
    (void)hasher;
    LEVEL(xxh3_lanes)(page, page_size, ahead, lanes);
    return xxh3_128_finish(lanes, page_size);
}

#undef VEC
#undef LOAD_VEC
#undef LEVEL
#undef TARGET
#undef VEC_SIZE
#undef MUL_LOW_32
#undef SWAP_PAIRS
