/* SPDX-License-Identifier: MIT */
/* How a migration slows its guest down: the arithmetic alone, as functions of numbers. Who measures
 * them, and who applies the result to vCPUs, is elsewhere. The rules are QEMU 10.0's, described in
 * our own words: auto-converge as in migration/ram.c, dirty-limit as in system/dirtylimit.c, the
 * restraint as in "support dirty restraint on vCPU" v1 (18 Nov 2021), the aggression level as in
 * a mail to qemu-devel of 20 Dec 2011. */
#include <errno.h>
#include <math.h>
#include <stdbool.h>

#include "numbers.h"
#include "pysampler.h"

static inline uint64_t difference(uint64_t a, uint64_t b)
{
    return a > b ? a - b : b - a;
}

/* n x part / whole, rounded down; exact but where the product is too large for 64 bits.
 * Pre: n <= 100, part <= whole, whole > 0. */
static uint64_t share(uint64_t n, uint64_t part, uint64_t whole)
{
    if (part > UINT64_MAX / 100) {
        part >>= 7;
        whole >>= 7;
    }
    return n * part / whole;
}

/* ---- auto-converge ---- */

/* percent of a number of bytes, rounded down. Pre: percent <= 100. */
static uint64_t percent_of(uint64_t bytes, uint64_t percent)
{
    return bytes / 100 * percent + bytes % 100 * percent / 100;
}

int ps_throttle_check(const struct ps_auto_converge *settings, uint64_t dirty_bytes,
                      uint64_t sent_bytes, uint32_t *high_count)
{
    if (settings->trigger_threshold > 100)
        return -EINVAL;
    if (dirty_bytes <= percent_of(sent_bytes, settings->trigger_threshold))
        return 0;
    if (++*high_count < PS_THROTTLE_CHECKS)
        return 0;
    *high_count = 0;
    return 1;
}

int ps_throttle_step(const struct ps_auto_converge *settings, uint32_t percentage,
                     uint64_t dirty_bytes, uint64_t sent_bytes)
{
    if (settings->trigger_threshold > 100 || settings->initial > 99 || settings->increment > 99 ||
        settings->most > 99 || percentage > 99)
        return -EINVAL;
    uint64_t next = settings->initial;
    if (percentage) {
        uint64_t increment = settings->increment;
        if (settings->tailslow) {
            const uint64_t run = 100 - percentage;
            const uint64_t wanted = percent_of(sent_bytes, settings->trigger_threshold);
            const uint64_t ideal = dirty_bytes > wanted ? share(run, wanted, dirty_bytes) : run;
            increment = smaller(run - ideal, increment);
        }
        next = smaller(percentage + increment, settings->most);
    }
    return (int)larger(next, 1);
}

/* ---- dirty-limit ---- */

int64_t ps_dirty_limit_rate(uint64_t n_pages, uint64_t ms, int whole_mib)
{
    /* More pages than a vCPU can write, and the limit of what follows. */
    if (!ms || n_pages > (uint64_t)1 << 52)
        return -EINVAL;
    return (int64_t)((whole_mib ? n_pages / 256 * 1000 : n_pages * 1000 / 256) / ms);
}

int64_t ps_dirty_limit_ring_full_us(uint64_t ring_mib, uint64_t rate)
{
    if (!rate || ring_mib > PS_DIRTY_LIMIT_MOST_RING_MIB)
        return -EINVAL;
    return (int64_t)(ring_mib * 1000000 / rate);
}

int64_t ps_dirty_limit_sleep(uint64_t quota, uint64_t current, uint64_t ring_mib, uint64_t sleep_us,
                             uint64_t *max_rate)
{
    if (!quota || ring_mib > PS_DIRTY_LIMIT_MOST_RING_MIB || sleep_us > INT64_MAX)
        return -EINVAL;
    if (difference(quota, current) <= PS_DIRTY_LIMIT_TOLERANCE)
        return (int64_t)sleep_us;
    if (!current)
        return 0;
    *max_rate = larger(*max_rate, current);
    const uint64_t full = (uint64_t)ps_dirty_limit_ring_full_us(ring_mib, *max_rate);
    const uint64_t most = full * PS_DIRTY_LIMIT_MOST_FULLS;
    const uint64_t top = larger(quota, current);
    /* Below 100, as neither is 0; but the larger one may be too large for exactness. */
    const uint64_t percent = smaller(share(100, difference(quota, current), top), 99);
    const uint64_t step = percent > PS_DIRTY_LIMIT_LINEAR ? full * percent / (100 - percent)
                                                          : full / PS_DIRTY_LIMIT_STEPS;
    if (quota < current)
        return (int64_t)smaller(sleep_us + step, most);
    return (int64_t)smaller(sleep_us > step ? sleep_us - step : 0, most);
}

/* ---- dirty restraint ---- */

