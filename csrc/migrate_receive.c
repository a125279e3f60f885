/* SPDX-License-Identifier: MIT */
/*
 * The destination's side of a migration: pages are received and placed. The other side may send
 * anything, so nothing is used before it has been checked.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <sys/socket.h>

#include "migrate.h"
#include "sigbus.h"

static int fault_of(struct ps_page_receiver *receiver, int fault, uint64_t value)
{
    receiver->fault = fault;
    receiver->fault_value = value;
    return -EBADMSG;
}

/* Returns how many bytes came, 0 at the end of the stream, or -errno. */
static ssize_t receive_some(int fd, struct iovec *parts, size_t n)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = n};
    ssize_t got;

    do
        got = recvmsg(fd, &message, 0);
    while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

/*
 * Fill all parts but the last, of which there may be less. Returns how much of the last has come,
 * or -errno.
 */
static ssize_t fill(struct ps_page_receiver *receiver, struct iovec *parts, size_t n)
{
    const size_t last = parts[n - 1].iov_len;

    while (n > 1 && parts->iov_len == 0)
        parts++, n--;
    while (n > 1) {
        ssize_t got = receive_some(receiver->fd, parts, n);
        if (got < 0)
            return got;
        if (got == 0)
            return fault_of(receiver, PS_FAULT_TRUNCATED, 0);
        for (; n > 1 && (size_t)got >= parts->iov_len; parts++, n--)
            got -= (ssize_t)parts->iov_len;
        parts->iov_base = (uint8_t *)parts->iov_base + got;
        parts->iov_len -= (size_t)got;
    }
    return (ssize_t)(last - parts->iov_len);
}

int ps_receiver_read(struct ps_page_receiver *receiver, void *buffer_ret, size_t n)
{
    struct iovec parts[2] = {{buffer_ret, n}, {receiver->next, 0}};
    const ssize_t done = fill(receiver, parts, 2);
    return done < 0 ? (int)done : 0;
}

/* Read the word that a batch or a message begins with. Returns 1, 0 at the end of the stream, or
 * -errno. */
static int read_word(struct ps_page_receiver *receiver, uint64_t *word_ret)
{
    while (receiver->n_next < WORD_BYTES) {
        struct iovec part = {receiver->next + receiver->n_next, WORD_BYTES - receiver->n_next};
        const ssize_t got = receive_some(receiver->fd, &part, 1);
        if (got < 0)
            return (int)got;
        if (got == 0 && receiver->n_next > 0)
            return fault_of(receiver, PS_FAULT_TRUNCATED, 0);
        if (got == 0)
            return 0;
        receiver->n_next += (size_t)got;
    }
    receiver->n_next = 0;
    *word_ret = get_word(receiver->next);
    return 1;
}

/* ---- pages ---- */

static bool is_received(const struct ps_received_block *block, uint64_t page)
{
    return block->received[page / 64] >> page % 64 & 1;
}

static void mark_received(const struct ps_received_block *block, uint64_t page, bool received)
{
    const uint64_t bit = (uint64_t)1 << page % 64;

    if (received)
        block->received[page / 64] |= bit;
    else
        block->received[page / 64] &= ~bit;
}

/* Returns 0, or -EFAULT: the page cannot be written. */
static int clear(uint8_t *page)
{
    const uint8_t *const guarded = page;
    struct ps_sigbus_guard guard;

    ps_sigbus_enter(&guard, &guarded, PS_STREAM_PAGE);
    const int faulted = sigsetjmp(guard.back, 1);
    if (!faulted) {
        guard.n_pages = 1;
        memset(page, 0, PS_STREAM_PAGE);
    }
    ps_sigbus_leave(&guard);
    return faulted ? -EFAULT : 0;
}

/* ---- records ---- */

/* Find the block that a record names at `at`. Returns the number of bytes read, or -errno. */
static int read_name(struct ps_page_receiver *receiver, size_t at, size_t end)
{
    const uint8_t *const name = receiver->records + at + 1;

    if (at == end || at + 1 + receiver->records[at] > end)
        return fault_of(receiver, PS_FAULT_LENGTH, end);
    const size_t n = receiver->records[at];
    for (size_t i = 0; i < receiver->n_blocks; i++) {
        if (receiver->blocks[i].name_bytes == n && !memcmp(receiver->blocks[i].name, name, n)) {
            receiver->block = i + 1;
            return (int)(1 + n);
        }
    }
    receiver->fault_name_at = at + 1;
    receiver->fault_name_bytes = n;
    return fault_of(receiver, PS_FAULT_NAME, 0);
}

