/* SPDX-License-Identifier: MIT */
/*
 * Surviving SIGBUS while reading pages, which a mapping raises beyond the end of a truncated
 * file and on a page whose memory has failed.
 *
 *     struct ps_sigbus_guard guard;
 *     ps_sigbus_enter(&guard, pages, page_size);
 *     if (sigsetjmp(guard.back, 1) == 0) {
 *         guard.n_pages = 3;
 *         ... reads of pages[0..2]; when one raises SIGBUS, sigsetjmp returns once more ...
 *     }
 *     ps_sigbus_leave(&guard);
 */
#ifndef PS_SIGBUS_H
#define PS_SIGBUS_H

#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

struct ps_sigbus_guard {
    sigjmp_buf back;
    sigset_t mask_before;
    const uint8_t *const *pages;
    size_t page_size;
    volatile size_t n_pages; /* a SIGBUS inside of these pages is ours */
};

/* Guards of one thread do not nest. */
void ps_sigbus_enter(struct ps_sigbus_guard *guard, const uint8_t *const *pages, size_t page_size);
void ps_sigbus_leave(const struct ps_sigbus_guard *guard);

#endif
