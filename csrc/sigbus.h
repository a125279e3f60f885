/* SPDX-License-Identifier: MIT */
/*
 * Surviving SIGBUS while reading a page, which a mapping raises beyond the end of a truncated
 * file and on a page whose memory has failed.
 *
 *     struct ps_sigbus_guard guard = {.page_size = page_size};
 *     ps_sigbus_enter(&guard);
 *     if (sigsetjmp(guard.back, 0) == 0) {
 *         guard.page = page;
 *         ... reads of page; when one raises SIGBUS, sigsetjmp returns a second time ...
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
    size_t page_size;
    const uint8_t *volatile page; /* SIGBUS inside of this page is ours; NULL: none */
    sigset_t mask_before;
};

/* Guards of one thread do not nest. */
void ps_sigbus_enter(struct ps_sigbus_guard *guard);
void ps_sigbus_leave(const struct ps_sigbus_guard *guard);

#endif
