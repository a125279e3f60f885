/* SPDX-License-Identifier: MIT */
/* Dirty rings by userfaultfd: each first write is a message, which is noted in the ring of its
 * thread before the write goes on. */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "monotonic.h"
#include "userfaultfd.h"

/* ---- the cleanup process ---- */

enum { BEAT_MS = PS_CLEANUP_BEAT_MS };

/* Tell the cleanup process that we run. It lets the guest go when it hears nothing for too long.
 * Where it was stopped together with us, the guest may have let itself go: -EOWNERDEAD. */
static int beat(struct ps_ring_set *set)
{
    if (set->cleanup_fd < 0)
        return 0;
    const uint64_t now_ms = now_ns() / 1000000;
    if (set->beat_ms != 0 && now_ms - set->beat_ms > PS_CLEANUP_LATE_MS)
        return -EOWNERDEAD;
    if (now_ms - set->beat_ms < BEAT_MS)
        return 0;
    set->beat_ms = now_ms;
    send(set->cleanup_fd, &(char){PS_CLEANUP_BEAT}, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    return 0;
}

/* Whether the cleanup process has ended, or has let the guest go. It says nothing else. */
static bool has_lost_cleanup(const struct ps_ring_set *set)
{
    struct pollfd polled = {.fd = set->cleanup_fd, .events = POLLIN};
    return poll(&polled, 1, 0) > 0;
}

/* Whoever waits goes on, and nobody will wait any more. Here and not in Python: one who waits may
 * hold the interpreter's lock. */
static void let_go(const struct ps_ring_set *set)
{
    for (size_t i = 0; i < set->n_ranges; i++)
        ps_uffd_unregister(set->uffd, set->ranges[i].address, set->ranges[i].length);
    if (set->cleanup_fd >= 0)
        send(set->cleanup_fd, &(char){PS_CLEANUP_LET_GO}, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* ---- dirty rings ---- */

static struct ps_ring *ring_of(const struct ps_ring_set *set, uint32_t tid)
{
    for (size_t i = 0; i + 1 < set->n_rings; i++)
        if (set->rings[i].tid == tid)
            return &set->rings[i];
    return &set->rings[set->n_rings - 1];
}

static const struct ps_range *range_of(const struct ps_ring_set *set, uint64_t address)
{
    for (size_t i = 0; i < set->n_ranges; i++)
        if (address - set->ranges[i].address < set->ranges[i].length)
            return &set->ranges[i];
    return NULL;
}

/* How many bits an entry stands for: those of a huge page are written and released together. */
static uint64_t bits_of(const struct ps_ring_set *set, uint64_t bit)
{
    for (size_t i = 0; i < set->n_ranges; i++)
        if (bit - set->ranges[i].first_bit < set->ranges[i].length / set->page_size)
            return set->ranges[i].page_size / set->page_size;
    return 1;
}

static void harvest(const struct ps_ring_set *set, struct ps_ring *ring)
{
    for (uint32_t i = 0; i < ring->n_entries; i++) {
        const uint64_t end = ring->entries[i] + bits_of(set, ring->entries[i]);
        for (uint64_t bit = ring->entries[i]; bit < end; bit++) {
            const uint8_t mask = (uint8_t)(1u << (bit & 7));
            /* Two threads may have met at one page before it was released: whose entry comes
             * first gets it. */
            if (!(set->bitmap[bit >> 3] & mask)) {
                set->bitmap[bit >> 3] |= mask;
                ring->n_pages++;
            }
        }
    }
    ring->n_entries = 0;
}

/* Let the writers of a page go on. */
static int release(const struct ps_ring_set *set, uint64_t page, uint64_t page_size)
{
    const int error = ps_uffd_write_protect(set->uffd, page, page_size, 0);
    if (error != -ENOENT)
        return error;
    /* It was unmapped or unregistered meanwhile; whoever waits for it must see for himself. */
    struct uffdio_range range = {.start = page, .len = page_size};
    ioctl(set->uffd, UFFDIO_WAKE, &range);
    return 0;
}

/* Note a first write and let it happen. Returns 1 when its thread has to wait: the ring is full. */
static int note(const struct ps_ring_set *set, uint32_t tid, uint64_t address)
{
    struct ps_ring *const ring = ring_of(set, tid);
    const struct ps_range *const range = range_of(set, address);
    const uint64_t page_size = range ? range->page_size : set->page_size;
    const uint64_t page = address & ~(page_size - 1);

    if (range) {
        if (ring->n_entries == set->capacity) {
            ring->n_full++;
            if (!set->harvest_full)
                return 1;
            harvest(set, ring);
        }
        ring->entries[ring->n_entries++] =
            range->first_bit + (page - range->address) / set->page_size;
    }
    return release(set, page, page_size);
}

/* Try those who wait once more; the first of each ring that must go on waiting fills it again. */
static int retry_waiting(struct ps_ring_set *set)
{
    const uint32_t n = set->n_waiting;

    set->n_waiting = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct ps_waiting waiting = set->waiting[i];
        const int result = note(set, waiting.tid, waiting.address);
        if (result < 0)
            return result;
        if (result)
            set->waiting[set->n_waiting++] = waiting;
    }
    return 0;
}

static int serve_messages(struct ps_ring_set *set)
{
    struct uffd_msg messages[64];

    /* No message is taken that could not be kept waiting. */
    size_t room = set->max_waiting - set->n_waiting;
    if (room > sizeof messages / sizeof *messages)
        room = sizeof messages / sizeof *messages;
    const ssize_t got = read(set->uffd, messages, room * sizeof *messages);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    for (size_t i = 0; i < (size_t)got / sizeof *messages; i++) {
        if (messages[i].event != UFFD_EVENT_PAGEFAULT)
            continue;
        const uint32_t tid = messages[i].arg.pagefault.feat.ptid;
        const uint64_t address = messages[i].arg.pagefault.address;
        const int result = note(set, tid, address);
        if (result < 0)
            return result;
        if (result)
            set->waiting[set->n_waiting++] = (struct ps_waiting){address, tid, 0};
    }
    return 0;
}

/* Protect again what has been harvested of a part of a range. */
static int protect_harvested(const struct ps_ring_set *set, const struct ps_range *range,
                             uint64_t begin, uint64_t end)
{
    for (uint64_t page = begin; page < end; page++) {
        uint64_t run = 0;
        for (; page + run < end; run++) {
            const uint64_t bit = range->first_bit + page + run;
            if (!(set->bitmap[bit >> 3] & 1u << (bit & 7)))
                break;
        }
        const int error = run ? ps_uffd_protect(set->uffd, range->address + page * set->page_size,
                                                run * set->page_size)
                              : 0;
        if (error < 0)
            return error;
        page += run;
    }
    return 0;
}

/* Forget the pages harvested so far, so that their next write is a first one again. */
static int reset(struct ps_ring_set *set)
{
    static const uint64_t PART = 1
                                 << 18; /* whole huge pages, and quicker done than beats are due */
    uint64_t n_bits = 0;

    /* Bits are cleared after all ranges: several of them may have the same. */
    for (size_t i = 0; i < set->n_ranges; i++) {
        const struct ps_range *const range = &set->ranges[i];
        const uint64_t n = range->length / set->page_size;
        for (uint64_t begin = 0; begin < n; begin += PART) {
            const uint64_t end = n - begin < PART ? n : begin + PART;
            const int error = protect_harvested(set, range, begin, end);
            if (error < 0)
                return error;
            const int late = beat(set);
            if (late < 0)
                return late;
        }
        if (n_bits < range->first_bit + n)
            n_bits = range->first_bit + n;
    }
    memset(set->bitmap, 0, (n_bits + 7) / 8);
    for (size_t i = 0; i < set->n_rings; i++)
        set->rings[i].n_pages = set->rings[i].n_full = 0;
    return 0;
}

static bool is_userfaultfd(int fd)
{
    struct uffdio_range nothing = {0};
    return ioctl(fd, UFFDIO_WAKE, &nothing) == 0 || errno == EINVAL;
}

static int answer(struct ps_ring_set *set, uint64_t request)
{
    if (!is_userfaultfd(set->shown_uffd))
        return -EBADF;
    for (size_t i = 0; i < set->n_rings; i++)
        harvest(set, &set->rings[i]);
    if (request & PS_RING_RESET) {
        const int error = reset(set);
        if (error < 0)
            return error;
    }
    return retry_waiting(set);
}

static int serve(struct ps_ring_set *set, int request_fd, int reply_fd)
{
    for (;;) {
        struct pollfd polled[] = {
            {.fd = request_fd, .events = POLLIN},
            {.fd = set->n_waiting < set->max_waiting ? set->uffd : -1, .events = POLLIN},
            {.fd = set->cleanup_fd, .events = POLLIN},
        };
        if (poll(polled, 3, set->cleanup_fd < 0 ? -1 : BEAT_MS) < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        /* Before anything is answered: after a stop it would be without what was not counted. */
        const int late = beat(set);
        if (late < 0)
            return late;
        if ((polled[0].revents | polled[1].revents) & ~POLLIN)
            return -EBADF;
        if (polled[2].revents)
            return -EOWNERDEAD;
        if (polled[1].revents & POLLIN) {
            const int error = serve_messages(set);
            if (error < 0)
                return error;
        }
        if (polled[0].revents & POLLIN) {
            uint64_t request;
            const ssize_t got = read(request_fd, &request, sizeof request);
            if (got < 0 && errno == EINTR)
                continue;
            if (got != sizeof request)
                return -EBADF;
            const int error = answer(set, request);
            if (error < 0)
                return error;
            /* What was written after the guest was let go has not been counted. */
            if (has_lost_cleanup(set))
                return -EOWNERDEAD;
            if (write(reply_fd, &(uint64_t){1}, sizeof(uint64_t)) < 0)
                return -errno;
            if (request & PS_RING_STOP)
                return 0;
        }
    }
}

int ps_ring_serve(struct ps_ring_set *set, int request_fd, int reply_fd)
{
    const int error = serve(set, request_fd, reply_fd);
    if (error < 0)
        let_go(set);
    return error;
}
