/* SPDX-License-Identifier: MIT */
/*
 * Pre-copy as QEMU 10 runs it: rate windows, a bitmap sync only when what remains is
 * below the threshold, a cyclic scan that keeps its position, a last pass that is not rate-limited.
 *
 * RAM is a row of cells in the order of the scan: the pages that nobody writes, then the modes of
 * the dirty curve, then the zero pages. A cell holds pages of one mode and the expected share
 * of them whose bit is set, so one run costs some thousands of additions whatever the guest's size.
 * A sync ORs the log of the time since the last one into the bitmap; the log was cleared then.
 */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "pysampler.h"

enum {
    CELLS_OF_MODE = 32,
    MAX_CELLS = PS_PRECOPY_MODES * CELLS_OF_MODE + 1,
};

static const double NO_PAGES = 0.5; /* expected pages that count as none */

struct cells {
    size_t n;
    double pages[MAX_CELLS];
    double set[MAX_CELLS]; /* share of the pages that are in the bitmap */
};

struct state {
    const struct ps_precopy *how;
    const struct ps_precopy_guest *guest;
    const struct ps_precopy_mode *modes;
    size_t n_modes;
    size_t n_knots;
    const double *knots_ms;
    const double *knots_share;
    struct cells cells;
    double zero;   /* zero pages not scanned yet */
    double now;    /* ms */
    double synced; /* when the log was cleared last */
    size_t position;
};

/* Active time of a bursty writer up to time t: the first `on` ms of each `period` it writes. */
static double active_until(const struct ps_precopy_guest *guest, double t)
{
    double period = guest->burst_period_ms;

    if (period <= 0)
        return t;
    double laps = floor(t / period);
    return laps * guest->burst_on_ms + fmin(t - laps * period, guest->burst_on_ms);
}

/* Distinct pages of all modes that `active` ms of writing dirty. */
static double dirtied(const struct state *s, double active)
{
    double pages = 0;

    for (size_t j = 0; j < s->n_modes; j++) {
        const struct ps_precopy_mode *mode = &s->modes[j];
        if (mode->kind == PS_MODE_SEQUENTIAL)
            pages += mode->pages * fmin(1, mode->rate * active);
        else
            pages += -mode->pages * expm1(-mode->rate * active);
    }
    return pages;
}

