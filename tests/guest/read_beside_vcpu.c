/* SPDX-License-Identifier: MIT */
/* A reader reads pages at once after it has taken their bits, while a vCPU sweeps over them flat
 * out. Prints how many writes could be judged, and how many of these the reader did not see.
 *
 * The reader takes the bits of the pages that the vCPU is about to write, and reads the words that
 * it writes there: of a sweep they are known in advance. A write is judged if its page's bit is
 * still clear when it has been counted. Then it found the bit set, before that was taken, and the
 * reader must have seen it. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pysampler.h"
#include "random.h"

enum {
    N_WORDS = 64,
    N_PAGES = N_WORDS * 64,
    MARKS = 512,
    AHEAD = 24,
    ENOUGH = 20000,
    SECONDS = 20,
    SEED = 7
};

typedef uint64_t page_marks[MARKS];

static uint64_t bits[N_WORDS], writes;
static struct ps_dirty_log dirty_log = {.mode = PS_LOG_BITMAP};
static struct ps_vcpu vcpu = {
    .writes = &writes,
    .log = &dirty_log,
    .log_words = bits,
    .n_pages = N_PAGES,
    .seed = SEED,
    .pattern = PS_PATTERN_SWEEP,
};

static void *write_flat_out(void *unused)
{
    (void)unused;
    ps_vcpu_run(&vcpu, 0, UINT64_MAX);
    return NULL;
}

static uint64_t written(void)
{
    return __atomic_load_n(&writes, __ATOMIC_ACQUIRE);
}

int main(void)
{
    page_marks *const memory = aligned_alloc(sizeof *memory, N_PAGES * sizeof *memory);
    unsigned long n_judged = 0, n_missed = 0;
    pthread_t thread;

    if (!memory || ps_log_register())
        return 1;
    memset(memory, 0, N_PAGES * sizeof *memory);
    vcpu.base = memory;
    if (pthread_create(&thread, NULL, write_flat_out, NULL))
        return 1;
    while (written() < N_PAGES)
        ;
    const time_t end = time(NULL) + SECONDS;
    while (n_judged < ENOUGH && time(NULL) < end) {
        const uint64_t *places[AHEAD];
        uint64_t seen[AHEAD];
        const uint64_t done = written(), page = done % N_PAGES;
        const uint64_t n = page % 64 <= 64 - AHEAD ? AHEAD : 64 - page % 64;

        for (uint64_t i = 0; i < n; i++)
            places[i] = &memory[page + i][ps_random(SEED, done + 1 + i) >> 55];
        if (ps_log_take(bits + page / 64, 1, NULL))
            return 1;
        for (uint64_t i = 0; i < n; i++)
            seen[i] = __atomic_load_n(places[i], __ATOMIC_ACQUIRE);
        while (written() < done + n)
            ;
        const uint64_t dirty = __atomic_load_n(bits + page / 64, __ATOMIC_ACQUIRE);
        for (uint64_t i = 0; i < n; i++) {
            if (dirty >> (page + i) % 64 & 1)
                continue;
            n_judged++;
            n_missed += seen[i] < done + 1 + i;
        }
    }
    ps_vcpu_interrupt(&vcpu);
    pthread_join(thread, NULL);
    printf("%lu %lu\n", n_judged, n_missed);
    return 0;
}
