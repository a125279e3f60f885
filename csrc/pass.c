/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>

#include "page_hash.h"
#include "sigbus.h"

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

int64_t ps_hash_mapped(const struct ps_hasher *hasher, const void *base, size_t page_size,
                       const uint64_t *vfns, size_t n, uint64_t *hashes_ret)
{
    const ps_kernel kernel = ps_kernel_of(hasher);
    const uint8_t *const bytes = base;
    const uint8_t *pages[PS_PAGES_AT_ONCE] = {NULL}, *next[PS_PAGES_AT_ONCE];
    struct ps_sigbus_guard guard;
    /* volatile: these are needed after a SIGBUS */
    volatile size_t done = 0;
    volatile size_t at_once = hasher->prefetch ? PS_PAGES_AT_ONCE : 1;

    if (!kernel)
        return -EINVAL;
    ps_sigbus_enter(&guard, pages, page_size);
    /* When one of several pages cannot be read, those before it are hashed singly. */
    if (sigsetjmp(guard.back, 1) != 0)
        at_once = at_once > 1 ? 1 : 0;
    while (at_once > 0 && done < n) {
        const size_t batch = smaller(at_once, n - done);
        for (size_t i = 0; i < batch; i++) {
            pages[i] = bytes + vfns[done + i] * page_size;
            next[i] = bytes + vfns[smaller(done + batch + i, n - 1)] * page_size;
        }
        guard.n_pages = batch;
        kernel(hasher, pages, batch, page_size, hasher->prefetch ? next : NULL, hashes_ret + done);
        done += batch;
    }
    ps_sigbus_leave(&guard);
    return (int64_t)done;
}

int64_t ps_compare_mapped(const void *base, const void *kept, size_t page_size,
                          const uint64_t *vfns, size_t n, int prefetch, uint64_t *n_differ_ret)
{
    enum { LINE = 64, PAGES_AHEAD = 2 };
    const uint8_t *const bytes = base;
    const uint8_t *const copies = kept;
    const uint8_t *pages[1] = {NULL};
    struct ps_sigbus_guard guard;
    volatile size_t done = 0;
    volatile uint64_t n_differ = 0;

    ps_sigbus_enter(&guard, pages, page_size);
    if (sigsetjmp(guard.back, 1) == 0) {
        for (size_t i = 0; i < n; i++) {
            const uint8_t *const page = bytes + vfns[i] * page_size;
            /* memcmp() has no room for prefetches, so they go out in one burst. */
            if (prefetch && i + PAGES_AHEAD < n)
                for (size_t at = 0; at < page_size; at += LINE)
                    __builtin_prefetch(bytes + vfns[i + PAGES_AHEAD] * page_size + at, 0, 2);
            pages[0] = page;
            guard.n_pages = 1;
            __atomic_signal_fence(__ATOMIC_SEQ_CST); /* the handler must find it there */
            n_differ += memcmp(page, copies + i * page_size, page_size) != 0;
            done = i + 1;
        }
    }
    ps_sigbus_leave(&guard);
    *n_differ_ret = n_differ;
    return (int64_t)done;
}
