/* SPDX-License-Identifier: MIT */
/* The source's side of a migration: dirty pages are found and sent, in batches. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migrate.h"
#include "monotonic.h"
#include "page_hash.h"
#include "sigbus.h"

enum {
    LOOK_AT_CLOCK = 64, /* pages, as QEMU does */
    WINDOW = 512,       /* pages of the host that are asked for at once whether they are there */
};

uint64_t ps_message_word(uint16_t kind, uint64_t n_bytes)
{
    return word_of(PS_RECORD_MESSAGE, kind, n_bytes);
}

uint64_t ps_mark_dirty(const uint64_t *taken, size_t n, uint64_t *dirty)
{
    uint64_t n_new = 0;

    for (size_t i = 0; i < n; i++) {
        n_new += (uint64_t)__builtin_popcountll(taken[i] & ~dirty[i]);
        dirty[i] |= taken[i];
    }
    return n_new;
}

/* ---- the scan ---- */

static bool next_in_block(const struct ps_sent_block *block, uint64_t from, uint64_t *page_ret)
{
    const uint64_t n_words = (block->n_pages + 63) / 64;

    if (from >= block->n_pages)
        return false;
    uint64_t i = from / 64;
    uint64_t bits = block->dirty[i] & UINT64_MAX << from % 64;
    while (bits == 0 && ++i < n_words)
        bits = block->dirty[i];
    if (bits == 0)
        return false;
    *page_ret = i * 64 + (uint64_t)__builtin_ctzll(bits);
    return *page_ret < block->n_pages; /* bits behind the last page mean nothing */
}

/* Go to the next dirty page, if there is one: in the rest of this block, in the others, in all of
 * this one. */
static bool next_dirty(struct ps_page_sender *sender)
{
    size_t index = sender->block;
    uint64_t from = sender->page;

    for (size_t i = 0; sender->n_blocks && i <= sender->n_blocks; i++) {
        uint64_t page;
        if (next_in_block(&sender->blocks[index], from, &page)) {
            sender->block = index;
            sender->page = page;
            return true;
        }
        index = (index + 1) % sender->n_blocks;
        from = 0;
    }
    return false;
}

/* ---- what a page holds ---- */

/* Which pages are in memory, by mincore(): some pages of one block. */
struct window {
    const struct ps_sent_block *block; /* NULL: none yet */
    size_t host_page;
    size_t first, n; /* in pages of the host, counted from the block's start */
    uint8_t resident[WINDOW];
};

/* Returns whether a page is in memory, or -errno. */
static int is_resident(struct window *window, const struct ps_sent_block *block, uint64_t page)
{
    const size_t host_page = window->host_page;
    const size_t n_host = (size_t)((block->n_pages * PS_STREAM_PAGE + host_page - 1) / host_page);
    const size_t at = (size_t)(page * PS_STREAM_PAGE / host_page);

    if (window->block != block || at - window->first >= window->n) {
        const size_t n = n_host - at < WINDOW ? n_host - at : WINDOW;
        const uintptr_t start = (uintptr_t)block->address + at * host_page;
        if (mincore((void *)start, n * host_page, window->resident) < 0)
            return -EFAULT; /* not mapped */
        window->block = block;
        window->first = at;
        window->n = n;
    }
    return window->resident[at - window->first] & 1;
}

static uint64_t has_content(ps_kernel kernel, const uint8_t *bytes)
{
    uint64_t content;
    kernel(NULL, &bytes, 1, PS_STREAM_PAGE, NULL, &content);
    return content;
}

/* Returns whether a page that is a hole or in swap has content, or -errno. */
static int has_content_in_file(ps_kernel kernel, int fd, uint64_t page)
{
    uint8_t copy[PS_STREAM_PAGE];
    ssize_t got;

    do
        got = pread(fd, copy, sizeof copy, (off_t)(page * PS_STREAM_PAGE));
    while (got < 0 && errno == EINTR);
    if (got != sizeof copy)
        return got < 0 ? -errno : -EFAULT; /* the file has become shorter */
    return has_content(kernel, copy) != 0;
}

