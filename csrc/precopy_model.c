/* SPDX-License-Identifier: MIT */
/*
 * Pre-copy as QEMU 10 runs it: rate windows, a bitmap sync only when what remains is
 * below the threshold, a cyclic scan that keeps its position, a last pass that is not rate-limited.
 *
 * RAM is a row of cells in the order of the scan: the pages that nobody writes, then the
 * components of the dirty curve, then the zero pages. A cell holds pages of one component and the
 * expected share of them whose bit is set, so one run costs some thousands of additions whatever
 * the guest's size. A sync ORs the log of the time since the last one into the bitmap; the log was
 * cleared then.
 */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "pysampler.h"

enum {
    CELLS_OF_COMPONENT = 32,
    MAX_CELLS = PS_PRECOPY_COMPONENTS * CELLS_OF_COMPONENT + 1,
};

static const double NO_PAGES = 0.5; /* expected pages that count as none */

struct cells {
    size_t n;
    double pages[MAX_CELLS];
    double set[MAX_CELLS]; /* share of the pages that are in the bitmap */
};

struct state {
    const struct ps_precopy_parameters *parameters;
    const struct ps_precopy_guest *guest;
    const struct ps_precopy_component *components;
    size_t n_components;
    size_t n_knots;
    const double *knots_ms;
    const double *knots_share;
    /* Of the cell that is run. */
    double link; /* bytes per ms */
    double limit_ms;
    double budget; /* bytes of a window */
    /* Memory, and the scan over it. */
    struct cells cells;
    size_t position;
    double zero;      /* zero pages not scanned yet */
    double remaining; /* pages */
    double now;       /* ms */
    double synced;    /* when the log was cleared last */
    int64_t syncs;
    int32_t passes;
    /* The rate window. */
    double window; /* when it began */
    double sent_window;
    double rate; /* bytes per ms of the last one; 0 before its end */
    /* The least that remained after a sync, in bytes: of the last two stretches, and of this one.
     */
    double least[3];
    double next_stretch; /* when this one ends; 0 before the first sync */
    struct ps_precopy_outcome *outcome;
    struct ps_precopy_round *rounds; /* NULL: not kept */
    size_t n_rounds;
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

/* Distinct pages of all components that `active` ms of writing dirty. */
static double dirtied(const struct state *s, double active)
{
    double pages = 0;

    for (size_t j = 0; j < s->n_components; j++) {
        const struct ps_precopy_component *component = &s->components[j];
        if (component->kind == PS_COMPONENT_SEQUENTIAL)
            pages += component->pages * fmin(1, component->rate * active);
        else
            pages += -component->pages * expm1(-component->rate * active);
    }
    return pages;
}

/* Time in which the writers got as far as they would in `active` ms without dirty logging. */
static double slowed_by_logging(const struct state *s, double active)
{
    double cost = s->parameters->logging_ms_per_page;

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

/* Share of the pages of a component of kind PS_COMPONENT_TABLE that are dirty after `ms`. */
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
        for (size_t k = 0; k < CELLS_OF_COMPONENT; k++)
            set[k] = 1;
        return;
    }
    double at = from * CELLS_OF_COMPONENT, left = by * CELLS_OF_COMPONENT;
    size_t k = (size_t)at % CELLS_OF_COMPONENT;
    double room = 1 - (at - floor(at));
    while (left > 0) {
        set[k] = fmin(1, set[k] + fmin(left, room));
        left -= room;
        room = 1;
        k = (k + 1) % CELLS_OF_COMPONENT;
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

    for (size_t j = 0; j < s->n_components; j++, set += CELLS_OF_COMPONENT) {
        const struct ps_precopy_component *component = &s->components[j];
        if (component->kind == PS_COMPONENT_SEQUENTIAL) {
            double from =
                s->guest->phase +
                component->rate * active_until(s->guest, s->synced + s->guest->burst_phase_ms);
            set_sequence(set, from - floor(from), component->rate * active);
            logged += component->pages * fmin(1, component->rate * active);
            continue;
        }
        double clean = component->kind == PS_COMPONENT_TABLE ? 1 - share_after(s, elapsed)
                                                             : exp(-component->rate * active);
        logged += component->pages * (1 - clean);
        for (size_t k = 0; k < CELLS_OF_COMPONENT; k++)
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
static double zero_page_ms(const struct state *s)
{
    return fmax(s->guest->zero_page_factor * s->parameters->zero_page_ms,
                s->parameters->zero_page_bytes / s->link);
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
static double iterate(struct state *s, double budget)
{
    const struct ps_precopy_parameters *parameters = s->parameters;
    double sent = 0, end = s->now + parameters->iteration_ms;

    /* Once through all is over in two laps, wherever it begins. */
    for (int lap = 0; lap < 2; lap++) {
        if (s->position < s->cells.n) {
            double can = fmax(0, fmin(budget - sent, (end - s->now) * s->link));
            double pages = scan_cells(s, can / parameters->page_bytes);
            s->now += pages * parameters->page_bytes / s->link;
            sent += pages * parameters->page_bytes;
            s->remaining -= pages;
            if (s->position < s->cells.n)
                return sent;
        }
        double page_ms = zero_page_ms(s);
        double pages = fmin(s->zero, (end - s->now) / page_ms);
        pages = fmax(0, fmin(pages, (budget - sent) / parameters->zero_page_bytes));
        s->zero -= pages;
        s->remaining -= pages;
        s->now += pages * page_ms;
        sent += pages * parameters->zero_page_bytes;
        if (s->zero > NO_PAGES)
            return sent;
        s->zero = 0;
        s->position = 0;
    }
    return sent;
}

/* Every page is in the bitmap: the bulk stage. */
static void fill_cells(struct state *s)
{
    struct cells *cells = &s->cells;
    double written = 0;

    /* Guests with fewer components than others have empty ones at the end. */
    while (s->n_components > 0 && !(s->components[s->n_components - 1].pages > 0))
        s->n_components--;
    cells->n = 1;
    for (size_t j = 0; j < s->n_components; j++) {
        for (size_t k = 0; k < CELLS_OF_COMPONENT; k++)
            cells->pages[cells->n++] = s->components[j].pages / CELLS_OF_COMPONENT;
        written += s->components[j].pages;
    }
    cells->pages[0] = fmax(0, s->guest->nonzero_pages - written);
    for (size_t k = 0; k < cells->n; k++)
        cells->set[k] = 1;
    s->zero = s->guest->zero_pages;
    s->position = 0;
    s->remaining = remaining_pages(s);
}

static void start(struct state *s, const struct ps_precopy_cell *cell)
{
    const struct ps_precopy_parameters *parameters = s->parameters;

    s->link = fmax(cell->link, 1e-3);
    s->limit_ms = cell->downtime_limit_ms;
    /* The rate limit is looked at when the send buffer is flushed. */
    double flushes = ceil(cell->bandwidth * parameters->window_ms / parameters->flush_bytes);
    s->budget = fmax(1, flushes) * parameters->flush_bytes + parameters->on_way_bytes;
    fill_cells(s);
    s->now = parameters->setup_ms;
    s->synced = s->now;
    s->syncs = 1;
    s->passes = 1;
    s->window = s->now;
    s->sent_window = 0;
    s->rate = 0;
    for (size_t i = 0; i < 3; i++)
        s->least[i] = INFINITY;
    s->next_stretch = 0;
    memset(s->outcome, 0, sizeof(*s->outcome));
}

/* Whether what remains is below the threshold, as with each shorter limit above same_above_ms. */
static int is_little(struct state *s)
{
    double bytes = s->remaining * s->parameters->page_size;

    if (s->remaining <= NO_PAGES)
        return 1;
    if (!(bytes < s->rate * s->limit_ms))
        return 0;
    s->outcome->same_above_ms = fmax(s->outcome->same_above_ms, bytes / s->rate);
    return 1;
}

/* The sync that follows when little remains. */
static void sync_for_the_end(struct state *s)
{
    s->passes += sync_bitmap(s) > NO_PAGES;
    s->remaining = remaining_pages(s);
    s->syncs++;
    if (s->rounds && (size_t)s->syncs <= s->n_rounds)
        s->rounds[s->syncs - 1] = (struct ps_precopy_round){
            s->now, s->remaining, s->outcome->sent_bytes, s->rate * s->limit_ms};
}

/* Whether little remains, and still does after a sync. */
static int has_converged(struct state *s)
{
    if (!is_little(s))
        return 0;
    if (s->rate > 0)
        sync_for_the_end(s);
    if (is_little(s))
        return 1;
    s->least[2] = fmin(s->least[2], s->remaining * s->parameters->page_size);
    if (s->next_stretch == 0)
        s->next_stretch = 1.5 * s->now;
    return 0;
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

/* At the end of a stretch: whether the migration is stuck. */
static int is_stuck(struct state *s)
{
    double *least = s->least;

    if (!(s->next_stretch > 0 && s->now >= s->next_stretch && isfinite(least[2])))
        return 0;
    if (isfinite(least[0])) {
        double from = unstuck_from(least);
        if (s->rate * s->limit_ms < from)
            return 1;
        s->outcome->same_above_ms = fmax(s->outcome->same_above_ms, from / s->rate);
    }
    least[0] = least[1];
    least[1] = least[2];
    least[2] = INFINITY;
    s->next_stretch = 1.5 * s->now;
    return 0;
}

/*
 * Windows in which nothing is decided, since more than the threshold remains at the end of each,
 * and whose budget is spent on pages that are no zero pages. Returns how many can be taken at once.
 */
static double quiet_windows(const struct state *s)
{
    double page_bytes = s->parameters->page_bytes;
    double spare = s->remaining - s->rate * s->limit_ms / s->parameters->page_size;

    if (spare * page_bytes < 3 * s->budget)
        return 0;
    double ahead = s->zero > 0 ? pages_ahead(&s->cells, s->position) : s->remaining;
    return floor(fmin(ahead, spare) * page_bytes / s->budget) - 1;
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

/* Take several quiet windows at once. Returns whether there were any. */
static int skip_quiet_windows(struct state *s)
{
    const struct ps_precopy_parameters *parameters = s->parameters;

    if (!(s->rate > 0 && s->sent_window == 0))
        return 0;
    double n = quiet_windows(s);
    if (!(n >= 2))
        return 0;
    send_pages(s, n * s->budget / parameters->page_bytes);
    s->now = fmax(s->window + n * (parameters->window_ms + parameters->wake_up_ms),
                  s->now + n * s->budget / s->link);
    s->outcome->sent_bytes += n * s->budget;
    s->window = s->now;
    s->remaining = remaining_pages(s);
    return 1;
}

/* One iteration, and the end of the window where it is over. */
static void send_in_window(struct state *s)
{
    double window_ms = s->parameters->window_ms;
    double sent = iterate(s, s->budget - s->sent_window);

    if (sent <= 0) /* rounding is all that remains */
        s->remaining = remaining_pages(s);
    s->sent_window += sent;
    s->outcome->sent_bytes += sent;
    if (s->sent_window >= s->budget - 1 && s->now < s->window + window_ms)
        s->now = s->window + window_ms + s->parameters->wake_up_ms;
    if (s->now >= s->window + window_ms) {
        s->rate = s->sent_window / floor(s->now - s->window);
        s->window = s->now;
        s->sent_window = 0;
    }
}

/* The vCPUs are stopped: what remains goes at the link's own speed. */
static void last_pass(struct state *s)
{
    const struct ps_precopy_parameters *parameters = s->parameters;
    struct ps_precopy_outcome *outcome = s->outcome;
    double stopped = s->now;

    sync_bitmap(s);
    double pages = remaining_pages(s) - s->zero;
    double bytes = pages * parameters->page_bytes + parameters->device_bytes;
    outcome->sent_bytes += bytes + s->zero * parameters->zero_page_bytes;
    s->now += parameters->stop_ms + bytes / s->link + s->zero * zero_page_ms(s);
    outcome->downtime_ms = s->now - stopped;
    /* The last pass may take longer than the deadline, too. */
    outcome->converged = s->now <= parameters->deadline_ms;
}

/* Returns the number of syncs. */
static int64_t run(struct state *s, const struct ps_precopy_cell *cell)
{
    start(s, cell);
    while (s->now < s->parameters->deadline_ms) {
        if (has_converged(s)) {
            last_pass(s);
            break;
        }
        if (is_stuck(s))
            break;
        if (!skip_quiet_windows(s))
            send_in_window(s);
    }
    s->outcome->total_ms = s->now;
    s->outcome->iterations = s->passes;
    return s->syncs;
}

static int invalid(const struct ps_precopy_parameters *parameters,
                   const struct ps_precopy_guests *guests)
{
    return guests->n_components > PS_PRECOPY_COMPONENTS || !(parameters->flush_bytes > 0) ||
           !(parameters->page_bytes > 0) || !(parameters->zero_page_bytes > 0) ||
           !(parameters->window_ms >= 1) || !(parameters->iteration_ms >= 1) ||
           !(parameters->deadline_ms <= 1e9) || (guests->n_knots > 0 && guests->n_components < 1);
}

/* Whether each longer_limit_cell is none, or an earlier one that differs by a longer limit alone.
 */
static int in_order(const struct ps_precopy_cell *cells, size_t n_cells)
{
    for (size_t c = 0; c < n_cells; c++) {
        int64_t earlier = cells[c].longer_limit_cell;
        if (earlier < 0)
            continue;
        if ((size_t)earlier >= c || cells[earlier].bandwidth != cells[c].bandwidth ||
            cells[earlier].link != cells[c].link ||
            cells[earlier].downtime_limit_ms < cells[c].downtime_limit_ms)
            return 0;
    }
    return 1;
}

static struct state state_of(const struct ps_precopy_parameters *parameters,
                             const struct ps_precopy_guests *guests, size_t guest)
{
    return (struct state){.parameters = parameters,
                          .guest = &guests->guests[guest],
                          .components = guests->components + guest * guests->n_components,
                          .n_components = guests->n_components,
                          .n_knots = guests->n_knots,
                          .knots_ms = guests->knots_ms,
                          .knots_share = guests->knots_share + guest * guests->n_knots};
}

int ps_precopy_grid(const struct ps_precopy_parameters *parameters,
                    const struct ps_precopy_guests *guests, const struct ps_precopy_cell *cells,
                    size_t n_cells, struct ps_precopy_outcome *outcomes_ret)
{
    if (invalid(parameters, guests) || !in_order(cells, n_cells))
        return -EINVAL;
    for (size_t g = 0; g < guests->n_guests; g++) {
        struct state s = state_of(parameters, guests, g);
        struct ps_precopy_outcome *outcomes = outcomes_ret + g * n_cells;
        for (size_t c = 0; c < n_cells; c++) {
            int64_t at = cells[c].longer_limit_cell;
            const struct ps_precopy_outcome *earlier = at < 0 ? NULL : &outcomes[at];
            if (earlier &&
                (!earlier->converged || cells[c].downtime_limit_ms > earlier->same_above_ms)) {
                outcomes[c] = *earlier;
            } else {
                s.outcome = &outcomes[c];
                run(&s, &cells[c]);
            }
        }
    }
    return 0;
}

int64_t ps_precopy_rounds(const struct ps_precopy_parameters *parameters,
                          const struct ps_precopy_guests *guests,
                          const struct ps_precopy_cell *cell, size_t n_rounds,
                          struct ps_precopy_outcome *outcome_ret,
                          struct ps_precopy_round *rounds_ret)
{
    if (invalid(parameters, guests) || guests->n_guests != 1)
        return -EINVAL;
    struct state s = state_of(parameters, guests, 0);
    s.outcome = outcome_ret;
    s.rounds = rounds_ret;
    s.n_rounds = n_rounds;
    return run(&s, cell);
}
