/* SPDX-License-Identifier: MIT */
/* The vCPU's side of the dirty log, as struct ps_dirty_log describes it: it notes what it writes.
 */
#ifndef PYSAMPLER_VCPU_LOG_H
#define PYSAMPLER_VCPU_LOG_H

#include <linux/futex.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pysampler.h"

/* A vCPU at a full ring looks this often whether it was interrupted. */
static const long LOG_LOOK_NS = 1000000;
static const uint64_t LOG_MS_NS = 1000000;

/* One that sleeps after it looks this often whether it still has to. */
static const uint64_t LOG_SLEEP_LOOK_NS = 10000000;

/* The half of a counter that changes, for a futex. */
static inline uint32_t *low_half(uint64_t *counter)
{
    return (uint32_t *)counter + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
}

static inline void kick(struct ps_dirty_log *log)
{
    __atomic_fetch_add(&log->kicks, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &log->kicks, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static inline uint64_t ring_used(const struct ps_log_ring *ring)
{
    return __atomic_load_n(&ring->written, __ATOMIC_RELAXED) -
           __atomic_load_n(&ring->harvested, __ATOMIC_ACQUIRE);
}

/* Looked at between batches: one that has begun is never stopped by its ring. */
static inline bool ring_is_full(const struct ps_vcpu *vcpu)
{
    return vcpu->ring_size &&
           __atomic_load_n(&vcpu->log->mode, __ATOMIC_ACQUIRE) == PS_LOG_BITMAP_AND_RING &&
           ring_used(vcpu->ring) >= vcpu->ring_size;
}

static inline void put_into_ring(struct ps_vcpu *vcpu, uint64_t page)
{
    struct ps_log_ring *const ring = vcpu->ring;
    const uint64_t written = __atomic_load_n(&ring->written, __ATOMIC_RELAXED);

    vcpu->ring_entries[written & (2 * vcpu->ring_size - 1)] = page;
    __atomic_store_n(&ring->written, written + 1, __ATOMIC_RELEASE);
    if (ring_used(ring) == vcpu->ring_size / 2)
        kick(vcpu->log);
}

/* Note a write to page vfn of the working set that has just been done. Returns whether it was the
 * page's first since its bit was taken. */
static inline bool log_write(struct ps_vcpu *vcpu, uint32_t mode, uint64_t vfn)
{
    uint64_t *const word = vcpu->log_words + vfn / 64;
    const uint64_t bit = (uint64_t)1 << vfn % 64;

    if (__atomic_load_n(word, __ATOMIC_RELAXED) & bit)
        return false;
    if (__atomic_fetch_or(word, bit, __ATOMIC_SEQ_CST) & bit)
        return false; /* another vCPU came first */
    if (mode == PS_LOG_BITMAP_AND_RING && vcpu->ring_size)
        put_into_ring(vcpu, vcpu->log_first + vfn);
    return true;
}

/* Wait for the harvest of a ring that had been harvested so far, for a moment. */
static inline void wait_for_harvest(struct ps_log_ring *ring, uint64_t harvested)
{
    const struct timespec t = {0, LOG_LOOK_NS};
    syscall(SYS_futex, low_half(&ring->harvested), FUTEX_WAIT, (uint32_t)harvested, &t, NULL, 0);
}

#endif
