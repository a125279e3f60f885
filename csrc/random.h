/* SPDX-License-Identifier: MIT */
/* Random numbers as a function of a counter, so that any of them can be had by itself: SplitMix64
 * (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). */
#ifndef PS_RANDOM_H
#define PS_RANDOM_H

#include <stdint.h>

static inline uint64_t ps_random(uint64_t seed, uint64_t counter)
{
    uint64_t z = seed + counter * 0x9E3779B97F4A7C15U;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

#endif
