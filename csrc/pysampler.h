/* SPDX-License-Identifier: MIT */
/*
 * The C core of pysampler: every type and function that Python may call.
 *
 * The part between the two marks is cut out by ffi_build.py and read by cffi, so it holds
 * declarations only. Rules of this seam:
 *   - C owns nothing and keeps no state: buffers and descriptors are the caller's.
 *   - A function returns a value >= 0, or -errno. Out-parameters come last, end in _ret.
 *   - One call per pass or slice of a pass; several threads may call at the same time.
 */
#ifndef PYSAMPLER_H
#define PYSAMPLER_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

/* ---- page hashes: page_hash.c ---- */

/*
 * What is computed of a page. XXH64 has seed 1 and keeps its low 32 bits, as QEMU does; XXH3
 * has seed 0, the default secret and 64 bits.
 */
enum ps_hash {
    PS_HASH_TOUCH, /* no hash: reads one word, which faults the page in */
    PS_HASH_READ,  /* no hash: reads every line and folds it; the floor of a pass */
    PS_HASH_XXH64,
    PS_HASH_XXH3,
    PS_HASH_CRC32, /* needs ps_hasher.crc32 */
};

/* Vector instructions a kernel may use; what a machine lacks must not be asked for. */
enum ps_simd {
    PS_SIMD_BASE, /* SSE2 on x86-64, NEON or plain C elsewhere */
    PS_SIMD_AVX2,
    PS_SIMD_AVX512,
};

typedef unsigned long (*ps_crc32_fn)(unsigned long crc, const unsigned char *buf,
                                     unsigned int len);

/*
 * Find crc32() and the version of the zlib that is installed.
 * Returns 0, or -ENOENT when there is none. What is found stays loaded.
 */
int ps_find_zlib(ps_crc32_fn *crc32_ret, const char **version_ret);

struct ps_hasher {
    int hash;          /* enum ps_hash */
    int simd;          /* enum ps_simd, at most ps_simd_best() */
    int prefetch;      /* 1: ps_hash_mapped prefetches pages to come, line by line, as it hashes */
    ps_crc32_fn crc32; /* for PS_HASH_CRC32, else NULL */
};

/* The widest enum ps_simd of this machine. */
int ps_simd_best(void);

/* ---- passes: pass.c, remote.c ---- */

/*
 * Hash the pages base + vfns[i] * page_size, i < n, in order.
 *
 * Returns how many pages were hashed. Fewer than n: reading page vfns[result] raised
 * SIGBUS, as a mapping of a truncated file does; hashes_ret holds those before it.
 * -EINVAL: an unknown hash or SIMD level.
 *
 * From the first call on, the process has a SIGBUS handler (sigbus.c). A SIGBUS that reading a
 * page here did not raise goes on to the handler that was there before.
 *
 * Pre: page_size is a power of two from 4096 to 65536; base is mapped up to the largest vfn.
 */
int64_t ps_hash_mapped(const struct ps_hasher *hasher, const void *base, size_t page_size,
                       const uint64_t *vfns, size_t n, uint64_t *hashes_ret);

/*
 * The same for pages of another process at address + vfns[i] * page_size, copied
 * by process_vm_readv in batches into staging (staging_pages pages, at least 1).
 *
 * Returns how many pages were hashed; fewer than n: page vfns[result] is not readable.
 * -ESRCH: no such process; -EPERM: not allowed.
 */
int64_t ps_hash_remote(const struct ps_hasher *hasher, int pid, uint64_t address,
                       size_t page_size, const uint64_t *vfns, size_t n, void *staging,
                       size_t staging_pages, uint64_t *hashes_ret);

/*
 * The same for pages of a file, copied by pread() into staging (one page). For files whose
 * holes a mapping would fill and whose extents cannot be asked for (hugetlbfs).
 *
 * Returns how many pages were hashed; fewer than n: page vfns[result] is past the end of file.
 */
int64_t ps_hash_file(const struct ps_hasher *hasher, int fd, size_t page_size,
                     const uint64_t *vfns, size_t n, void *staging, uint64_t *hashes_ret);

/* ---- which pages can be read without changing anything: residency.c ---- */

enum ps_page_state {
    PS_PAGE_PRESENT, /* reading it brings in nothing */
    PS_PAGE_HOLE,    /* never written: reads as zeros, must not be read */
    PS_PAGE_SWAPPED, /* has content, but reading it would swap it in */
};

/*
 * States of the pages vfns[order[i]], i < n, of a file, by SEEK_DATA and SEEK_HOLE. order
 * sorts vfns by rising vfn. fd's file offset is moved.
 * Returns 0, or -errno of lseek().
 */
int ps_states_of_file(int fd, size_t page_size, const uint64_t *vfns, const uint32_t *order,
                      size_t n, uint8_t *states_ret);

