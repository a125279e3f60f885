/* SPDX-License-Identifier: MIT */
/* The emulated guest's inner loop: paced writes in a pattern, counted in shared memory. Other vCPUs
 * write the same pages and samplers read them meanwhile: that race is what a guest is. */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <math.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pysampler.h"
#include "random.h"

enum { PAGE = 4096, WORDS = PAGE / 8 };

/* Targets are found this many writes ahead and prefetched: a write to a cold page waits for memory,
 * and so many of them wait together. */
enum { BATCH = 32 };

/* A paced vCPU wakes up this often. */
static const uint64_t QUANTUM_NS = 1000000;
static const uint64_t SECOND_NS = 1000000000;

/* A target is the offset of 8 aligned bytes in the working set; this bit makes its write silent. */
static const uint64_t SILENT = 1;

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

/* ---- random numbers ---- */

static inline uint64_t draw(struct ps_vcpu *vcpu)
{
    return ps_random(vcpu->seed, ++vcpu->draws);
}

/* A target on one of n pages from first on: page and word come from one random number. */
static inline uint64_t draw_page(struct ps_vcpu *vcpu, uint64_t first, uint64_t n)
{
    const unsigned __int128 product = (unsigned __int128)draw(vcpu) * n;
    const uint64_t vfn = first + (uint64_t)(product >> 64);
    return vfn * PAGE + ((uint64_t)product >> 55) * 8;
}

static double expm1_ratio(double x)
{
    return fabs(x) < 1e-8 ? 1 + x / 2 : expm1(x) / x;
}

static double log1p_ratio(double x)
{
    return fabs(x) < 1e-8 ? 1 - x / 2 : log1p(x) / x;
}

/* The integral of x^-theta from 1, and its inverse; theta may be 1. */
static double zipf_integral(double theta, double x)
{
    const double l = log(x);
    return expm1_ratio((1 - theta) * l) * l;
}

static double zipf_inverse(double theta, double y)
{
    const double t = fmax((1 - theta) * y, -1);
    return exp(log1p_ratio(t) * y);
}

/* A rank from 1 to n_ranks by rejection-inversion, which is exact and needs no table: Hoermann and
 * Derflinger, "Rejection-inversion to generate variates from monotone discrete distributions",
 * TOMACS 6 (1996). *spare_ret gets random bits that the rank does not depend on. */
static uint64_t draw_rank(struct ps_vcpu *vcpu, uint64_t *spare_ret)
{
    const double theta = vcpu->theta, n = (double)vcpu->n_ranks;
    const double low = vcpu->zipf_low, high = vcpu->zipf_high;

    for (;;) {
        const uint64_t random = draw(vcpu);
        const double y = high + (double)(random >> 11) * 0x1p-53 * (low - high);
        const double k = fmin(fmax(floor(zipf_inverse(theta, y) + 0.5), 1), n);
        if (y >= zipf_integral(theta, k + 0.5) - exp(-theta * log(k))) {
            *spare_ret = random & (WORDS - 1);
            return (uint64_t)k;
        }
    }
}

static inline uint64_t scatter(const struct ps_vcpu *vcpu, uint64_t rank)
{
    return (rank - 1) * vcpu->stride % vcpu->n_ranks;
}

/* ---- patterns: the next target ---- */

static uint64_t next_zipf(struct ps_vcpu *vcpu)
{
    uint64_t word;
    const uint64_t rank = draw_rank(vcpu, &word);
    return scatter(vcpu, rank) * PAGE + word * 8;
}

static uint64_t begin_store(struct ps_kv *kv, uint64_t key)
{
    const uint64_t at = kv->item_at[key];
    kv->rest_at = (at / PAGE + 1) * PAGE;
    kv->rest_end = at + kv->item_bytes[key];
    if (kv->rest_at > kv->rest_end)
        kv->rest_at = kv->rest_end;
    return at;
}

/* memcached never changes an item in place: the new one takes the chunk that was freed last, and
 * the old one's header is then linked into the free list. */
static uint64_t begin_update(struct ps_kv *kv, uint64_t key)
{
    const uint64_t old = kv->item_at[key];
    uint64_t *const free_at = &kv->free_at[kv->item_class[key]];
    kv->item_at[key] = *free_at;
    *free_at = old;
    kv->unlink = 1 + old;
    return begin_store(kv, key);
}

