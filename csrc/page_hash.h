/* SPDX-License-Identifier: MIT */
/* Hashes of whole pages. */
#ifndef PS_PAGE_HASH_H
#define PS_PAGE_HASH_H

#include "pysampler.h"

/*
 * Cold pages are hashed four at a time, line by line in turn. What a cold page of 4 KiB costs is
 * to a good part the walk through the page tables; this way four walks overlap. Measured on a
 * Zen 4, four take 0.6 of the time of one at a time; six would gain another 3 %.
 */
enum { PS_PAGES_AT_ONCE = 4 };

/*
 * A kernel hashes n pages, 1 to PS_PAGES_AT_ONCE, and prefetches ahead, the n pages to be hashed
 * next, meanwhile, when ahead is not NULL. A prefetch never faults, so those need not be readable.
 */
typedef void (*ps_kernel)(const struct ps_hasher *hasher, const uint8_t *const *pages, size_t n,
                          size_t page_size, const uint8_t *const *ahead, uint64_t *hashes_ret);

/* NULL when the hash or the SIMD level is unknown. */
ps_kernel ps_kernel_of(const struct ps_hasher *hasher);

#endif
