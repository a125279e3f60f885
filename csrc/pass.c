/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>

#include "page_hash.h"
#include "sigbus.h"

/*
 * Each page is prefetched while the page this many before it is hashed. At 1 its first lines
 * are still on their way when they are needed; beyond 2 nothing is gained.
 */
enum { PAGES_AHEAD = 2 };

/* One line of each page is prefetched this early, so that its address is translated by then. */
enum { TRANSLATE_AHEAD = 6 };

int64_t ps_hash_mapped(const struct ps_hasher *hasher, const void *base, size_t page_size,
                       const uint64_t *vfns, size_t n, uint64_t *hashes_ret)
{
    const ps_kernel kernel = ps_kernel_of(hasher);
    const uint8_t *const bytes = base;
    const size_t n_prefetched = hasher->prefetch && n > PAGES_AHEAD ? n - PAGES_AHEAD : 0;
    const size_t n_translated = hasher->prefetch && n > TRANSLATE_AHEAD ? n - TRANSLATE_AHEAD : 0;
    struct ps_sigbus_guard guard = {.page_size = page_size};
    volatile size_t done = 0; /* volatile: its value is needed after a SIGBUS */

    if (!kernel)
        return -EINVAL;
    ps_sigbus_enter(&guard);
    if (sigsetjmp(guard.back, 0) == 0) {
        for (size_t i = 0; i < n; i++) {
            const uint8_t *const page = bytes + vfns[i] * page_size;
            const uint8_t *const ahead =
                i < n_prefetched ? bytes + vfns[i + PAGES_AHEAD] * page_size : NULL;
            if (i < n_translated)
                __builtin_prefetch(bytes + vfns[i + TRANSLATE_AHEAD] * page_size, 0, 2);
            guard.page = page;
            hashes_ret[i] = kernel(hasher, page, page_size, ahead);
            done = i + 1;
        }
    }
    ps_sigbus_leave(&guard);
    return (int64_t)done;
}

int64_t ps_compare_mapped(const void *base, const void *kept, size_t page_size,
                          const uint64_t *vfns, size_t n, int prefetch, uint64_t *n_differ_ret)
{
    enum { LINE = 64 };
    const uint8_t *const bytes = base;
    const uint8_t *const copies = kept;
    struct ps_sigbus_guard guard = {.page_size = page_size};
    volatile size_t done = 0;
    volatile uint64_t n_differ = 0;

    ps_sigbus_enter(&guard);
    if (sigsetjmp(guard.back, 0) == 0) {
        for (size_t i = 0; i < n; i++) {
            const uint8_t *const page = bytes + vfns[i] * page_size;
            /* memcmp() has no room for prefetches, so they go out in one burst. */
            if (prefetch && i + PAGES_AHEAD < n)
                for (size_t at = 0; at < page_size; at += LINE)
                    __builtin_prefetch(bytes + vfns[i + PAGES_AHEAD] * page_size + at, 0, 2);
            guard.page = page;
            n_differ += memcmp(page, copies + i * page_size, page_size) != 0;
            done = i + 1;
        }
    }
    ps_sigbus_leave(&guard);
    *n_differ_ret = n_differ;
    return (int64_t)done;
}
