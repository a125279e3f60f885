/* SPDX-License-Identifier: MIT */
/* The emulated guest's inner loop: paced writes in a pattern, counted in shared memory. Other vCPUs
 * write the same pages and samplers read them meanwhile: that race is what a guest is. */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "monotonic.h"
#include "pysampler.h"
#include "vcpu_log.h"
#include "vcpu_pattern.h"

/* Targets are found this many writes ahead and prefetched: a write to a cold page waits for memory,
 * and so many of them wait together. */
enum { BATCH = 32 };
_Static_assert((int)BATCH <= (int)PS_LOG_SPARE,
               "a batch must find room in a ring that is not full");

/* A paced vCPU wakes up this often. */
static const uint64_t QUANTUM_NS = 1000000;

/* ---- writes ---- */

/* What a vCPU without a log looks at. */
static const struct ps_dirty_log NO_LOG = {.mode = PS_LOG_OFF};

/* Log a write that has been done, if there is somebody who wants to know. */
static inline void note_write(struct ps_vcpu *vcpu, const struct ps_dirty_log *log, bool fence,
                              uint64_t vfn)
{
    if (fence)
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* first memory, then the mode and the bit */
    const uint32_t mode = __atomic_load_n(&log->mode, __ATOMIC_RELAXED);
    if (__builtin_expect(mode != PS_LOG_BITMAP && mode != PS_LOG_BITMAP_AND_RING, 1))
        return;
    if (log_write(vcpu, mode, vfn) && log->cost_ns) {
        const uint64_t end = now_ns() + log->cost_ns;
        while (now_ns() < end)
            ;
    }
}