/* Time in which the writers got as far as they would in `active` ms without dirty logging. */
static double slowed_by_logging(const struct state *s, double active)
{
    double cost = s->how->logging_ms_per_page;

    if (cost <= 0)
        return active;
    /* tau + cost * D(tau) = active; the left side rises with a slope of at least 1: bisect. */
    double low = 0, high = active;
    for (int i = 0; i < 40 && high - low > 1e-6 * active; i++) {
        double middle = (low + high) / 2;
        if (middle + cost * dirtied(s, middle) < active)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Share of the pages of a mode of kind PS_MODE_TABLE that are dirty after `ms`. */
static double share_after(const struct state *s, double ms)
{
    size_t last = s->n_knots - 1;

    if (ms >= s->knots_ms[last])
        return s->knots_share[last];
    double t0 = 0, y0 = 0;
    for (size_t i = 0; i <= last; i++) {
        double t1 = s->knots_ms[i], y1 = s->knots_share[i];
        if (ms < t1)
            return y0 + (y1 - y0) * (ms - t0) / (t1 - t0);
        t0 = t1;
        y0 = y1;
    }
    return y0;
}

/* A writer that goes through its cells in order sets what lies in [from, from + by) laps; 0 <= from
 * < 1. */
static void set_sequence(double *set, double from, double by)
{
    if (by >= 1) {
        for (size_t k = 0; k < CELLS_OF_MODE; k++)
            set[k] = 1;
        return;
    }
    double at = from * CELLS_OF_MODE, left = by * CELLS_OF_MODE;
    size_t k = (size_t)at % CELLS_OF_MODE;
    double room = 1 - (at - floor(at));
    while (left > 0) {
        set[k] = fmin(1, set[k] + fmin(left, room));
        left -= room;
        room = 1;
        k = (k + 1) % CELLS_OF_MODE;
    }
}

/* Returns the pages that were in the log. */
static double sync_bitmap(struct state *s)
{
    double active =
        slowed_by_logging(s, active_until(s->guest, s->now + s->guest->burst_phase_ms) -
                                 active_until(s->guest, s->synced + s->guest->burst_phase_ms));
    double elapsed = s->now - s->synced;
    double *set = s->cells.set + 1;
    double logged = 0;

    for (size_t j = 0; j < s->n_modes; j++, set += CELLS_OF_MODE) {
        const struct ps_precopy_mode *mode = &s->modes[j];
        if (mode->kind == PS_MODE_SEQUENTIAL) {
            double from = s->guest->phase +
                          mode->rate * active_until(s->guest, s->synced + s->guest->burst_phase_ms);
            set_sequence(set, from - floor(from), mode->rate * active);
            logged += mode->pages * fmin(1, mode->rate * active);
            continue;
        }
        double clean =
            mode->kind == PS_MODE_TABLE ? 1 - share_after(s, elapsed) : exp(-mode->rate * active);
        logged += mode->pages * (1 - clean);
        for (size_t k = 0; k < CELLS_OF_MODE; k++)
            set[k] = 1 - (1 - set[k]) * clean;
    }
    s->synced = s->now;
    return logged;
}

/* Pages with their bit set in the cells from `first` on. */
static double pages_ahead(const struct cells *cells, size_t first)
{
    double sums[4] = {0}; /* four sums, since one waits for itself */
    size_t k = first;

    for (; k + 4 <= cells->n; k += 4)
        for (size_t i = 0; i < 4; i++)
            sums[i] += cells->pages[k + i] * cells->set[k + i];
    for (; k < cells->n; k++)
        sums[0] += cells->pages[k] * cells->set[k];
    return sums[0] + sums[1] + sums[2] + sums[3];
}

static double remaining_pages(const struct state *s)
{
    return s->zero + pages_ahead(&s->cells, 0);
}

/* A zero page is read, or the link is slower than that. */
static double zero_page_ms(const struct state *s, double link)
{
    return fmax(s->guest->zero_page_factor * s->how->zero_page_ms, s->how->zero_page_bytes / link);
}

/* Scan on to the end of the cells, or until so many pages are sent. Returns how many were. */
static double scan_cells(struct state *s, double most)
{
    struct cells *cells = &s->cells;
    double left = most;
    size_t k = s->position;

    for (; k < cells->n; k++) {
        double there = cells->pages[k] * cells->set[k];
        if (left < there) {
            cells->set[k] *= 1 - left / there;
            left = 0;
            break;
        }
        cells->set[k] = 0;
        left -= there;
    }
    s->position = k;
    return most - left;
}

/*
 * One ram_save_iterate: scan on until the budget (bytes) is spent, nothing remains, or its time
 * is over. Returns the bytes sent, and takes the pages off what remains.
 */
static double iterate(struct state *s, double budget, double link, double *remaining)
{
    const struct ps_precopy *how = s->how;
    double sent = 0, end = s->now + how->iteration_ms;

    /* Once through all is over in two laps, wherever it begins. */
    for (int lap = 0; lap < 2; lap++) {
        if (s->position < s->cells.n) {
            double can = fmax(0, fmin(budget - sent, (end - s->now) * link));
            double pages = scan_cells(s, can / how->page_bytes);
            s->now += pages * how->page_bytes / link;
            sent += pages * how->page_bytes;
            *remaining -= pages;
            if (s->position < s->cells.n)
                return sent;
        }
        double page_ms = zero_page_ms(s, link);
        double pages = fmin(s->zero, (end - s->now) / page_ms);
        pages = fmax(0, fmin(pages, (budget - sent) / how->zero_page_bytes));
        s->zero -= pages;
        *remaining -= pages;
        s->now += pages * page_ms;
        sent += pages * how->zero_page_bytes;
        if (s->zero > NO_PAGES)
            return sent;
        s->zero = 0;
        s->position = 0;
    }
    return sent;
}

static void start(struct state *s)
{
    struct cells *cells = &s->cells;
    double written = 0;

    /* Guests with fewer modes than others have empty ones at the end. */
    while (s->n_modes > 0 && !(s->modes[s->n_modes - 1].pages > 0))
        s->n_modes--;
    cells->n = 1;
    for (size_t j = 0; j < s->n_modes; j++) {
        for (size_t k = 0; k < CELLS_OF_MODE; k++)
            cells->pages[cells->n++] = s->modes[j].pages / CELLS_OF_MODE;
        written += s->modes[j].pages;
    }
    cells->pages[0] = fmax(0, s->guest->nonzero_pages - written);
    for (size_t k = 0; k < cells->n; k++)
        cells->set[k] = 1; /* the bulk stage: every page */
    s->zero = s->guest->zero_pages;
    s->now = s->how->setup_ms;
    s->synced = s->now;
    s->position = 0;
}

/*
 * Windows in which nothing is decided, since more than the threshold remains at the end of each,
 * and whose budget is spent on pages that are no zero pages. Returns how many can be taken at once.
 */
static double quiet_windows(const struct state *s, double remaining, double threshold,
                            double budget)
{
    double spare = remaining - threshold / s->how->page_size;

    if (spare * s->how->page_bytes < 3 * budget)
        return 0;
    double ahead = s->zero > 0 ? pages_ahead(&s->cells, s->position) : remaining;
    return floor(fmin(ahead, spare) * s->how->page_bytes / budget) - 1;
}

/* Scan on and send so many pages; only where so many nonzero pages come before any zero page. */
static void send_pages(struct state *s, double pages)
{
    for (int lap = 0; lap < 2; lap++) {
        pages -= scan_cells(s, pages);
        if (s->position < s->cells.n)
            return;
        s->position = 0;
    }
}

/*
 * The threshold below which a migration is stuck. Progress is the least that remained after a sync,
 * of one stretch of time and of the next, each half as long again as the one before. On its way
 * down it makes steady progress, so gains more in each stretch; in a plateau the gains fade, as a
 * geometric row at most.
 */
static double unstuck_from(const double least[3])
{
    double gain = least[1] - least[2], gain_before = least[0] - least[1];

    if (gain <= 0)
        return INFINITY;
    if (gain >= gain_before)
        return 0;
    return least[2] - 2 * gain / (1 - gain / gain_before);
}

/* Whether what remains is below the threshold, as with each shorter limit above same_above_ms. */
static int is_little(double remaining, const struct ps_precopy *how, double rate, double limit_ms,
                     struct ps_precopy_outcome *out)
{
    if (remaining <= NO_PAGES)
        return 1;
    if (!(remaining * how->page_size < rate * limit_ms))
        return 0;
    out->same_above_ms = fmax(out->same_above_ms, remaining * how->page_size / rate);
    return 1;
}

static int64_t run(struct state *s, const struct ps_precopy_cell *cell,
                   struct ps_precopy_outcome *out, struct ps_precopy_round *rounds, size_t n_rounds)
{
    const struct ps_precopy *how = s->how;
    double link = fmax(cell->link, 1e-3), limit = cell->downtime_limit_ms;
    /* The rate limit is looked at when the send buffer is flushed. */
    double budget =
        fmax(1, ceil(cell->bandwidth * how->window_ms / how->flush_bytes)) * how->flush_bytes +
        how->on_way_bytes;
    double rate = 0, sent_window = 0;
    int64_t syncs = 1;
    int32_t passes = 1;

    start(s);
    memset(out, 0, sizeof(*out));
    double window = s->now, remaining = remaining_pages(s);
    double least[3] = {INFINITY, INFINITY, INFINITY}, next_check = 0;

    while (s->now < how->deadline_ms) {
        if (is_little(remaining, how, rate, limit, out)) {
            if (rate > 0) {
                passes += sync_bitmap(s) > NO_PAGES;
                remaining = remaining_pages(s);
                syncs++;
                if (rounds && (size_t)syncs <= n_rounds)
                    rounds[syncs - 1] =
                        (struct ps_precopy_round){s->now, remaining, out->sent_bytes, rate * limit};
            }
            if (is_little(remaining, how, rate, limit, out)) {
                out->converged = 1;
                break;
            }
            least[2] = fmin(least[2], remaining * how->page_size);
            if (next_check == 0)
                next_check = 1.5 * s->now;
        }
        if (next_check > 0 && s->now >= next_check && isfinite(least[2])) {
            if (isfinite(least[0])) {
                double from = unstuck_from(least);
                if (rate * limit < from)
                    break;
                out->same_above_ms = fmax(out->same_above_ms, from / rate);
            }
            least[0] = least[1];
            least[1] = least[2];
            least[2] = INFINITY;
            next_check = 1.5 * s->now;
        }
        if (rate > 0 && sent_window == 0) {
            double n = quiet_windows(s, remaining, rate * limit, budget);
            if (n >= 2) {
                send_pages(s, n * budget / how->page_bytes);
                s->now = fmax(window + n * (how->window_ms + how->wake_up_ms),
                              s->now + n * budget / link);
                out->sent_bytes += n * budget;
                window = s->now;
                remaining = remaining_pages(s);
                continue;
            }
        }
        double sent = iterate(s, budget - sent_window, link, &remaining);
        if (sent <= 0) /* rounding is all that remains */
            remaining = remaining_pages(s);
        sent_window += sent;
        out->sent_bytes += sent;
        if (sent_window >= budget - 1 && s->now < window + how->window_ms)
            s->now = window + how->window_ms + how->wake_up_ms;
        if (s->now >= window + how->window_ms) {
            rate = sent_window / floor(s->now - window);
            window = s->now;
            sent_window = 0;
        }
    }
    if (out->converged) {
        double stopped = s->now;
        sync_bitmap(s);
        double pages = remaining_pages(s) - s->zero;
        double bytes = pages * how->page_bytes + how->device_bytes;
        out->sent_bytes += bytes + s->zero * how->zero_page_bytes;
        s->now += how->stop_ms + bytes / link + s->zero * zero_page_ms(s, link);
        out->downtime_ms = s->now - stopped;
        out->converged = s->now <= how->deadline_ms; /* the last pass may take longer, too */
    }
    out->total_ms = s->now;
    out->iterations = passes;
    return syncs;
}

static int invalid(const struct ps_precopy *how, size_t n_modes, size_t n_knots)
{
    return n_modes > PS_PRECOPY_MODES || !(how->flush_bytes > 0) || !(how->page_bytes > 0) ||
           !(how->zero_page_bytes > 0) || !(how->window_ms >= 1) || !(how->iteration_ms >= 1) ||
           !(how->deadline_ms <= 1e9) || (n_knots > 0 && n_modes < 1);
}

/* Whether `longer` of each cell is none, or an earlier one that differs by a longer limit alone. */
static int in_order(const struct ps_precopy_cell *grid, size_t n_cells)
{
    for (size_t c = 0; c < n_cells; c++) {
        int64_t longer = grid[c].longer;
        if (longer < 0)
            continue;
        if ((size_t)longer >= c || grid[longer].bandwidth != grid[c].bandwidth ||
            grid[longer].link != grid[c].link ||
            grid[longer].downtime_limit_ms < grid[c].downtime_limit_ms)
            return 0;
    }
    return 1;
}

int ps_precopy_grid(const struct ps_precopy *how, const struct ps_precopy_guest *guests,
                    size_t n_guests, const struct ps_precopy_mode *modes, size_t n_modes,
                    const double *knots_ms, const double *knots_share, size_t n_knots,
                    const struct ps_precopy_cell *grid, size_t n_cells,
                    struct ps_precopy_outcome *outcomes_ret)
{
    if (invalid(how, n_modes, n_knots) || !in_order(grid, n_cells))
        return -EINVAL;
    for (size_t g = 0; g < n_guests; g++) {
        struct state s = {.how = how,
                          .guest = &guests[g],
                          .modes = modes + g * n_modes,
                          .n_modes = n_modes,
                          .n_knots = n_knots,
                          .knots_ms = knots_ms,
                          .knots_share = knots_share + g * n_knots};
        struct ps_precopy_outcome *outcomes = outcomes_ret + g * n_cells;
        for (size_t c = 0; c < n_cells; c++) {
            const struct ps_precopy_outcome *longer =
                grid[c].longer < 0 ? NULL : &outcomes[grid[c].longer];
            if (longer && (!longer->converged || grid[c].downtime_limit_ms > longer->same_above_ms))
                outcomes[c] = *longer;
            else
                run(&s, &grid[c], &outcomes[c], NULL, 0);
        }
    }
    return 0;
}

int64_t ps_precopy_rounds(const struct ps_precopy *how, const struct ps_precopy_guest *guest,
                          const struct ps_precopy_mode *modes, size_t n_modes,
                          const double *knots_ms, const double *knots_share, size_t n_knots,
                          const struct ps_precopy_cell *cell,
                          struct ps_precopy_outcome *outcome_ret,
                          struct ps_precopy_round *rounds_ret, size_t n_rounds)
{
    if (invalid(how, n_modes, n_knots))
        return -EINVAL;
    struct state s = {.how = how,
                      .guest = guest,
                      .modes = modes,
                      .n_modes = n_modes,
                      .n_knots = n_knots,
                      .knots_ms = knots_ms,
                      .knots_share = knots_share};
    return run(&s, cell, outcome_ret, rounds_ret, n_rounds);
}
