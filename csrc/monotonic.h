/* SPDX-License-Identifier: MIT */
#ifndef PYSAMPLER_MONOTONIC_H
#define PYSAMPLER_MONOTONIC_H

#include <stdint.h>
#include <time.h>

static const uint64_t SECOND_NS = 1000000000;

/* CLOCK_MONOTONIC in ns. */
static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

#endif