static uint64_t next_kv(struct ps_vcpu *vcpu)
{
    struct ps_kv *const kv = &vcpu->kv;
    uint64_t spare;

    if (kv->rest_at < kv->rest_end) {
        const uint64_t at = kv->rest_at;
        kv->rest_at = smaller(at + PAGE, kv->rest_end);
        return at;
    }
    if (kv->unlink) {
        const uint64_t at = kv->unlink - 1;
        kv->unlink = 0;
        return at;
    }
    if (kv->modify) {
        const uint64_t key = kv->modify - 1;
        kv->modify = 0;
        return begin_update(kv, key);
    }
    const bool read = draw(vcpu) < kv->reads;
    if (kv->write == PS_KV_INSERT && !read) {
        kv->newest = (kv->newest + 1) % kv->n_keys;
        return begin_update(kv, kv->newest);
    }
    const uint64_t rank = draw_rank(vcpu, &spare);
    const uint64_t key = kv->write == PS_KV_INSERT
                             ? (kv->newest + kv->n_keys - (rank - 1)) % kv->n_keys
                             : scatter(vcpu, rank);
    if (!read && kv->write == PS_KV_UPDATE)
        return begin_update(kv, key);
    if (!read)
        kv->modify = 1 + key;
    /* A reader takes a reference and drops it: the header is written and ends as it was. */
    return kv->item_at[key] | SILENT;
}

static inline uint64_t next_target(struct ps_vcpu *vcpu)
{
    switch (vcpu->pattern) {
    case PS_PATTERN_HOTCOLD:
        if (draw(vcpu) < vcpu->hits || vcpu->hot_pages == vcpu->n_pages)
            return draw_page(vcpu, 0, vcpu->hot_pages);
        return draw_page(vcpu, vcpu->hot_pages, vcpu->n_pages - vcpu->hot_pages);
    case PS_PATTERN_ZIPF:
        return next_zipf(vcpu);
    case PS_PATTERN_SWEEP:
        return draw_page(vcpu, vcpu->position++ % vcpu->n_pages, 1);
    case PS_PATTERN_KV:
        return next_kv(vcpu);
    default:
        return draw_page(vcpu, 0, vcpu->n_pages);
    }
}

/* ---- writes ---- */

static inline void write_silently(uint64_t *word)
{
    /* Exchanging a value with itself stores it, and cannot undo what another vCPU writes. */
    uint64_t value = __atomic_load_n(word, __ATOMIC_RELAXED);
    __atomic_compare_exchange_n(word, &value, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

static inline void write_target(struct ps_vcpu *vcpu, uint64_t target, uint64_t count)
{
    const uint64_t vfn = target / PAGE;
    uint64_t *const word = (uint64_t *)((char *)vcpu->base + (target & ~SILENT));

    if (vcpu->effect == PS_EFFECT_FREE) {
        uint64_t *const page = (uint64_t *)((char *)vcpu->base + vfn * PAGE);
        for (int i = 0; i < WORDS; i++)
            __atomic_store_n(page + i, 0, __ATOMIC_RELAXED);
    } else if (vcpu->effect == PS_EFFECT_SILENT || target & SILENT) {
        write_silently(word);
    } else {
        __atomic_store_n(word, vcpu->index << 48 | count, __ATOMIC_RELAXED);
    }
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
    uint64_t targets[BATCH];

    for (uint64_t i = 0; i < n; i++) {
        targets[i] = next_target(vcpu);
        __builtin_prefetch((char *)vcpu->base + targets[i], 1);
        if (vcpu->stamps)
            __builtin_prefetch(vcpu->stamps + targets[i] / PAGE, 1);
    }
    uint64_t count = *vcpu->writes;
    for (uint64_t i = 0; i < n; i++)
        write_target(vcpu, targets[i], ++count);
}

/* ---- time ---- */

static bool interrupted(const struct ps_vcpu *vcpu)
{
    return __atomic_load_n(&vcpu->interrupt, __ATOMIC_ACQUIRE);
}

void ps_vcpu_interrupt(struct ps_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->interrupt, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &vcpu->interrupt, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
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

int ps_vcpu_run(struct ps_vcpu *vcpu, uint64_t origin_ns, uint64_t until_ns)
{
    const uint64_t cycle_ns = vcpu->on_ns + vcpu->off_ns;
    struct ps_pace *const pace = &vcpu->pace;
    uint64_t look = 0, left = 0; /* when to ask for writes again; writes granted but not done */

    pace->last_ns = now_ns();
    if (vcpu->n_ranks) {
        vcpu->zipf_low = zipf_integral(vcpu->theta, 1.5) - 1;
        vcpu->zipf_high = zipf_integral(vcpu->theta, (double)vcpu->n_ranks + 0.5);
    }
    while (!interrupted(vcpu)) {
        const uint64_t now = now_ns();
        if (now >= until_ns)
            return 0;
        uint64_t end = until_ns;
        if (vcpu->off_ns) {
            const uint64_t into = (now - origin_ns) % cycle_ns;
            const uint64_t next = now - into + (into < vcpu->on_ns ? vcpu->on_ns : cycle_ns);
            end = smaller(end, next);
            if (into >= vcpu->on_ns) {
                /* What fell due at the end of one burst is done at the start of the next. */
                const uint64_t on_end = now - (into - vcpu->on_ns);
                if (pace->writes_per_second && pace->last_ns < on_end)
                    left += ps_pace_due(pace, on_end);
                wait_until(vcpu, end);
                pace->last_ns = look = end;
                continue;
            }
        }
        if (vcpu->pattern == PS_PATTERN_IDLE) {
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