/* Read one record. *page_ret is where its contents go; NULL: nowhere. Returns the number of bytes
 * read, or -errno. */
static int read_record(struct ps_page_receiver *receiver, size_t at, size_t end, uint8_t **page_ret)
{
    const size_t began = at;

    if (end - at < WORD_BYTES)
        return fault_of(receiver, PS_FAULT_LENGTH, end);
    const uint64_t word = get_word(receiver->records + at);
    const uint8_t flags = flags_of(word);
    if ((flags & ~(PS_RECORD_ZERO | PS_RECORD_NAMED)) || (at > 0 && middle_of(word)))
        return fault_of(receiver, PS_FAULT_WORD, word);
    at += WORD_BYTES;
    if (flags & PS_RECORD_NAMED) {
        const int n = read_name(receiver, at, end);
        if (n < 0)
            return n;
        at += (size_t)n;
    }
    if (receiver->block == 0)
        return fault_of(receiver, PS_FAULT_UNNAMED, 0);
    const struct ps_received_block *const block = &receiver->blocks[receiver->block - 1];
    const uint64_t page = upper_of(word);
    if (page >= block->n_pages)
        return fault_of(receiver, PS_FAULT_PAGE, page);
    uint8_t *const bytes = (uint8_t *)block->address + page * PS_STREAM_PAGE;
    const bool is_zero = flags & PS_RECORD_ZERO;
    if (is_zero) {
        if (at == end)
            return fault_of(receiver, PS_FAULT_LENGTH, end);
        if (receiver->records[at])
            return fault_of(receiver, PS_FAULT_FILLER, receiver->records[at]);
        at++;
        if (is_received(block, page) && clear(bytes) < 0)
            return -EFAULT;
    }
    mark_received(block, page, !is_zero);
    receiver->duplicate += is_zero;
    receiver->normal += !is_zero;
    *page_ret = is_zero ? NULL : bytes;
    return (int)(at - began);
}

/* Receive a batch whose first word has been read. Returns 0 or -errno. */
static int receive_batch(struct ps_page_receiver *receiver, uint64_t word)
{
    struct iovec parts[PS_BATCH_PAGES + 1];
    const size_t n_bytes = middle_of(word);
    size_t n_parts = 0, n_pages = 0;

    if (n_bytes < WORD_BYTES || n_bytes > PS_BATCH_BYTES)
        return fault_of(receiver, PS_FAULT_LENGTH, n_bytes);
    put_word(receiver->records, word);
    const int read =
        ps_receiver_read(receiver, receiver->records + WORD_BYTES, n_bytes - WORD_BYTES);
    if (read < 0)
        return read;
    for (size_t at = 0; at < n_bytes;) {
        uint8_t *page;
        const int n = read_record(receiver, at, n_bytes, &page);
        if (n < 0)
            return n;
        at += (size_t)n;
        if (page == NULL)
            continue;
        if (n_pages++ == PS_BATCH_PAGES)
            return fault_of(receiver, PS_FAULT_MANY, PS_BATCH_PAGES);
        struct iovec *const last = n_parts ? &parts[n_parts - 1] : NULL;
        if (last && (uint8_t *)last->iov_base + last->iov_len == page)
            last->iov_len += PS_STREAM_PAGE; /* adjoining pages are one part */
        else
            parts[n_parts++] = (struct iovec){page, PS_STREAM_PAGE};
    }
    /* Never more than a word behind the contents: what follows it may be contents as well. */
    parts[n_parts++] = (struct iovec){receiver->next, WORD_BYTES};
    const ssize_t n_next = fill(receiver, parts, n_parts);
    if (n_next < 0)
        return (int)n_next;
    receiver->n_next = (size_t)n_next;
    return 0;
}

int ps_receiver_receive(struct ps_page_receiver *receiver, uint16_t *kind_ret,
                        uint64_t *n_bytes_ret)
{
    for (;;) {
        uint64_t word;
        int result = read_word(receiver, &word);
        if (result <= 0)
            return result;
        if (flags_of(word) == PS_RECORD_MESSAGE) {
            receiver->begun = 1;
            *kind_ret = middle_of(word);
            *n_bytes_ret = upper_of(word);
            return 1;
        }
        if (!receiver->begun)
            return fault_of(receiver, PS_FAULT_START, word);
        if (flags_of(word) & ~(PS_RECORD_ZERO | PS_RECORD_NAMED))
            return fault_of(receiver, PS_FAULT_WORD, word);
        result = receive_batch(receiver, word);
        if (result < 0)
            return result;
    }
}
