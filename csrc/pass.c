/* SPDX-License-Identifier: MIT */
#include <errno.h>

#include "page_hash.h"

int64_t ps_hash_mapped(const struct ps_hasher *hasher, const void *base, size_t page_size,
                       const uint64_t *vfns, size_t n, uint64_t *hashes_ret)
{
    const ps_kernel kernel = ps_kernel_of(hasher);
    const uint8_t *const bytes = base;

    if (!kernel)
        return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *next =
            hasher->prefetch && i + 1 < n ? bytes + vfns[i + 1] * page_size : NULL;
        hashes_ret[i] = kernel(hasher, bytes + vfns[i] * page_size, page_size, next);
    }
    return (int64_t)n;
}
