/* SPDX-License-Identifier: MIT */
/* Which pages were written: by PAGEMAP_SCAN under asynchronous write-protection, or by soft-dirty
 * bits. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "pysampler.h"

/* The ioctl PAGEMAP_SCAN of Linux 6.7, which the headers of some distributions do not know yet. */
struct scan_region {
    uint64_t start, end, categories;
};

struct scan_args {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

enum {
    SCAN_WP_MATCHING = 1 << 0,
    SCAN_CHECK_WPASYNC = 1 << 1,
    CATEGORY_WRITTEN = 1 << 1,
};

static const unsigned long SCAN = _IOWR('f', 16, struct scan_args);

/* Set n bits from bit on; return how many of them were not set before. */
static int64_t set_bits(uint8_t *bitmap, uint64_t bit, uint64_t n)
{
    const uint64_t end = bit + n;
    int64_t added = 0;

    while (bit < end) {
        if (bit % 8 == 0 && end - bit >= 8) {
            uint8_t *const byte = &bitmap[bit / 8];
            added += 8 - __builtin_popcount(*byte);
            *byte = 0xff;
            bit += 8;
        } else {
            uint8_t *const byte = &bitmap[bit / 8];
            const uint8_t mask = (uint8_t)(1u << (bit % 8));
            added += !(*byte & mask);
            *byte |= mask;
            bit++;
        }
    }
    return added;
}

int64_t ps_written_pages(int pagemap_fd, const struct ps_range *range, size_t page_size,
                         uint8_t *bitmap_ret)
{
    struct scan_region regions[512];
    /* With exactly these masks the kernel takes a path that was right about pages given back
     * from the first; see its commit "fix PAGEMAP_SCAN written state for unpopulated ptes". */
    struct scan_args args = {
        .size = sizeof args,
        .flags = SCAN_CHECK_WPASYNC,
        .start = range->address,
        .end = range->address + range->length,
        .vec = (uintptr_t)regions,
        .vec_len = sizeof regions / sizeof *regions,
        .category_mask = CATEGORY_WRITTEN,
        .return_mask = CATEGORY_WRITTEN,
    };
    int64_t added = 0;

    while (args.start < args.end) {
        const int n = ioctl(pagemap_fd, SCAN, &args);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        for (int i = 0; i < n; i++)
            added += set_bits(bitmap_ret,
                              range->first_bit + (regions[i].start - range->address) / page_size,
                              (regions[i].end - regions[i].start) / page_size);
        args.start = args.walk_end;
    }
    return added;
}

int ps_protect_written(int pagemap_fd, uint64_t address, uint64_t length)
{
    struct scan_args args = {
        .size = sizeof args,
        .flags = SCAN_CHECK_WPASYNC | SCAN_WP_MATCHING,
        .start = address,
        .end = address + length,
        .category_mask = CATEGORY_WRITTEN,
        .return_mask = CATEGORY_WRITTEN,
    };

    while (args.start < args.end) {
        if (ioctl(pagemap_fd, SCAN, &args) < 0 && errno != EINTR)
            return -errno;
        args.start = args.walk_end;
    }
    return 0;
}

int64_t ps_soft_dirty_pages(int pagemap_fd, const struct ps_range *range, size_t page_size,
                            uint8_t *bitmap_ret)
{
    static const uint64_t SOFT_DIRTY = 1ULL << 55;
    uint64_t entries[2048];
    const uint64_t n = range->length / page_size;
    int64_t added = 0;

    for (uint64_t done = 0; done < n;) {
        uint64_t batch = n - done;
        if (batch > sizeof entries / sizeof *entries)
            batch = sizeof entries / sizeof *entries;
        const off_t at = (off_t)((range->address / page_size + done) * sizeof *entries);
        const ssize_t got = pread(pagemap_fd, entries, batch * sizeof *entries, at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got < (ssize_t)sizeof *entries)
            return -ESRCH;
        batch = (uint64_t)got / sizeof *entries;
        for (uint64_t i = 0; i < batch; i++)
            if (entries[i] & SOFT_DIRTY)
                added += set_bits(bitmap_ret, range->first_bit + done + i, 1);
        done += batch;
    }
    return added;
}