/* By how many percent of itself the larger one is above the other. */
static uint64_t percent_above(uint64_t high, uint64_t low)
{
    return share(100, high - low, high);
}

int ps_restraint_first(uint64_t quota, uint64_t current)
{
    if (current <= quota || current - quota <= PS_RESTRAINT_TOLERANCE)
        return 0;
    return (int)smaller(percent_above(current, quota), PS_RESTRAINT_COARSE);
}

int ps_restraint_next(uint64_t quota, uint64_t current, uint32_t last)
{
    if (last > PS_RESTRAINT_MOST)
        return -EINVAL;
    if (difference(quota, current) <= PS_RESTRAINT_TOLERANCE)
        return (int)last;
    if (current > quota) {
        if (last >= PS_RESTRAINT_FINE)
            return (int)smaller(last + 2, PS_RESTRAINT_MOST);
        if (last >= PS_RESTRAINT_COARSE)
            return (int)smaller(last + 5, PS_RESTRAINT_FINE);
        return (int)smaller(last + percent_above(current, quota) / 2, PS_RESTRAINT_COARSE);
    }
    if (!current || last <= 2)
        return 0;
    if (last >= PS_RESTRAINT_FINE)
        return (int)last - 2;
    if (last >= PS_RESTRAINT_COARSE)
        return (int)last - 5;
    const uint64_t less = percent_above(quota, current) / 2;
    return last <= less ? 0 : (int)(last - less);
}

/* ---- aggression level ---- */

static const double NEW_WEIGHT = 0.01; /* of a tick in a running average */
static const double MOST_BYTES = 1e18; /* above it a double does not tell one byte from none */
static const double LEAST_FACTOR = 0.05;
static const double FACTOR_STEP = 0.95;

/* A running average that begins with its first value. */
static double averaged(double average, double value, bool first)
{
    return first ? value : average + NEW_WEIGHT * (value - average);
}

static bool is_amount(double value)
{
    return value >= 0 && value <= MOST_BYTES;
}

static bool is_share(double value)
{
    return value >= 0 && value <= 1;
}

static bool state_is_sound(const struct ps_aggression *state)
{
    return is_share(state->break_even) && state->factor >= LEAST_FACTOR && state->factor <= 1 &&
           is_amount(state->mean_ran_sent) && is_amount(state->mean_written) &&
           is_amount(state->mean_sent) && is_amount(state->mean_dirtied) &&
           is_amount(state->sum_sent) && is_amount(state->sum_dirtied);
}

/* Take what the tick says of the share of time at which the guest dirties as much as is sent. */
static void take_sample(struct ps_aggression *state, const struct ps_aggression_tick *tick)
{
    const bool first = !state->sampled;
    const double ran_sent = tick->ran * tick->sent;

    state->mean_ran_sent = averaged(state->mean_ran_sent, ran_sent, first);
    state->mean_written = averaged(state->mean_written, tick->written, first);
    state->sampled = 1;
    if (tick->averages)
        state->break_even = state->mean_ran_sent < state->mean_written
                                ? state->mean_ran_sent / state->mean_written
                                : 1;
    else
        state->break_even = averaged(
            state->break_even, ran_sent < tick->written ? ran_sent / tick->written : 1, first);
}

int ps_aggression_tick(struct ps_aggression *state, const struct ps_aggression_tick *tick,
                       double level, double *target_ret)
{
    if (!is_share(level) || !is_share(tick->ran) || !is_amount(tick->sent) ||
        !is_amount(tick->written) || !is_amount(tick->dirtied) || !state_is_sound(state))
        return -EINVAL;
    /* The guest of a tick before the first sample ran as it liked: that is judged by the sums. */
    const bool judged = state->sampled;
    if (tick->ran > 0 && !tick->idle)
        take_sample(state, tick);

    state->sum_sent = fmin(state->sum_sent + tick->sent, MOST_BYTES);
    state->sum_dirtied = fmin(state->sum_dirtied + tick->dirtied, MOST_BYTES);
    int passed = state->sum_sent > state->sum_dirtied ? PS_AGGRESSION_SUMS_PASS : 0;
    if (judged) {
        state->mean_sent = averaged(state->mean_sent, tick->sent, !state->judged);
        state->mean_dirtied = averaged(state->mean_dirtied, tick->dirtied, !state->judged);
        state->judged = 1;
        if (state->mean_sent * (1 - NEW_WEIGHT) > state->mean_dirtied)
            passed |= PS_AGGRESSION_AVERAGES_PASS;
        if (passed == (PS_AGGRESSION_AVERAGES_PASS | PS_AGGRESSION_SUMS_PASS))
            state->factor = fmin(1, state->factor / FACTOR_STEP);
        else
            state->factor = fmax(LEAST_FACTOR, FACTOR_STEP * state->factor);
    }
    *target_ret = state->factor * (1 - level) * (state->sampled ? state->break_even : 1);
    return passed;
}
