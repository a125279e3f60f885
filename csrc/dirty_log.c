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

/* The entries of a ring that are to be harvested: from *from_ret up to *to_ret. */
static int entries_of(const struct ps_log_ring *ring, uint64_t ring_size, uint64_t *from_ret,
                      uint64_t *to_ret)
{
    *from_ret = __atomic_load_n(&ring->harvested, __ATOMIC_RELAXED);
    *to_ret = __atomic_load_n(&ring->written, __ATOMIC_ACQUIRE);
    return *to_ret - *from_ret > (ring_size ? ring_size + PS_LOG_SPARE : 0) ? -EPROTO : 0;
}

static uint64_t page_at(const uint64_t *entries, uint64_t ring_size, uint64_t i)
{
    return __atomic_load_n(entries + (i & (2 * ring_size - 1)), __ATOMIC_RELAXED);
}

/* Give the vCPU its entries back, of which there were `from` before. */
static void release_entries(struct ps_log_ring *ring, uint64_t from, uint64_t to)
{
    __atomic_store_n(&ring->harvested, to, __ATOMIC_RELEASE);
    if (to != from)
        syscall(SYS_futex, low_half(&ring->harvested), FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

int64_t ps_log_harvest(struct ps_log_ring *ring, const uint64_t *entries, uint64_t ring_size,
                       uint64_t *seen, uint64_t n_bits)
{
    uint64_t from, to;
    int64_t n_new = 0;

    if (entries_of(ring, ring_size, &from, &to) < 0)
        return -EPROTO;
    for (uint64_t i = from; i != to; i++) {
        const uint64_t page = page_at(entries, ring_size, i);
        if (page >= n_bits)
            return -EPROTO;
        const uint64_t bit = (uint64_t)1 << page % 64;
        n_new += !(seen[page / 64] & bit);
        seen[page / 64] |= bit;
    }
    release_entries(ring, from, to);
    return n_new;
}

int64_t ps_log_collect(struct ps_log_ring *ring, const uint64_t *entries, uint64_t ring_size,
                       uint64_t *words, uint64_t *kept, uint64_t n_bits)
{
    uint64_t from, to;

    if (entries_of(ring, ring_size, &from, &to) < 0)
        return -EPROTO;
    for (uint64_t i = from; i != to; i++) {
        const uint64_t page = page_at(entries, ring_size, i);
        if (page >= n_bits)
            return -EPROTO;
        const uint64_t bit = (uint64_t)1 << page % 64;
        /* Clear already: it was taken, and may have been read, since it entered the ring. */
        const uint64_t was = __atomic_fetch_and(words + page / 64, ~bit, __ATOMIC_SEQ_CST);
        if (kept)
            kept[page / 64] |= was & bit;
    }
    release_entries(ring, from, to);
    return (int64_t)(to - from);
}

void ps_log_sleep_at_full(struct ps_log_ring *ring, uint64_t sleep_ns)
{
    __atomic_store_n(&ring->sleep_ns, sleep_ns, __ATOMIC_RELEASE);
}

void ps_log_wait(struct ps_dirty_log *log, uint32_t *kicks)
{
    const struct timespec t = {0, 100000000};

    syscall(SYS_futex, &log->kicks, FUTEX_WAIT, *kicks, &t, NULL, 0);
    *kicks = __atomic_load_n(&log->kicks, __ATOMIC_ACQUIRE);
}
