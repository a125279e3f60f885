/* SPDX-License-Identifier: MIT */
/* userfaultfd write-protection: descriptors, and the memory registered with them. Memory is
 * protected once, and each page's first write is noted, by the kernel alone (asynchronous) or by a
 * message that stops the writer until it is answered (uffd_ring.c). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "userfaultfd.h"

/* Newer than the headers of some distributions we build on; from the kernel's documented ABI. */
enum {
    FEATURE_PAGEFAULT_FLAG_WP = 1 << 0,
    FEATURE_THREAD_ID = 1 << 8,
    FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12, /* Linux 5.19 */
    FEATURE_WP_UNPOPULATED = 1 << 13,     /* Linux 6.4 */
    FEATURE_WP_ASYNC = 1 << 15,           /* Linux 6.7 */
    OPEN_USER_MODE_ONLY = 1,              /* Linux 5.11 */
};

static const uint64_t FEATURES[] = {
    [PS_UFFD_ASYNC] = FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_HUGETLBFS_SHMEM |
                      FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC,
    [PS_UFFD_MESSAGES] = FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_HUGETLBFS_SHMEM |
                         FEATURE_WP_UNPOPULATED | FEATURE_THREAD_ID,
};

static int open_any_way(int kind)
{
    static const unsigned long NEW_FROM_DEVICE = _IO(0xAA, 0x00);
    static const int FLAGS = O_CLOEXEC | O_NONBLOCK;

    int fd = (int)syscall(SYS_userfaultfd, FLAGS);
    if (fd >= 0 || errno != EPERM)
        return fd >= 0 ? fd : -errno;
    /* Some distributions let a group use the device instead. */
    const int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device >= 0) {
        fd = ioctl(device, NEW_FROM_DEVICE, FLAGS);
        close(device);
        if (fd >= 0)
            return fd;
    }
    if (kind != PS_UFFD_ASYNC)
        return -EPERM;
    /* Everybody may catch faults of user mode. That is not less here: an asynchronous fault of the
     * kernel's own writes is resolved in place and never reaches the descriptor. */
    fd = (int)syscall(SYS_userfaultfd, FLAGS | OPEN_USER_MODE_ONLY);
    return fd >= 0 ? fd : -EPERM;
}

int ps_uffd_open(int kind)
{
    if (kind != PS_UFFD_ASYNC && kind != PS_UFFD_MESSAGES)
        return -EINVAL;
    const int fd = open_any_way(kind);
    if (fd < 0)
        return fd;
    struct uffdio_api api = {.api = UFFD_API, .features = FEATURES[kind]};
    if (ioctl(fd, UFFDIO_API, &api) < 0) {
        const int error = errno;
        close(fd);
        return error == EINVAL ? -EOPNOTSUPP : -error;
    }
    return fd;
}

uint64_t ps_uffd_features(int kind)
{
    return FEATURES[kind];
}

int ps_uffd_copy(int pid, int fd)
{
    /* By number: the C library's names for these are younger than the calls. */
    static const long PIDFD_OPEN = 434, PIDFD_GETFD = 438;

    const int process = (int)syscall(PIDFD_OPEN, pid, 0);
    if (process < 0)
        return -errno;
    const int copy = (int)syscall(PIDFD_GETFD, process, fd, 0);
    const int error = errno;
    close(process);
    return copy >= 0 ? copy : -error;
}

int ps_uffd_register(int uffd, uint64_t address, uint64_t length)
{
    struct uffdio_register args = {
        .range = {.start = address, .len = length},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };
    return ioctl(uffd, UFFDIO_REGISTER, &args) < 0 ? -errno : 0;
}

int ps_uffd_unregister(int uffd, uint64_t address, uint64_t length)
{
    struct uffdio_range range = {.start = address, .len = length};
    const int error = ioctl(uffd, UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
    /* The kernel itself wakes those who wait for missing pages only. */
    ioctl(uffd, UFFDIO_WAKE, &range);
    return error;
}

int ps_uffd_write_protect(int uffd, uint64_t address, uint64_t length, uint64_t mode)
{
    struct uffdio_writeprotect args = {.range = {.start = address, .len = length}, .mode = mode};

    /* EAGAIN: the address space is just being changed by another thread. */
    while (ioctl(uffd, UFFDIO_WRITEPROTECT, &args) < 0) {
        if (errno != EAGAIN)
            return -errno;
        sched_yield();
    }
    return 0;
}

int ps_uffd_protect(int uffd, uint64_t address, uint64_t length)
{
    return ps_uffd_write_protect(uffd, address, length, UFFDIO_WRITEPROTECT_MODE_WP);
}

int64_t ps_uffd_page_size(int uffd, uint64_t address, uint64_t length, size_t page_size)
{
    /* The kernel refuses a part of a huge page, and to release what is not protected is nothing. */
    for (uint64_t size = page_size; size <= length; size *= 2) {
        const int error = ps_uffd_write_protect(uffd, address, size, 0);
        if (error != -EINVAL)
            return error < 0 ? error : (int64_t)size;
    }
    return -EINVAL;
}
