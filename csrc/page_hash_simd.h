/* SPDX-License-Identifier: MIT */
/*
 * The bare read, both XXH3 and, where MUL_64 is defined, XXH64 with vectors of VEC_SIZE bytes. No
 * include guard: page_hash.c includes it once per SIMD level, with these macros, which end here:
 *   LEVEL(name)       name with the level's suffix
 *   TARGET            function attribute that permits the level's instructions
 *   VEC_SIZE          16 or 32; 32 where MUL_64 is defined
 *   MUL_LOW_32(a, b)  product of the low halves of each pair of 64-bit lanes
 *   SWAP_PAIRS(a)     lane i goes to lane i xor 1
 *   MUL_64(a, b)      product of each pair of 64-bit lanes
 */
typedef uint64_t LEVEL(vec) __attribute__((vector_size(VEC_SIZE)));
/* The same in memory of any alignment and type. */
typedef uint64_t LEVEL(vec_in_memory) __attribute__((vector_size(VEC_SIZE), aligned(1), may_alias));

#define VEC         LEVEL(vec)
#define LOAD_VEC(p) (*(const LEVEL(vec_in_memory) *)(p))

enum { LEVEL(VECS) = LINE / VEC_SIZE };

TARGET KERNEL_BODY LEVEL(bare_read_of)(const uint8_t *const *pages, const int n, size_t page_size,
                                       const uint8_t *const *ahead, uint64_t *hashes_ret)
{
    VEC fold[PS_PAGES_AT_ONCE][LEVEL(VECS)] = {{{0}}};
    for (size_t at = 0; at < page_size; at += LINE) {
        for (int p = 0; p < n; p++) {
            for (int i = 0; i < LEVEL(VECS); i++)
                fold[p][i] ^= LOAD_VEC(pages[p] + at + i * VEC_SIZE);
            if (ahead)
                prefetch(ahead[p] + at);
        }
    }
    for (int p = 0; p < n; p++) {
        uint64_t lanes[8], sum = 0;
        memcpy(lanes, fold[p], sizeof lanes);
        for (int i = 0; i < 8; i++)
            sum ^= lanes[i];
        hashes_ret[p] = sum;
    }
}
KERNEL(LEVEL(bare_read), LEVEL(bare_read_of), TARGET)

TARGET KERNEL_BODY LEVEL(xxh3_acc_of)(const uint8_t *const *pages, const int n, size_t page_size,
                                      const uint8_t *const *ahead, uint64_t acc_ret[][8])
{
    const VEC prime = (VEC){0} + PRIME32_1;
    VEC acc[PS_PAGES_AT_ONCE][LEVEL(VECS)];
    uint64_t lanes[8];
    xxh3_init(lanes);
    for (int p = 0; p < n; p++)
        memcpy(acc[p], lanes, sizeof lanes);
    for (size_t block = 0;; block += BLOCK) {
        const int last_block = block + BLOCK == page_size;
        /* What each stripe adds to its neighbour lanes is added up and swapped once a block. */
        VEC neighbour[PS_PAGES_AT_ONCE][LEVEL(VECS)] = {{{0}}};
        for (size_t stripe = 0; stripe < BLOCK / LINE; stripe++) {
            const size_t at = block + stripe * LINE;
            /* The page's last stripe is the specification's "last 64 bytes". */
            const int last_stripe = last_block && stripe == BLOCK / LINE - 1;
            const uint8_t *const secret = SECRET + (last_stripe ? SECRET_SIZE - 71 : 8 * stripe);
            for (int p = 0; p < n; p++) {
                for (int i = 0; i < LEVEL(VECS); i++) {
                    const VEC data = LOAD_VEC(pages[p] + at + i * VEC_SIZE);
                    const VEC value = data ^ LOAD_VEC(secret + i * VEC_SIZE);
                    neighbour[p][i] += data;
                    acc[p][i] += (VEC)MUL_LOW_32(value, value >> 32);
                }
                if (ahead)
                    prefetch(ahead[p] + at);
            }
        }
        for (int p = 0; p < n; p++)
            for (int i = 0; i < LEVEL(VECS); i++)
                acc[p][i] += (VEC)SWAP_PAIRS(neighbour[p][i]);
        if (last_block)
            break;
        for (int p = 0; p < n; p++) { /* round_scramble */
            for (int i = 0; i < LEVEL(VECS); i++) {
                const VEC key = LOAD_VEC(SECRET + SECRET_SIZE - LINE + i * VEC_SIZE);
                const VEC x = acc[p][i] ^ acc[p][i] >> 47 ^ key;
                acc[p][i] = (VEC)MUL_LOW_32(x, prime) + ((VEC)MUL_LOW_32(x >> 32, prime) << 32);
            }
        }
    }
    for (int p = 0; p < n; p++)
        memcpy(acc_ret[p], acc[p], sizeof lanes);
}

