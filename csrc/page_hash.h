/* SPDX-License-Identifier: MIT */
/* Hash of one whole page, from the published xxHash specification. */
#ifndef PS_PAGE_HASH_H
#define PS_PAGE_HASH_H

#include "pysampler.h"

/*
 * A kernel hashes page and prefetches ahead, a page to be hashed soon, meanwhile, when ahead is
 * not NULL. A prefetch never faults, so ahead need not be readable.
 */
typedef uint64_t (*ps_kernel)(const struct ps_hasher *hasher, const uint8_t *page,
                              size_t page_size, const uint8_t *ahead);

/* NULL when the hash or the SIMD level is unknown. */
ps_kernel ps_kernel_of(const struct ps_hasher *hasher);

#endif