/*
 * The same for pages of a tmpfs file, open as fd and mapped at base from offset on, as far as
 * swap goes: a page whose state is PS_PAGE_PRESENT, but which is not in the page cache, becomes
 * PS_PAGE_SWAPPED.
 * Returns 0, or -errno of cachestat() (Linux 6.5), of mincore() where that is missing.
 */
int ps_mark_swapped(int fd, uint64_t offset, const void *base, size_t page_size,
                    const uint64_t *vfns, size_t n, uint8_t *states);

/* Returns 0 and the magic number (linux/magic.h) of the file system of fd, or -errno. */
int ps_file_system(int fd, int64_t *magic_ret);

/*
 * States of pages of private memory at address + vfns[i] * page_size, by /proc/PID/pagemap,
 * open as fd.
 * Returns 0 or -errno of pread().
 */
int ps_states_of_process(int fd, uint64_t address, size_t page_size, const uint64_t *vfns,
                         size_t n, uint8_t *states_ret);

/* ---- pre-copy as QEMU 10 runs it: precopy.c ---- */

enum {
    PS_PRECOPY_MODES = 12, /* at most so many modes */
};

enum ps_mode_kind {
    PS_MODE_RANDOM,     /* pages written at random: 1 - exp(-rate t) of them are dirty after t */
    PS_MODE_SEQUENTIAL, /* written one after the other, over and over: min(1, rate t) */
    PS_MODE_TABLE,      /* the only mode: linear between knots */
};

struct ps_precopy_mode {
    double pages;
    double rate; /* per ms */
    int32_t kind;
    int32_t reserved;
};

struct ps_precopy_guest {
    double nonzero_pages; /* of which the modes' pages are a part */
    double zero_pages;
    double phase;           /* of sequential writers at time 0, in laps: 0..1 */
    double burst_period_ms; /* 0: writes all the time */
    double burst_on_ms;     /* writes that long of each period */
    double burst_phase_ms;  /* how far into a period time 0 is */
    double zero_page_ms;    /* time to find out that a page is zero */
};

struct ps_precopy_cell {
    double bandwidth; /* bytes per ms, max-bandwidth */
    double link;      /* bytes per ms that the link itself carries */
    double downtime_limit_ms;
};

struct ps_precopy { /* what all cells have in common */
    double deadline_ms;
    double page_size;
    double page_bytes;      /* bytes that a page costs on the wire */
    double zero_page_bytes; /* bytes that a zero page costs */
    double flush_bytes;     /* the rate limit is looked at once per so many bytes */
    double device_bytes;    /* device state, in the last pass */
    double setup_ms;
    double sync_ms;    /* one bitmap sync */
    double sync_dirty_page_ms; /* and for each page of the log, which is protected again */
    double stop_ms;    /* stopping the vCPUs and handing over, part of the downtime */
    double wake_up_ms; /* how late a window starts */
    double logging_ms_per_page; /* what dirty logging costs the guest at a page's first write */
};

struct ps_precopy_outcome {
    double total_ms;
    double downtime_ms;
    double sent_bytes;
    int32_t converged;
    int32_t iterations; /* bitmap syncs before the last pass, the one at the start among them */
};

struct ps_precopy_round { /* just after a bitmap sync */
    double now_ms;
    double remaining_pages;
    double sent_bytes;
    double threshold_bytes;
};

/*
 * Migrate each guest with each cell. modes holds n_modes of each guest, knots_share n_knots of
 * each guest, at the times knots_ms; outcomes_ret holds n_cells of each guest.
 *
 * Returns 0, or -EINVAL: more than PS_PRECOPY_MODES modes, knots without their one mode, a
 * size of a page that is not positive, a deadline over 1e9 ms.
 *
 * Pre: finite numbers, shares from 0 to 1; zero_page_ms > 0; rising knots_ms > 0; PS_MODE_TABLE only with knots.
 */
int ps_precopy_grid(const struct ps_precopy *how, const struct ps_precopy_guest *guests,
                    size_t n_guests, const struct ps_precopy_mode *modes, size_t n_modes,
                    const double *knots_ms, const double *knots_share, size_t n_knots,
                    const struct ps_precopy_cell *grid, size_t n_cells,
                    struct ps_precopy_outcome *outcomes_ret);

/*
 * Migrate one guest with one cell and keep the bitmap syncs, n_rounds at most; rounds_ret[0] stays as it is.
 * Returns the number of syncs, the one at the start among them, or -EINVAL as above.
 */
int64_t ps_precopy_rounds(const struct ps_precopy *how, const struct ps_precopy_guest *guest,
                          const struct ps_precopy_mode *modes, size_t n_modes,
                          const double *knots_ms, const double *knots_share, size_t n_knots,
                          const struct ps_precopy_cell *cell,
                          struct ps_precopy_outcome *outcome_ret,
                          struct ps_precopy_round *rounds_ret, size_t n_rounds);

/* cdef: end */

#endif
