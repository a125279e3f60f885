/* SPDX-License-Identifier: MIT */
/* Pages that are not mapped here: another process's by process_vm_readv, a file's by pread. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "page_hash.h"

/* Beyond some 16 pages a longer batch gains nothing, and staging should stay in the L2 cache. */
enum { BATCH_MAX = 64 };

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Hash n adjoining pages. */
static void hash_copies(ps_kernel kernel, const struct ps_hasher *hasher, const uint8_t *copies,
                        size_t n, size_t page_size, uint64_t *hashes_ret)
{
    for (size_t done = 0; done < n;) {
        const uint8_t *pages[PS_PAGES_AT_ONCE];
        const size_t batch = smaller(PS_PAGES_AT_ONCE, n - done);
        for (size_t i = 0; i < batch; i++)
            pages[i] = copies + (done + i) * page_size;
        kernel(hasher, pages, batch, page_size, NULL, hashes_ret + done);
        done += batch;
    }
}

int64_t ps_hash_remote(const struct ps_hasher *hasher, int pid, uint64_t address, size_t page_size,
                       const uint64_t *vfns, size_t n, void *staging, size_t staging_pages,
                       uint64_t *hashes_ret)
{
    const ps_kernel kernel = ps_kernel_of(hasher);
    const size_t batch_pages = smaller(staging_pages, BATCH_MAX);
    uint8_t *const bytes = staging;
    struct iovec remote[BATCH_MAX];
    size_t done = 0;

    if (!kernel)
        return -EINVAL;
    while (done < n) {
        const size_t batch = smaller(batch_pages, n - done);
        for (size_t i = 0; i < batch; i++) {
            remote[i].iov_base = (void *)(uintptr_t)(address + vfns[done + i] * page_size);
            remote[i].iov_len = page_size;
        }
        const struct iovec local = {bytes, batch * page_size};
        const ssize_t got = process_vm_readv(pid, &local, 1, remote, batch, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno != EFAULT)
            return -errno;
        /* The copy ends, possibly inside of a page, where the first unreadable byte is. */
        const size_t pages = got < 0 ? 0 : (size_t)got / page_size;
        hash_copies(kernel, hasher, bytes, pages, page_size, hashes_ret + done);
        done += pages;
        if (pages == 0)
            break;
    }
    return (int64_t)done;
}

/* Returns whether the whole page was read, or -errno. */
static int read_page(int fd, uint8_t *page, size_t page_size, off_t offset)
{
    for (size_t at = 0; at < page_size;) {
        const ssize_t got = pread(fd, page + at, page_size - at, offset + (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got == 0 || (got < 0 && errno == EIO)) /* end of file; a page that is lost */
            return 0;
        if (got < 0)
            return -errno;
        at += (size_t)got;
    }
    return 1;
}

int64_t ps_hash_file(const struct ps_hasher *hasher, int fd, size_t page_size, const uint64_t *vfns,
                     size_t n, void *staging, uint64_t *hashes_ret)
{
    const ps_kernel kernel = ps_kernel_of(hasher);

    if (!kernel)
        return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        const int whole = read_page(fd, staging, page_size, (off_t)(vfns[i] * page_size));
        if (whole < 0)
            return whole;
        if (!whole)
            return (int64_t)i;
        hash_copies(kernel, hasher, staging, 1, page_size, hashes_ret + i);
    }
    return (int64_t)n;
}