/* ---- batches ---- */

static int send_all(int fd, struct iovec *parts, size_t n)
{
    while (n > 0) {
        const struct msghdr message = {.msg_iov = parts, .msg_iovlen = n};
        const ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return -errno;
        size_t left = (size_t)sent;
        for (; n > 0 && left >= parts->iov_len; parts++, n--)
            left -= parts->iov_len;
        if (n > 0) {
            parts->iov_base = (uint8_t *)parts->iov_base + left;
            parts->iov_len -= left;
        }
    }
    return 0;
}

/*
 * Wait until the link has carried so many bytes, which it was given at began_ns. A wait that was
 * too long is made up for: the bytes after it count as given so much earlier. A link that had
 * nothing to carry makes up for nothing.
 */
static int wait_for_link(struct ps_page_sender *sender, uint64_t n_bytes, uint64_t began_ns)
{
    const uint64_t given_ns = began_ns - sender->overslept_ns;
    bool waited = false;
    uint64_t now;

    if (sender->link_free_ns < given_ns)
        sender->link_free_ns = given_ns;
    sender->link_free_ns += n_bytes * SECOND_NS / sender->link_speed;
    while ((now = now_ns()) < sender->link_free_ns) {
        const uint64_t ns = sender->link_free_ns - now;
        const struct timespec t = {(time_t)(ns / SECOND_NS), (long)(ns % SECOND_NS)};
        struct pollfd closed = {.fd = sender->fd}; /* nothing else is waited for */
        const int n = ppoll(&closed, 1, &t, NULL);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0)
            return 0; /* the next bytes that are sent get the error */
        waited = true;
    }
    /* A socket that was slower than the link adds nothing. */
    const uint64_t late_ns = now - sender->link_free_ns;
    if (waited || late_ns < sender->overslept_ns)
        sender->overslept_ns = late_ns;
    return 0;
}

int ps_sender_flush(struct ps_page_sender *sender)
{
    struct iovec parts[1 + PS_BATCH_PAGES];
    size_t n = 1;

    if (sender->n_small == 0)
        return 0;
    if (sender->is_batch) {
        const uint64_t first = get_word(sender->small);
        put_word(sender->small,
                 word_of(flags_of(first), (uint16_t)sender->n_small, upper_of(first)));
    }
    parts[0] = (struct iovec){sender->small, sender->n_small};
    for (size_t i = 0; i < sender->n_contents; i++) {
        const uintptr_t page = (uintptr_t)sender->contents[i];
        if (n > 1 && (uintptr_t)parts[n - 1].iov_base + parts[n - 1].iov_len == page)
            parts[n - 1].iov_len += PS_STREAM_PAGE; /* adjoining pages are one part */
        else
            parts[n++] = (struct iovec){(void *)page, PS_STREAM_PAGE};
    }
    const uint64_t n_bytes = sender->n_small + sender->n_contents * PS_STREAM_PAGE;
    const uint64_t began_ns = sender->link_speed ? now_ns() : 0;
    const int sent = send_all(sender->fd, parts, n);
    if (sent < 0)
        return sent;
    sender->n_small = sender->n_contents = 0;
    sender->used += n_bytes;
    sender->transferred += n_bytes;
    return sender->link_speed ? wait_for_link(sender, n_bytes, began_ns) : 0;
}

int ps_sender_put(struct ps_page_sender *sender, const void *data, size_t n)
{
    const uint8_t *bytes = data;
    int done = sender->is_batch ? ps_sender_flush(sender) : 0;

    sender->is_batch = 0;
    while (done == 0 && n > 0) {
        const size_t room = PS_BATCH_BYTES - sender->n_small;
        const size_t part = n < room ? n : room;
        memcpy(sender->small + sender->n_small, bytes, part);
        sender->n_small += part;
        bytes += part;
        n -= part;
        if (sender->n_small == PS_BATCH_BYTES)
            done = ps_sender_flush(sender);
    }
    return done;
}

