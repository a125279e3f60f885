/* SPDX-License-Identifier: MIT */
/* The pages that an emulated vCPU writes next, pattern by pattern: a function of its seed and
 * state. */
#ifndef PYSAMPLER_VCPU_PATTERN_H
#define PYSAMPLER_VCPU_PATTERN_H

#include <math.h>
#include <stdbool.h>

#include "numbers.h"
#include "pysampler.h"
#include "random.h"

enum { PAGE = PS_GUEST_PAGE_SIZE, WORDS = PAGE / 8 };

/* A target is the offset of 8 aligned bytes in the working set; this bit makes its write silent. */
static const uint64_t SILENT = 1;

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

static inline double expm1_ratio(double x)
{
    return fabs(x) < 1e-8 ? 1 + x / 2 : expm1(x) / x;
}

static inline double log1p_ratio(double x)
{
    return fabs(x) < 1e-8 ? 1 - x / 2 : log1p(x) / x;
}

/* The integral of x^-theta from 1, and its inverse; theta may be 1. */
static inline double zipf_integral(double theta, double x)
{
    const double l = log(x);
    return expm1_ratio((1 - theta) * l) * l;
}

static inline double zipf_inverse(double theta, double y)
{
    const double t = fmax((1 - theta) * y, -1);
    return exp(log1p_ratio(t) * y);
}

/* A rank from 1 to n_ranks by rejection-inversion, which is exact and needs no table: Hoermann and
 * Derflinger, "Rejection-inversion to generate variates from monotone discrete distributions",
 * TOMACS 6 (1996). *spare_ret gets random bits that the rank does not depend on. */
static inline uint64_t draw_rank(struct ps_vcpu *vcpu, uint64_t *spare_ret)
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

/* ---- patterns: the next targets ---- */

static inline uint64_t next_zipf(struct ps_vcpu *vcpu)
{
    uint64_t word;
    const uint64_t rank = draw_rank(vcpu, &word);
    return scatter(vcpu, rank) * PAGE + word * 8;
}

static inline uint64_t begin_store(struct ps_kv *kv, uint64_t key)
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
static inline uint64_t begin_update(struct ps_kv *kv, uint64_t key)
{
    const uint64_t old = kv->item_at[key];
    uint64_t *const free_at = &kv->free_at[kv->item_class[key]];
    kv->item_at[key] = *free_at;
    *free_at = old;
    kv->unlink = 1 + old;
    return begin_store(kv, key);
}

static inline uint64_t next_kv(struct ps_vcpu *vcpu)
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

static inline uint64_t next_hotcold(struct ps_vcpu *vcpu)
{
    if (draw(vcpu) < vcpu->hits || vcpu->hot_pages == vcpu->n_pages)
        return draw_page(vcpu, 0, vcpu->hot_pages);
    return draw_page(vcpu, vcpu->hot_pages, vcpu->n_pages - vcpu->hot_pages);
}

static inline uint64_t next_sweep(struct ps_vcpu *vcpu)
{
    return draw_page(vcpu, vcpu->position++ % vcpu->n_pages, 1);
}

/* Have the memory of a target fetched that is written soon. */
static inline uint64_t fetch(const struct ps_vcpu *vcpu, uint64_t target)
{
    __builtin_prefetch((char *)vcpu->base + target, 1);
    if (vcpu->stamps)
        __builtin_prefetch(vcpu->stamps + target / PAGE, 1);
    return target;
}

/* Find the next n targets and have their memory fetched. Each pattern has a loop of its own: with
 * one loop and the choice in it, the compiler calls a function for each target, and a vCPU that
 * writes flat out does a fifth less. */
static inline void next_targets(struct ps_vcpu *vcpu, uint64_t n, uint64_t *targets_ret)
{
    switch (vcpu->pattern) {
    case PS_PATTERN_HOTCOLD:
        for (uint64_t i = 0; i < n; i++)
            targets_ret[i] = fetch(vcpu, next_hotcold(vcpu));
        break;
    case PS_PATTERN_ZIPF:
        for (uint64_t i = 0; i < n; i++)
            targets_ret[i] = fetch(vcpu, next_zipf(vcpu));
        break;
    case PS_PATTERN_SWEEP:
        for (uint64_t i = 0; i < n; i++)
            targets_ret[i] = fetch(vcpu, next_sweep(vcpu));
        break;
    case PS_PATTERN_KV:
        for (uint64_t i = 0; i < n; i++)
            targets_ret[i] = fetch(vcpu, next_kv(vcpu));
        break;
    default:
        for (uint64_t i = 0; i < n; i++)
            targets_ret[i] = fetch(vcpu, draw_page(vcpu, 0, vcpu->n_pages));
    }
}

/* What is computed once for each run. */
static inline void prepare_pattern(struct ps_vcpu *vcpu)
{
    if (vcpu->n_ranks) {
        vcpu->zipf_low = zipf_integral(vcpu->theta, 1.5) - 1;
        vcpu->zipf_high = zipf_integral(vcpu->theta, (double)vcpu->n_ranks + 0.5);
    }
}

#endif
