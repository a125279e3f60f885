/* SPDX-License-Identifier: MIT */
/* Which pages can be read without changing anything: the observer must not fill a
 * hole, swap a page in, or have a zero page mapped. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "pysampler.h"

/*
 * A walk to the end of an extent (SEEK_HOLE) costs some 25 ns a page, a question about one
 * page (SEEK_DATA) some 550 ns: with at least one sample in 16 pages the extents are cheaper.
 */
enum { DENSE_GAP = 16 };

int ps_states_of_file(int fd, size_t page_size, const uint64_t *vfns, const uint32_t *order,
                      size_t n, uint8_t *states_ret)
{
    if (n == 0)
        return 0;
    const uint64_t span = vfns[order[n - 1]] - vfns[order[0]] + 1;
    const bool dense = span / n < DENSE_GAP;
    off_t data = 0, hole = 0; /* the extent known last: data in [data, hole), a hole before data */

    for (size_t i = 0; i < n; i++) {
        const off_t at = (off_t)(vfns[order[i]] * page_size);
        if (at >= hole && at >= data) {
            data = lseek(fd, at, SEEK_DATA);
            if (data < 0 && errno != ENXIO)
                return -errno;
            if (data < 0) { /* ENXIO: no data from here to the end of the file */
                data = hole = INT64_MAX;
                states_ret[order[i]] = PS_PAGE_HOLE;
                continue;
            }
            hole = data + (off_t)page_size;
            if (dense && data == at) {
                hole = lseek(fd, at, SEEK_HOLE);
                if (hole < 0 && errno != ENXIO)
                    return -errno;
            }
        }
        states_ret[order[i]] = at < data ? PS_PAGE_HOLE : PS_PAGE_PRESENT;
    }
    return 0;
}

/* The kernel's interface, younger than the headers we must build with. */
enum { SYS_CACHESTAT = 451 };
struct cachestat_range {
    uint64_t off, len;
};
struct cachestat {
    uint64_t nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recently_evicted;
};

/* Returns whether a page is in memory: 1, 0 or -errno. */
static int is_cached(int fd, uint64_t offset, size_t page_size)
{
    struct cachestat_range range = {offset, page_size};
    struct cachestat counts;

    if (syscall(SYS_CACHESTAT, fd, &range, &counts, 0) < 0)
        return -errno;
    return counts.nr_cache > 0;
}

/*
 * The same, without cachestat(): a page that is on its way out, in the swap cache, passes for
 * one that is in memory. Reading it takes no I/O, but frees its place in swap.
 */
static int is_resident(const uint8_t *page, size_t page_size)
{
    enum { HOST_PAGES_MAX = 65536 / 4096 };
    unsigned char resident[HOST_PAGES_MAX];

    if (mincore((void *)(uintptr_t)page, page_size, resident) < 0)
        return -errno;
    return resident[0] & 1;
}

int ps_mark_swapped(int fd, uint64_t offset, const void *base, size_t page_size,
                    const uint64_t *vfns, size_t n, uint8_t *states)
{
    bool has_cachestat = true;

    for (size_t i = 0; i < n; i++) {
        if (states[i] != PS_PAGE_PRESENT)
            continue;
        const uint64_t at = vfns[i] * page_size;
        int in_memory = has_cachestat ? is_cached(fd, offset + at, page_size) : -ENOSYS;
        if (in_memory == -ENOSYS) {
            has_cachestat = false;
            if (!base)
                return -ENOSYS;
            in_memory = is_resident((const uint8_t *)base + at, page_size);
        }
        if (in_memory < 0)
            return in_memory;
        if (!in_memory)
            states[i] = PS_PAGE_SWAPPED;
    }
    return 0;
}

int ps_swap_in_use(void)
{
    struct sysinfo info;
    return sysinfo(&info) == 0 && info.totalswap != info.freeswap;
}

int ps_map_file(int fd, uint64_t offset, size_t length, void **base_ret)
{
    void *const base = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, (off_t)offset);
    if (base == MAP_FAILED)
        return -errno;
    *base_ret = base;
    return 0;
}

void ps_unmap(void *base, size_t length)
{
    munmap(base, length);
}

int ps_file_system(int fd, int64_t *magic_ret)
{
    struct statfs fs;
    if (fstatfs(fd, &fs) < 0)
        return -errno;
    *magic_ret = (int64_t)fs.f_type;
    return 0;
}

/* Reads n entries of a pagemap into entries; those past the end of the address space become 0. */
static int read_pagemap(int fd, uint64_t first_page, uint64_t *entries, size_t n)
{
    const ssize_t got =
        pread(fd, entries, n * sizeof *entries, (off_t)(first_page * sizeof *entries));
    if (got < 0)
        return -errno;
    memset((uint8_t *)entries + got, 0, n * sizeof *entries - (size_t)got);
    return 0;
}

int ps_states_of_process(int fd, uint64_t address, size_t page_size, const uint64_t *vfns,
                         const uint32_t *order, size_t n, uint8_t *states_ret)
{
    /*
     * A system call costs as much as some hundred entries: samples that lie closer together
     * than that share one.
     */
    enum { RUN = 512, GAP = 128 };
    static const uint64_t PRESENT = 1ULL << 63, SWAPPED = 1ULL << 62;
    static const uint64_t OF_FILE = 1ULL << 61, EXCLUSIVE = 1ULL << 56;
    const uint64_t host_page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t entries[RUN], first = 0;
    size_t n_entries = 0;

    for (size_t i = 0; i < n; i++) {
        const uint64_t page = (address + vfns[order[i]] * page_size) / host_page;
        if (page - first >= n_entries) {
            first = page;
            n_entries = 1;
            for (size_t j = i + 1; j < n; j++) {
                const uint64_t next = (address + vfns[order[j]] * page_size) / host_page;
                if (next - first >= RUN || next - first >= n_entries + GAP)
                    break;
                n_entries = next - first + 1;
            }
            const int error = read_pagemap(fd, first, entries, n_entries);
            if (error < 0)
                return error;
        }
        const uint64_t entry = entries[page - first];
        if (entry & PRESENT)
            states_ret[order[i]] = entry & (OF_FILE | EXCLUSIVE) ? PS_PAGE_PRESENT : PS_PAGE_SHARED;
        else
            states_ret[order[i]] = entry & SWAPPED ? PS_PAGE_SWAPPED : PS_PAGE_HOLE;
    }
    return 0;
}