/* Append the record of the page that the scan stands at, and the page unless it is zero. */
static int put_page(struct ps_page_sender *sender, const uint8_t *page, bool is_zero)
{
    const struct ps_sent_block *const block = &sender->blocks[sender->block];
    const bool named = sender->named_block != sender->block + 1;
    const size_t n_bytes = WORD_BYTES + (named ? 1 + block->name_bytes : 0) + is_zero;

    if (!sender->is_batch || sender->n_small + n_bytes > PS_BATCH_BYTES) {
        const int flushed = ps_sender_flush(sender);
        if (flushed < 0)
            return flushed;
    }
    sender->is_batch = 1;
    uint8_t *at = sender->small + sender->n_small;
    const uint8_t flags = (is_zero ? PS_RECORD_ZERO : 0) | (named ? PS_RECORD_NAMED : 0);
    put_word(at, word_of(flags, 0, sender->page));
    at += WORD_BYTES;
    if (named) {
        *at++ = (uint8_t)block->name_bytes;
        memcpy(at, block->name, block->name_bytes);
        at += block->name_bytes;
    }
    if (is_zero)
        *at = 0;
    sender->named_block = sender->block + 1;
    sender->n_small += n_bytes;
    sender->ram_bytes += n_bytes + (is_zero ? 0 : PS_STREAM_PAGE);
    sender->duplicate += is_zero;
    sender->normal += !is_zero;
    if (is_zero)
        return 0;
    sender->contents[sender->n_contents++] = page;
    return sender->n_contents == PS_BATCH_PAGES ? ps_sender_flush(sender) : 0;
}

/* ---- a slice of a pass ---- */

/* Send the page that the scan stands at. Page is the guard's. */
static int send_page(struct ps_page_sender *sender, ps_kernel kernel, struct window *window,
                     const uint8_t **page)
{
    const struct ps_sent_block *const block = &sender->blocks[sender->block];
    const uint64_t number = sender->page;
    const uint64_t bit = (uint64_t)1 << number % 64;

    /* What is written from here on is in the next sync. */
    block->dirty[number / 64] &= ~bit;
    sender->pending -= sender->pending > 0;
    *page = (const uint8_t *)block->address + number * PS_STREAM_PAGE;
    int content = block->fd < 0 ? 1 : is_resident(window, block, number);
    if (content == 0)
        content = has_content_in_file(kernel, block->fd, number);
    if (content > 0)
        content = has_content(kernel, *page) != 0;
    if (content < 0)
        return content;
    __builtin_prefetch(*page + PS_STREAM_PAGE);
    const int put = put_page(sender, *page, content == 0);
    sender->page = number + 1;
    return put;
}

/* Returns as ps_sender_send(). Page is the guard's. */
static int send_slice(struct ps_page_sender *sender, uint64_t limit, uint64_t until_ns,
                      const uint8_t **page)
{
    const struct ps_hasher hasher = {.hash = PS_HASH_CONTENT, .simd = ps_simd_best()};
    const ps_kernel kernel = ps_kernel_of(&hasher);
    /* Asked anew in each slice: a hole may have been written before the sync that came between. */
    struct window window = {.host_page = (size_t)sysconf(_SC_PAGESIZE)};

    for (uint64_t n = 1;; n++) {
        if (limit && sender->used > limit)
            return PS_SEND_LIMIT;
        if (!next_dirty(sender))
            return PS_SEND_CLEAN;
        const int sent = send_page(sender, kernel, &window, page);
        if (sent < 0)
            return sent;
        if (n % LOOK_AT_CLOCK == 0 && now_ns() >= until_ns)
            return PS_SEND_TIME;
    }
}

int ps_sender_send(struct ps_page_sender *sender, uint64_t limit, uint64_t until_ns)
{
    const uint8_t *page = NULL;
    struct ps_sigbus_guard guard;
    int result;

    ps_sigbus_enter(&guard, &page, PS_STREAM_PAGE);
    if (sigsetjmp(guard.back, 1) == 0) {
        guard.n_pages = 1;
        result = send_slice(sender, limit, until_ns, &page);
    } else {
        result = -EFAULT; /* a page raised SIGBUS when it was read */
    }
    ps_sigbus_leave(&guard);
    return result;
}