static inline void write_silently(uint64_t *word)
{
    /* Exchanging a value with itself stores it, and cannot undo what another vCPU writes. */
    uint64_t value = __atomic_load_n(word, __ATOMIC_RELAXED);
    __atomic_compare_exchange_n(word, &value, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

static inline void write_target(struct ps_vcpu *vcpu, const struct ps_dirty_log *log, bool fence,
                                uint64_t target, uint64_t count)
{
    const uint64_t vfn = target / PAGE;
    uint64_t *const word = (uint64_t *)((char *)vcpu->base + (target & ~SILENT));

    if (vcpu->effect == PS_EFFECT_READ) {
        (void)__atomic_load_n(word, __ATOMIC_RELAXED);
        __atomic_store_n(vcpu->writes, count, __ATOMIC_RELEASE);
        return;
    }
    if (vcpu->effect == PS_EFFECT_FREE) {
        uint64_t *const page = (uint64_t *)((char *)vcpu->base + vfn * PAGE);
        for (int i = 0; i < WORDS; i++)
            __atomic_store_n(page + i, 0, __ATOMIC_RELAXED);
    } else if (vcpu->effect == PS_EFFECT_SILENT || target & SILENT) {
        write_silently(word);
    } else {
        __atomic_store_n(word, vcpu->index << 48 | count, __ATOMIC_RELAXED);
    }
    note_write(vcpu, log, fence, vfn);
    if (vcpu->stamps) {
        /* The write may have waited long for its page, so the clock must be read after it. */
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        __atomic_store_n(vcpu->stamps + vfn, now_ns(), __ATOMIC_RELEASE);
    }
    __atomic_store_n(vcpu->writes, count, __ATOMIC_RELEASE);
}

/* Write n times. A batch once begun is completed: the sequence has no gaps. */
static void write_batch(struct ps_vcpu *vcpu, uint64_t n)
{
    const struct ps_dirty_log *const log = vcpu->log ? vcpu->log : &NO_LOG;
    const bool fence = log->fence;
    uint64_t targets[BATCH];

    next_targets(vcpu, n, targets);
    uint64_t count = *vcpu->writes;
    for (uint64_t i = 0; i < n; i++)
        write_target(vcpu, log, fence, targets[i], ++count);
}

/* ---- time ---- */

static bool interrupted(const struct ps_vcpu *vcpu)
{
    return __atomic_load_n(&vcpu->interrupt, __ATOMIC_ACQUIRE);
}

static void wake(struct ps_vcpu *vcpu)
{
    syscall(SYS_futex, &vcpu->interrupt, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void ps_vcpu_interrupt(struct ps_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->interrupt, 1, __ATOMIC_RELEASE);
    wake(vcpu);
}

static void wait_until(const struct ps_vcpu *vcpu, uint64_t ns)
{
    const struct timespec t = {(time_t)(ns / SECOND_NS), (long)(ns % SECOND_NS)};
    syscall(SYS_futex, &vcpu->interrupt, FUTEX_WAIT_BITSET_PRIVATE, 0, &t, NULL,
            FUTEX_BITSET_MATCH_ANY);
}

uint64_t ps_pace_due(struct ps_pace *pace, uint64_t now)
{
    const uint64_t near_ns = 4 * QUANTUM_NS;
    const uint64_t rate = pace->writes_per_second;
    /* Beyond what will be carried a longer absence changes nothing, and must not overflow. */
    const uint64_t carry = PS_PACE_CARRY_NS + SECOND_NS / rate + 1;
    const uint64_t elapsed = smaller(now - pace->last_ns, carry);
    const uint64_t regular = elapsed < QUANTUM_NS ? QUANTUM_NS : smaller(elapsed, near_ns);

    pace->last_ns = now;
    pace->credit = smaller(pace->credit + elapsed * rate, carry * rate);
    const uint64_t most = 1 + (regular + regular / 4) * rate / SECOND_NS;
    const uint64_t due = smaller(pace->credit / SECOND_NS, most);
    pace->credit -= due * SECOND_NS;
    return due;
}

/* When to look again: a quantum later, or when the next write falls due. */
static uint64_t next_look(const struct ps_pace *pace)
{
    const uint64_t missing = pace->credit < SECOND_NS ? SECOND_NS - pace->credit : 0;
    const uint64_t one_write = missing / pace->writes_per_second + 1;
    return pace->last_ns + (one_write > QUANTUM_NS ? one_write : QUANTUM_NS);
}

uint64_t ps_pace_missed(struct ps_pace *pace, uint64_t absent_ns, uint64_t left)
{
    const uint64_t rate = pace->writes_per_second;
    const uint64_t most = pace->lag_ns * rate / SECOND_NS;
    /* Less than a write is kept, that many short absences add up. */
    const uint64_t missed = smaller(absent_ns, pace->lag_ns) * rate + pace->missed;

    pace->missed = missed % SECOND_NS;
    return left >= most ? left : smaller(left + missed / SECOND_NS, most);
}

/* When a burst's turn ends: writing for on_ns, then resting for off_ns, counted from origin_ns. */
static uint64_t burst_end(const struct ps_vcpu *vcpu, uint64_t origin_ns, uint64_t now,
                          bool *resting_ret)
{
    *resting_ret = false;
    if (!vcpu->off_ns)
        return UINT64_MAX;
    const uint64_t cycle_ns = vcpu->on_ns + vcpu->off_ns;
    const uint64_t into = (now - origin_ns) % cycle_ns;
    *resting_ret = into >= vcpu->on_ns;
    return now - into + (*resting_ret ? cycle_ns : vcpu->on_ns);
}

/* A time that is never reached where 64 bits hold none that is so late. */
static uint64_t later(uint64_t time, uint64_t ns)
{
    return ns < UINT64_MAX - time ? time + ns : UINT64_MAX;
}

uint64_t ps_throttle_end(struct ps_throttle *throttle, uint64_t now)
{
    const uint64_t sleep_ns = __atomic_load_n(&throttle->sleep_ns, __ATOMIC_ACQUIRE);

    if (!sleep_ns || sleep_ns == UINT64_MAX) {
        const uint64_t asleep = sleep_ns != 0;
        if (!asleep || !throttle->asleep)
            throttle->began_ns = now;
        throttle->asleep = asleep;
        throttle->overrun_ns = 0;
        return UINT64_MAX;
    }
    const uint64_t turn_ns = throttle->asleep ? sleep_ns : PS_THROTTLE_RUN_NS;
    const uint64_t into = now - throttle->began_ns;
    if (into < turn_ns)
        return later(throttle->began_ns, turn_ns);
    const uint64_t late = into - turn_ns;
    throttle->asleep = !throttle->asleep;
    if (throttle->asleep) {
        throttle->overrun_ns = late;
        throttle->began_ns = now;
        return later(now, sleep_ns);
    }
    /* It runs shorter by what it ran too long before and slept too long now: the share is kept. */
    const uint64_t less = later(throttle->overrun_ns, late);
    throttle->began_ns = less < PS_THROTTLE_RUN_NS ? now - less : now;
    return throttle->began_ns + PS_THROTTLE_RUN_NS;
}

void ps_vcpu_throttle(struct ps_vcpu *vcpu, uint64_t sleep_ns)
{
    __atomic_store_n(&vcpu->throttle.sleep_ns, sleep_ns, __ATOMIC_RELEASE);
    wake(vcpu); /* it may have slept long enough now */
}

/* Wait until wake, at most. What fell due before `from` is done after the pause; none falls due in
 * it. Returns how far in the pause, which ends at end, it is now. */
static uint64_t pause_vcpu(struct ps_vcpu *vcpu, uint64_t from, uint64_t wake, uint64_t end,
                           uint64_t *left)
{
    struct ps_pace *const pace = &vcpu->pace;

    if (pace->writes_per_second && pace->last_ns < from)
        *left += ps_pace_due(pace, from);
    wait_until(vcpu, wake);
    pace->last_ns = smaller(now_ns(), end);
    return pace->last_ns;
}

/* A throttled one looks at least this often at what it is told: a word may just miss its sleep. */
static const uint64_t SLEEP_NS = 10000000;

uint64_t ps_throttle_slept(const struct ps_throttle *throttle, uint64_t now)
{
    const int64_t slept_ns = __atomic_load_n(&throttle->slept_ns, __ATOMIC_ACQUIRE);
    if (slept_ns >= 0)
        return (uint64_t)slept_ns;
    const uint64_t wake = __atomic_load_n(&throttle->wake_ns, __ATOMIC_ACQUIRE);
    const int64_t until = (int64_t)smaller(now, wake);
    return until > -slept_ns ? (uint64_t)(slept_ns + until) : 0;
}

/* Sleep as the throttle says. One word tells how long it has slept at any moment meanwhile: who
 * measures it need not wait for the end. What was missed so is up to the workload. */
static void sleep_throttled(struct ps_vcpu *vcpu, uint64_t now, uint64_t end, uint64_t *left)
{
    struct ps_throttle *const throttle = &vcpu->throttle;
    const int64_t before = throttle->slept_ns;
    const uint64_t wake = smaller(end, now + SLEEP_NS);

    __atomic_store_n(&throttle->wake_ns, wake, __ATOMIC_RELEASE);
    __atomic_store_n(&throttle->slept_ns, before - (int64_t)now, __ATOMIC_RELEASE);
    const uint64_t slept = pause_vcpu(vcpu, now, wake, end, left) - now;
    __atomic_store_n(&throttle->slept_ns, before + (int64_t)slept, __ATOMIC_RELEASE);
    if (vcpu->pace.writes_per_second)
        *left = ps_pace_missed(&vcpu->pace, slept, *left);
}

/* Stand at a full ring until it is harvested, or until end. A guest whose reader stands still gives
 * its log up. To the pace this is lateness, as a stop of the whole machine would be. */
static void stand_at_full_ring(struct ps_vcpu *vcpu, uint64_t now, uint64_t end)
{
    struct ps_log_ring *const ring = vcpu->ring;

    if (!vcpu->full_since_ns) {
        vcpu->full_since_ns = now;
        __atomic_store_n(&ring->n_full, ring->n_full + 1, __ATOMIC_RELEASE);
        kick(vcpu->log);
    }
    const uint64_t began = now, give_up = vcpu->full_since_ns + PS_LOG_HOLD_MS * LOG_MS_NS;
    while (now < end && !interrupted(vcpu)) {
        const uint64_t harvested = __atomic_load_n(&ring->harvested, __ATOMIC_ACQUIRE);
        if (!ring_is_full(vcpu))
            break;
        if (now >= give_up) {
            __atomic_store_n(&vcpu->log->mode, PS_LOG_GIVEN_UP, __ATOMIC_RELEASE);
            break;
        }
        wait_for_harvest(ring, harvested);
        now = now_ns();
    }
    __atomic_store_n(&ring->stood_ns, ring->stood_ns + now - began, __ATOMIC_RELEASE);
}

static void set_sleep(struct ps_vcpu *vcpu, uint64_t until_ns)
{
    vcpu->asleep_until_ns = until_ns;
    __atomic_store_n(&vcpu->ring->asleep_until_ns, until_ns, __ATOMIC_RELEASE);
}

/* The ring has been harvested: what else its vCPU has to wait, as dirty-limit throttles. */
static void leave_full_ring(struct ps_vcpu *vcpu, uint64_t now)
{
    const uint64_t sleep_ns = __atomic_load_n(&vcpu->ring->sleep_ns, __ATOMIC_ACQUIRE);

    vcpu->full_since_ns = 0;
    set_sleep(vcpu, now + smaller(sleep_ns, PS_LOG_SLEEP_MS * LOG_MS_NS));
}

/* Sleep on after a full ring, or wake up if there is no limit any more. */
static void sleep_after_full_ring(struct ps_vcpu *vcpu, uint64_t now, uint64_t end, uint64_t *left)
{
    if (!__atomic_load_n(&vcpu->ring->sleep_ns, __ATOMIC_ACQUIRE)) {
        set_sleep(vcpu, 0);
        return;
    }
    const uint64_t look = now + LOG_SLEEP_LOOK_NS;
    sleep_throttled(vcpu, now, smaller(smaller(end, look), vcpu->asleep_until_ns), left);
}

int ps_vcpu_run(struct ps_vcpu *vcpu, uint64_t origin_ns, uint64_t until_ns)
{
    struct ps_pace *const pace = &vcpu->pace;
    uint64_t look = 0, left = 0; /* when to ask for writes again; writes granted but not done */

    pace->last_ns = now_ns();
    prepare_pattern(vcpu);
    while (!interrupted(vcpu)) {
        const uint64_t now = now_ns();
        if (now >= until_ns)
            return 0;
        bool resting;
        const uint64_t burst = burst_end(vcpu, origin_ns, now, &resting);
        const uint64_t throttle = ps_throttle_end(&vcpu->throttle, now);
        const uint64_t end = smaller(until_ns, resting ? burst : smaller(burst, throttle));
        if (resting) {
            pause_vcpu(vcpu, burst - vcpu->off_ns, end, end, &left);
            look = 0;
        } else if (vcpu->throttle.asleep) {
            sleep_throttled(vcpu, now, end, &left);
            look = 0;
        } else if (ring_is_full(vcpu)) {
            stand_at_full_ring(vcpu, now, end);
        } else if (vcpu->full_since_ns) {
            leave_full_ring(vcpu, now);
        } else if (now < vcpu->asleep_until_ns) {
            sleep_after_full_ring(vcpu, now, end, &left);
            look = 0;
        } else if (vcpu->pattern == PS_PATTERN_IDLE) {
            wait_until(vcpu, end);
        } else if (!pace->writes_per_second) {
            write_batch(vcpu, BATCH);
        } else if (left) {
            const uint64_t n = smaller(left, BATCH);
            write_batch(vcpu, n);
            left -= n;
        } else if (now < look) {
            wait_until(vcpu, smaller(look, end));
        } else {
            left = ps_pace_due(pace, now);
            look = next_look(pace);
        }
    }
    return 1;
}