TARGET KERNEL_BODY LEVEL(xxh3_of)(const uint8_t *const *pages, const int n, size_t page_size,
                                  const uint8_t *const *ahead, uint64_t *hashes_ret)
{
    uint64_t acc[PS_PAGES_AT_ONCE][8];
    LEVEL(xxh3_acc_of)(pages, n, page_size, ahead, acc);
    for (int p = 0; p < n; p++)
        hashes_ret[p] = xxh3_finish(acc[p], page_size);
}
KERNEL(LEVEL(xxh3), LEVEL(xxh3_of), TARGET)

TARGET KERNEL_BODY LEVEL(xxh3_128_of)(const uint8_t *const *pages, const int n, size_t page_size,
                                      const uint8_t *const *ahead, uint64_t *hashes_ret)
{
    uint64_t acc[PS_PAGES_AT_ONCE][8];
    LEVEL(xxh3_acc_of)(pages, n, page_size, ahead, acc);
    for (int p = 0; p < n; p++)
        hashes_ret[p] = xxh3_128_finish(acc[p], page_size);
}
KERNEL(LEVEL(xxh3_128), LEVEL(xxh3_128_of), TARGET)

#ifdef MUL_64
/*
 * One page cannot keep the multipliers busy, for each step waits for the one before; several can.
 */
TARGET KERNEL_BODY LEVEL(xxh64_of)(const uint8_t *const *pages, const int n, size_t page_size,
                                   const uint8_t *const *ahead, uint64_t *hashes_ret)
{
    const VEC prime_1 = (VEC){0} + PRIME64_1, prime_2 = (VEC){0} + PRIME64_2;
    VEC acc[PS_PAGES_AT_ONCE]; /* a lane for each of the four accumulators */
    uint64_t lanes[4];
    xxh64_init(lanes);
    for (int p = 0; p < n; p++)
        memcpy(&acc[p], lanes, sizeof lanes);
    for (size_t at = 0; at < page_size; at += LINE) {
        for (int p = 0; p < n; p++) {
            for (int i = 0; i < LEVEL(VECS); i++) {
                const VEC stripe = LOAD_VEC(pages[p] + at + i * VEC_SIZE);
                const VEC sum = acc[p] + MUL_64(stripe, prime_2);
                const VEC rotated = sum << 31 | sum >> 33;
                acc[p] = MUL_64(rotated, prime_1);
            }
            if (ahead)
                prefetch(ahead[p] + at);
        }
    }
    for (int p = 0; p < n; p++) {
        memcpy(lanes, &acc[p], sizeof lanes);
        hashes_ret[p] = xxh64_finish(lanes, page_size);
    }
}
KERNEL(LEVEL(xxh64), LEVEL(xxh64_of), TARGET)
#endif

#undef VEC
#undef LOAD_VEC
#undef MUL_64
#undef LEVEL
#undef TARGET
#undef VEC_SIZE
#undef MUL_LOW_32
#undef SWAP_PAIRS
