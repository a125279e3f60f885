/* SPDX-License-Identifier: MIT */
/* The reader's side of the emulated guest's dirty log. It may be another process, and may not trust
 * what the guest's process has put there: all is bounded by what the caller knows. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/membarrier.h>

#include "vcpu_log.h"

uint64_t ps_log_magic(void)
{
    return 0x676f6c7370; /* "pslog" */
}

static int barrier_call(int command)
{
    return syscall(SYS_membarrier, command, 0, 0) < 0 ? -errno : 0;
}

int ps_log_register(void)
{
    return barrier_call(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED);
}

/* On each CPU that runs a thread of a registered process. */
static int barrier_everywhere(void)
{
    return barrier_call(MEMBARRIER_CMD_GLOBAL_EXPEDITED);
}

int ps_log_set_mode(struct ps_dirty_log *log, uint32_t mode)
{
    __atomic_store_n(&log->mode, mode, __ATOMIC_SEQ_CST);
    return barrier_everywhere();
}

uint32_t ps_log_mode(const struct ps_dirty_log *log)
{
    return __atomic_load_n(&log->mode, __ATOMIC_ACQUIRE);
}

int ps_log_take(uint64_t *words, size_t n, uint64_t *words_ret)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t taken = __atomic_load_n(words + i, __ATOMIC_RELAXED);
        if (taken)
            taken = __atomic_exchange_n(words + i, 0, __ATOMIC_SEQ_CST);
        if (words_ret)
            words_ret[i] = taken;
    }
    return barrier_everywhere();
}

uint64_t ps_log_count(const uint64_t *words, size_t n)
{
    uint64_t count = 0;

    for (size_t i = 0; i < n; i++)
        count += (uint64_t)__builtin_popcountll(__atomic_load_n(words + i, __ATOMIC_RELAXED));
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return count;
}

int64_t ps_log_harvest(struct ps_log_ring *ring, const uint64_t *entries, uint64_t *seen,
                       uint64_t n_bits)
{
    const uint64_t harvested = __atomic_load_n(&ring->harvested, __ATOMIC_RELAXED);
    const uint64_t written = __atomic_load_n(&ring->written, __ATOMIC_ACQUIRE);
    int64_t n_new = 0;

    if (written - harvested > PS_LOG_RING)
        return -EPROTO;
    for (uint64_t i = harvested; i != written; i++) {
        const uint64_t page = __atomic_load_n(entries + i % PS_LOG_RING, __ATOMIC_RELAXED);
        if (page >= n_bits)
            return -EPROTO;
        const uint64_t bit = (uint64_t)1 << page % 64;
        n_new += !(seen[page / 64] & bit);
        seen[page / 64] |= bit;
    }
    __atomic_store_n(&ring->harvested, written, __ATOMIC_RELEASE);
    if (written != harvested)
        syscall(SYS_futex, low_half(&ring->harvested), FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    return n_new;
}

void ps_log_wait(struct ps_dirty_log *log, uint32_t *kicks)
{
    const struct timespec t = {0, 100000000};

    syscall(SYS_futex, &log->kicks, FUTEX_WAIT, *kicks, &t, NULL, 0);
    *kicks = __atomic_load_n(&log->kicks, __ATOMIC_ACQUIRE);
}
