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
    PS_HASH_TOUCH,   /* no hash: reads one word, which faults the page in */
    PS_HASH_CONTENT, /* no hash: 0 for a page of zeros, else 1; reads until it knows */
    PS_HASH_READ,    /* no hash: reads every line and folds it; the floor of a pass */
    PS_HASH_XXH64,
    PS_HASH_XXH3,
    PS_HASH_CRC32, /* needs ps_hasher.crc32 */
    /* The following are no profile's; they are there to be compared. */
    PS_HASH_XXH32,      /* seed 0 */
    PS_HASH_XXH3_128,   /* its two halves, exclusive-or */
    PS_HASH_CRC32_ISAL, /* needs ps_hasher.crc32: ISA-L's crc32_gzip_refl(), cast */
};

/* Vector instructions a kernel may use; what a machine lacks must not be asked for. */
enum ps_simd {
    PS_SIMD_BASE, /* SSE2 on x86-64, NEON or plain C elsewhere */
    PS_SIMD_AVX2,
    PS_SIMD_AVX512,
};

typedef unsigned long (*ps_crc32_fn)(unsigned long crc, const unsigned char *buf, unsigned int len);

/*
 * Find crc32() and the version of the zlib that is installed.
 * Returns 0, or -ENOENT when there is none. What is found stays loaded.
 */
int ps_find_zlib(ps_crc32_fn *crc32_ret, const char **version_ret);

struct ps_hasher {
    int hash;          /* enum ps_hash */
    int simd;          /* enum ps_simd, at most ps_simd_best() */
    int prefetch;      /* 1: hash mapped pages in fours while the next four are prefetched */
    ps_crc32_fn crc32; /* for PS_HASH_CRC32 and PS_HASH_CRC32_ISAL, else NULL */
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
int64_t ps_hash_remote(const struct ps_hasher *hasher, int pid, uint64_t address, size_t page_size,
                       const uint64_t *vfns, size_t n, void *staging, size_t staging_pages,
                       uint64_t *hashes_ret);

/*
 * The same for pages of a file, copied by pread() into staging (one page). For files whose
 * holes a mapping would fill and whose extents cannot be asked for (hugetlbfs), and for
 * /proc/PID/mem.
 *
 * Returns how many pages were hashed; fewer than n: page vfns[result] is past the end of file,
 * or reading it is an I/O error.
 */
int64_t ps_hash_file(const struct ps_hasher *hasher, int fd, size_t page_size, const uint64_t *vfns,
                     size_t n, void *staging, uint64_t *hashes_ret);

/*
 * Compare the pages base + vfns[i] * page_size, i < n, with copies of them that were kept one
 * after the other. What a sampler without hashes would do.
 *
 * Returns how many pages were compared; fewer than n: as ps_hash_mapped. n_differ_ret counts
 * those that differ.
 *
 * Pre: as ps_hash_mapped; kept has n pages.
 */
int64_t ps_compare_mapped(const void *base, const void *kept, size_t page_size,
                          const uint64_t *vfns, size_t n, int prefetch, uint64_t *n_differ_ret);

/* ---- which pages can be read without changing anything: residency.c ---- */

/* Of the first two the content is known; the others have one that cannot be seen from here. */
enum ps_page_state {
    PS_PAGE_PRESENT,     /* reading it brings in nothing */
    PS_PAGE_HOLE,        /* never written: reads as zeros, must not be read */
    PS_PAGE_SWAPPED,     /* in swap: reading it would swap it in */
    PS_PAGE_FILE,        /* not touched by its process; its file cannot be read by us */
    PS_PAGE_USERFAULTFD, /* missing: who holds a userfaultfd will fill it; a read would wait for
                            that */
    PS_PAGE_CLOSED,      /* reading it failed */
    PS_PAGE_SHARED,      /* present, and may be elsewhere too: by KSM or a fork; or a zero page */
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
 * PS_PAGE_SWAPPED. base may be NULL where it is not mapped.
 * Returns 0, or -errno of cachestat() (Linux 6.5), of mincore() where that is missing.
 */
int ps_mark_swapped(int fd, uint64_t offset, const void *base, size_t page_size,
                    const uint64_t *vfns, size_t n, uint8_t *states);

/* Returns 1 when anything is swapped out on this host, else 0. */
int ps_swap_in_use(void);

/*
 * Map a part of a file for reading, shared. The mapping keeps no descriptor.
 * Returns 0, or -errno of mmap(). ps_unmap() ends it.
 */
int ps_map_file(int fd, uint64_t offset, size_t length, void **base_ret);
void ps_unmap(void *base, size_t length);

/* Returns 0 and the magic number (linux/magic.h) of the file system of fd, or -errno. */
int ps_file_system(int fd, int64_t *magic_ret);

/*
 * States of pages of private memory at address + vfns[order[i]] * page_size, by
 * /proc/PID/pagemap, open as fd. order sorts vfns. After the process's end all are holes.
 * process_vm_readv() of a shared page makes the process a copy of its own, as a write would.
 * Returns 0 or -errno of pread().
 */
int ps_states_of_process(int fd, uint64_t address, size_t page_size, const uint64_t *vfns,
                         const uint32_t *order, size_t n, uint8_t *states_ret);

/* ---- exact tracking: uffd.c, pagemap.c ---- */

enum ps_uffd_kind {
    PS_UFFD_ASYNC,    /* the kernel resolves write faults itself; PAGEMAP_SCAN tells of them */
    PS_UFFD_MESSAGES, /* a write waits for the answer to its message, which names its thread */
};

/*
 * Open a userfaultfd of this address space for write-protection, with all the features its kind
 * needs. Returns the descriptor. -EPERM: not allowed; -ENOSYS: the kernel has none; -EOPNOTSUPP:
 * the kernel lacks a feature.
 */
int ps_uffd_open(int kind);

/* The features of a kind, as /proc/PID/fdinfo shows those of a descriptor. Pre: a legal kind. */
uint64_t ps_uffd_features(int kind);

/*
 * A copy of descriptor fd of process pid. A userfaultfd stays one of that process's address space.
 * Returns the copy, or -errno of pidfd_open() or pidfd_getfd(); -EPERM: not allowed.
 */
int ps_uffd_copy(int pid, int fd);

/*
 * Register memory, give it back (those who wait for it go on), protect it. Addresses and lengths
 * are whole pages. Return 0 or -errno of the ioctl; -EBUSY: registered with another userfaultfd.
 */
int ps_uffd_register(int uffd, uint64_t address, uint64_t length);
int ps_uffd_unregister(int uffd, uint64_t address, uint64_t length);
int ps_uffd_protect(int uffd, uint64_t address, uint64_t length);

/*
 * The grain in which registered memory is protected and released: the host's page_size, or that of
 * the huge pages which hold it. Returns bytes, or -errno; -EINVAL: there is no whole page of any
 * size.
 */
int64_t ps_uffd_page_size(int uffd, uint64_t address, uint64_t length, size_t page_size);

/* Memory under tracking; its first page has bit first_bit of a bitmap, least significant first. */
struct ps_range {
    uint64_t address;
    uint64_t length;
    uint64_t first_bit;
    uint64_t page_size; /* what ps_uffd_page_size() says of it; a power of two */
};

/*
 * Set the bits of the pages written since they were protected, by /proc/PID/pagemap; other bits
 * stay. The pages stay as they are. Returns how many bits were not set before. -EPERM: a part is
 * not registered with a PS_UFFD_ASYNC descriptor; -ENOTTY: the kernel has no PAGEMAP_SCAN.
 *
 * Pre: the bitmap covers the range; page_size is the host's.
 */
int64_t ps_written_pages(int pagemap_fd, const struct ps_range *range, size_t page_size,
                         uint8_t *bitmap_ret);

/*
 * Protect the written ones of protected pages again. Beside ps_uffd_protect(), which visits every
 * page table entry to change it, this is quick. Returns 0 or an error of ps_written_pages().
 */
int ps_protect_written(int pagemap_fd, uint64_t address, uint64_t length);

/*
 * The same as ps_written_pages() by the soft-dirty bits of a pagemap.
 * Returns how many bits were not set before, or -errno of pread(); -ESRCH: the process is gone.
 */
int64_t ps_soft_dirty_pages(int pagemap_fd, const struct ps_range *range, size_t page_size,
                            uint8_t *bitmap_ret);

/* The ring of one vCPU. */
struct ps_ring {
    uint64_t *entries;  /* bits of the pages written first by this thread, not harvested yet */
    uint32_t n_entries; /* at most ps_ring_set.capacity */
    uint32_t tid;       /* the thread, as its own process sees it */
    uint64_t n_pages;   /* harvested pages that nobody had written before */
    uint64_t n_full;    /* how often a write found the ring full */
};

/* A write that waits in its fault, as its ring is full. */
struct ps_waiting {
    uint64_t address;
    uint32_t tid;
    uint32_t unused;
};

struct ps_ring_set {
    int uffd;         /* of kind PS_UFFD_MESSAGES, a copy that nobody else knows */
    int shown_uffd;   /* what it is a copy of: others may close it or put something else there */
    int cleanup_fd;   /* a socket to the cleanup process, or -1 */
    uint64_t beat_ms; /* when it was told last that we run, CLOCK_MONOTONIC */
    int harvest_full; /* 1: a full ring is harvested at once; 0: its thread waits for a request */
    size_t page_size; /* the host's */
    size_t n_ranges;
    const struct ps_range *ranges;
    uint8_t *bitmap; /* pages harvested */
    size_t n_rings;  /* the last one is that of all threads which are no vCPU */
    struct ps_ring *rings;
    uint32_t capacity; /* entries of each ring, at least 1 */
    uint32_t n_waiting;
    uint32_t max_waiting; /* at least 1 */
    struct ps_waiting *waiting;
};

/*
 * What ps_ring_serve() writes to the cleanup process, a byte each. When the socket can be read
 * from, then the cleanup process has let the guest go, or has ended.
 */
enum ps_cleanup {
    PS_CLEANUP_BEAT = 'b',   /* we run; about every PS_CLEANUP_BEAT_MS */
    PS_CLEANUP_LET_GO = 'x', /* give all memory back */
    PS_CLEANUP_BEAT_MS = 250,
    PS_CLEANUP_LATE_MS =
        4000, /* so late the guest may have let itself go, which it does after 5 s */
};

/* What may be asked of ps_ring_serve(). */
enum ps_ring_request {
    PS_RING_HARVEST = 1,    /* harvest all rings, let those who wait go on */
    PS_RING_RESET = 1 << 8, /* the same, then forget all pages and protect them again */
    PS_RING_STOP = 1 << 16, /* the same, then return */
};

/*
 * Answer the messages of a userfaultfd until asked to stop, waiting for them meanwhile: to be
 * called in a thread of its own. A request is added to the eventfd request_fd; when it is done, 1
 * is added to the eventfd reply_fd. A write is noted before it happens, so each write that has
 * happened when a request is made is in the bitmap when it is answered.
 *
 * Returns 0 when stopped; -EBADF: a descriptor was closed, or is another file; -ESRCH: the address
 * space has ended; -EOWNERDEAD: the cleanup process has let the guest go, or has ended. After an
 * error all ranges have been unregistered.
 *
 * Pre: nothing in the set's own memory is under tracking; nobody else writes it meanwhile.
 */
int ps_ring_serve(struct ps_ring_set *set, int request_fd, int reply_fd);

/* ---- the emulated guest's dirty log: vcpu_log.h, dirty_log.c ---- */

/*
 * What the vCPUs have written, noted by themselves, in a memfd that others can map: one struct
 * ps_dirty_log, a page of 4096 bytes; a struct ps_log_block for each block; a struct ps_log_ring
 * for each vCPU; room for the entries of each ring, twice its size; a bit for each page of 4096
 * bytes. Each part but the first begins where the one before it ends, and the bits of each block
 * begin with a word of their own.
 *
 * A vCPU writes memory, then looks at the page's bit and sets it if it is clear. Who clears the bit
 * and then reads the page must not miss a write: but the processor may look at the bit before
 * others see the write. Two barriers would forbid that. The vCPU, which writes all the time, has
 * none: the reader makes one on every CPU that runs a vCPU, by membarrier(), between clearing and
 * reading. What was written before it is seen by the reader, what is written after it finds the bit
 * clear. The same holds for a log that is being turned on. Where the guest could not register for
 * that, `fence` is set and each write has a barrier.
 *
 * One reader at a time: the one that holds a lock of flock() on the file.
 */
enum {
    PS_LOG_VERSION = 2,
    PS_LOG_RING = 4096,     /* a usual ring size: QEMU's dirty-ring-size, in entries; */
    PS_LOG_RING_MIN = 1024, /*   it is a power of two, */
    PS_LOG_RING_MAX = 65536,
    PS_LOG_SPARE = 32,       /* what a batch may write into a ring beyond its size */
    PS_LOG_HOLD_MS = 5000,   /* longer no vCPU stands at a full ring: logging ends then */
    PS_LOG_SLEEP_MS = 60000, /* longer no vCPU sleeps after it */
};

enum ps_log_mode {
    PS_LOG_OFF,
    PS_LOG_BITMAP,
    PS_LOG_BITMAP_AND_RING,
    PS_LOG_GIVEN_UP, /* off, as a ring stood full for too long; the ring misses pages */
};

struct ps_dirty_log {
    uint64_t magic; /* PS_LOG_MAGIC: "pslog" */
    uint64_t version;
    uint64_t n_vcpus;
    uint64_t n_blocks;
    uint64_t fence;      /* 1: each write has a barrier */
    uint64_t cost_ns;    /* what a vCPU waits at each first write, awake, as for KVM's fault */
    uint64_t ring_size;  /* entries after which a ring is full; 0: there are no rings */
    uint64_t own_reader; /* 1: the guest's own process reads the log now */
    uint32_t mode;       /* atomic, enum ps_log_mode */
    uint32_t kicks;      /* atomic: raised and woken when a ring is half full or full */
};

struct ps_log_block {
    uint64_t device, inode; /* of the memfd that is the block */
    uint64_t n_pages;
    uint64_t first_word; /* of its bits, counted from the first block's; 64 pages each */
};

struct ps_log_ring { /* entry: first_word * 64 + vfn of a page whose bit this vCPU has set */
    /* the vCPU's */
    uint64_t written;         /* atomic: entries ever written */
    uint64_t n_full;          /* atomic: how often it was full */
    uint64_t stood_ns;        /* atomic: how long the vCPU stood until it was harvested */
    uint64_t asleep_until_ns; /* atomic: CLOCK_MONOTONIC, when its last sleep after that ends */
    uint64_t reserved[4];
    /* the reader's */
    uint64_t harvested; /* atomic: entries ever harvested; its low half wakes the vCPU */
    uint64_t sleep_ns;  /* atomic: how long the vCPU sleeps at each full ring, after the harvest */
    uint64_t more[6];
};

/* What tells a log from other files. */
uint64_t ps_log_magic(void);

/* Let readers make barriers in this process. Returns 0 or -errno. */
int ps_log_register(void);

/*
 * Turn logging on or off. When this returns each write that is not logged yet can be read. Returns
 * 0 or -errno: no barrier could be made.
 */
int ps_log_set_mode(struct ps_dirty_log *log, uint32_t mode);

/* The mode as it is now. */
uint32_t ps_log_mode(const struct ps_dirty_log *log);

/*
 * Get and reset n words: each is exchanged for 0 and stored in words_ret, unless that is NULL.
 * Pages that are read afterwards have all that was written before their bit was taken. Returns 0 or
 * -errno: no barrier could be made.
 */
int ps_log_take(uint64_t *words, size_t n, uint64_t *words_ret);

/* How many bits of n words are set; they stay so. */
uint64_t ps_log_count(const uint64_t *words, size_t n);

/*
 * Harvest a ring and wake its vCPU: pages not in `seen` yet get their bit there and are counted.
 *
 * Returns how many they were, or -EPROTO: the ring says what cannot be.
 *
 * Pre: seen has n_bits bits; entries has twice ring_size; nobody else harvests.
 */
int64_t ps_log_harvest(struct ps_log_ring *ring, const uint64_t *entries, uint64_t ring_size,
                       uint64_t *seen, uint64_t n_bits);

/*
 * Harvest a ring as KVM's is harvested: each page's bit in the log is cleared, so that its next
 * write enters a ring again, and is set in `kept`, unless that is NULL, if it was not clear yet.
 * Then the vCPU is woken. A page of `kept` may be read once ps_log_take() has been called.
 *
 * Returns how many entries they were, or -EPROTO: the ring says what cannot be.
 *
 * Pre: as ps_log_harvest; words and kept have n_bits bits; nobody else changes kept.
 */
int64_t ps_log_collect(struct ps_log_ring *ring, const uint64_t *entries, uint64_t ring_size,
                       uint64_t *words, uint64_t *kept, uint64_t n_bits);

/* Let a ring's vCPU sleep so long at each full ring, from now on; 0: not at all. */
void ps_log_sleep_at_full(struct ps_log_ring *ring, uint64_t sleep_ns);

/* Wait until a vCPU kicks, which it has done if *kicks is no more what it was, or for 100 ms.
 * *kicks is what it is then. */
void ps_log_wait(struct ps_dirty_log *log, uint32_t *kicks);

/* ---- the emulated guest: vcpu.c, fill.c ---- */

/* Bytes of a page of the guest, whatever backs its RAM: that of x86-64. */
enum { PS_GUEST_PAGE_SIZE = 4096 };

enum ps_pattern { /* which page is written next */
                  PS_PATTERN_IDLE,
                  PS_PATTERN_UNIFORM,
                  PS_PATTERN_HOTCOLD,
                  PS_PATTERN_ZIPF,
                  PS_PATTERN_SWEEP,
                  PS_PATTERN_KV,
};

enum ps_effect {                 /* what a write does */
                 PS_EFFECT_MARK, /* stores the mark: vCPU index << 48 | number of this vCPU's write,
                                    from 1 */
                 PS_EFFECT_SILENT, /* stores what is there already */
                 PS_EFFECT_FREE,   /* the whole page becomes zero */
                 PS_EFFECT_READ,   /* loads what is there: no write, so neither log nor stamp; the
                                      counter counts it */
};

enum ps_kv_write {               /* what the operations of a store that are no reads do */
                   PS_KV_UPDATE, /* a new value for a key */
                   PS_KV_INSERT, /* a new key, in place of the oldest; reads then favour the newest
                                    keys */
                   PS_KV_MODIFY, /* a read, then an update */
};

/* A slab store. Arrays are the caller's; offsets are bytes in the working set, multiples of 8. */
struct ps_kv {
    uint64_t n_keys;
    uint64_t *item_at;          /* per key: its chunk; updates move items, as memcached does */
    const uint32_t *item_bytes; /* per key: header, key and value */
    const uint8_t *item_class;  /* per key: its slab class */
    uint64_t *free_at;          /* per class: the chunk freed last, which is used next */
    uint64_t reads;             /* share of reads, in units of 2^-64 */
    int write;                  /* enum ps_kv_write */
    /* state */
    uint64_t newest;   /* key inserted last */
    uint64_t rest_at;  /* the write under way: its next page, */
    uint64_t rest_end; /* up to here; rest_at == rest_end: no write under way */
    uint64_t unlink;   /* 1 + the chunk whose header goes into the free list next; 0: none */
    uint64_t modify;   /* 1 + the key that was read and is to be updated; 0: none */
};

/* Writes due at a steady rate. */
struct ps_pace {
    uint64_t writes_per_second; /* at most 10^9 */
    uint64_t lag_ns;  /* most of the time lost to a throttle that is made up for, <= 10^9 */
    uint64_t last_ns; /* state: up to when writes have been granted */
    uint64_t credit;  /* state: not yet granted, in writes x 10^-9 */
    uint64_t missed;  /* state: lost to a throttle, less than a write, x 10^-9 */
};

/*
 * A vCPU under a throttle runs for PS_THROTTLE_RUN_NS, then sleeps for sleep_ns, and so on. QEMU
 * throttles so, with the same 10 ms (migration/cpu-throttle.c of QEMU 10.0.2). A percentage p is
 * sleep_ns = p / (100 - p) x PS_THROTTLE_RUN_NS.
 */
enum { PS_THROTTLE_RUN_NS = 10000000 };
struct ps_throttle {
    uint64_t sleep_ns; /* atomic, set by ps_vcpu_throttle(); 0: no throttle; UINT64_MAX: asleep */
    int64_t slept_ns;  /* atomic, state: how long it has slept in all. Negative while it sleeps: */
    uint64_t wake_ns;  /* then less the time when it began to, which it does until wake_ns */
    uint64_t began_ns; /* state: when its present turn began */
    uint64_t asleep;   /* state: whether that is a turn of sleep */
    uint64_t overrun_ns; /* state: by how much the turn of running before it was too long */
};

struct ps_vcpu {
    /* where: set once */
    uint64_t index;
    uint64_t *writes;         /* this vCPU's published counter */
    struct ps_dirty_log *log; /* NULL: there is none */
    struct ps_log_ring *ring;
    uint64_t *ring_entries; /* room for twice as many as */
    uint64_t ring_size;     /* make the ring full; 0: there is no ring */
    /* what: set while ps_vcpu_run is not under way */
    void *base;          /* start of the working set */
    uint64_t *stamps;    /* per page of it: CLOCK_MONOTONIC ns of its last write; NULL: not kept */
    uint64_t *log_words; /* the log's bits of the working set, */
    uint64_t log_first;  /* the first of which has this number among all blocks' */
    uint64_t n_pages;    /* of the working set, at least 1 and below 2^32 */
    uint64_t seed;
    int pattern;        /* enum ps_pattern */
    int effect;         /* enum ps_effect */
    uint64_t hot_pages; /* hotcold: these first pages, from 1 to n_pages, */
    uint64_t hits;      /* get this share of the writes, in units of 2^-64 */
    uint64_t n_ranks;   /* zipf and kv: n_pages or n_keys; else 0 */
    double theta;       /*   share of rank k: proportional to k^-theta, theta > 0 */
    uint64_t stride;    /*   rank k is page or key (k - 1) x stride mod n_ranks; coprime to it */
    struct ps_kv kv;
    uint64_t on_ns;      /* bursts: active so long from origin_ns on, */
    uint64_t off_ns;     /* then pausing so long, and so on; 0: always active */
    struct ps_pace pace; /* writes_per_second 0: as many as can be */
    /* how much of the time: while it runs as well */
    struct ps_throttle throttle;
    /* state */
    uint64_t draws;             /* random numbers taken; with seed, all there is to the sequence */
    uint64_t position;          /* sweep */
    double zipf_low, zipf_high; /* of theta and n_ranks; set by ps_vcpu_run */
    uint64_t full_since_ns;     /* it stands at a full ring; 0: it does not */
    uint64_t asleep_until_ns;   /* it sleeps after a full ring */
    uint32_t interrupt;         /* 1: ps_vcpu_run must return */
};

/*
 * How many writes are due at now_ns, which never goes back.
 *
 * A vCPU that comes late does not catch up in a burst: what it missed is made up at most a quarter
 * faster than its pace, and all beyond PS_PACE_CARRY_NS worth of writes is lost.
 */
enum { PS_PACE_CARRY_NS = 20000000 };
uint64_t ps_pace_due(struct ps_pace *pace, uint64_t now_ns);

/*
 * A vCPU slept for absent_ns by order of a throttle and had `left` writes to do. Returns how many
 * it has to do now, at once: those that fell due meanwhile, but no more than are due in lag_ns.
 */
uint64_t ps_pace_missed(struct ps_pace *pace, uint64_t absent_ns, uint64_t left);

/*
 * When the throttle's turn ends that is under way at now_ns, which never goes back; UINT64_MAX:
 * never, as where sleep_ns is that: it sleeps at once, and for good. The first turn else begins
 * when there is a throttle, and is one of running. A turn that was too long shortens the next one
 * of running, so that the share of sleep is kept.
 */
uint64_t ps_throttle_end(struct ps_throttle *throttle, uint64_t now_ns);

/* How long a vCPU has slept by order of a throttle until now_ns, in all. Any thread may ask. */
uint64_t ps_throttle_slept(const struct ps_throttle *throttle, uint64_t now_ns);

/*
 * Write pages until CLOCK_MONOTONIC reaches until_ns or ps_vcpu_interrupt() is called; bursts
 * count from origin_ns. Alone in this library this function waits, in futex(), or Python's lock
 * would disturb the pace.
 *
 * Order of one write: memory, then the dirty log, then the clock is read, then the stamp, then the
 * counter. So a stamp is never earlier than its write, and at any moment at most one write per vCPU
 * is done but not yet logged, stamped or counted; none once this has returned.
 *
 * Returns 0: until_ns is reached, 1: interrupted.
 *
 * Pre: base and stamps are mapped for n_pages pages of 4096 bytes; kv's items end within them.
 */
int ps_vcpu_run(struct ps_vcpu *vcpu, uint64_t origin_ns, uint64_t until_ns);

/* Throttle a vCPU, from another thread, at once: one that sleeps looks how long it still has to. */
void ps_vcpu_throttle(struct ps_vcpu *vcpu, uint64_t sleep_ns);

/* Make ps_vcpu_run return, from another thread; it stays so until interrupt is set to 0. */
void ps_vcpu_interrupt(struct ps_vcpu *vcpu);

/*
 * Fill n_pages pages of 4096 bytes, the first of which is number vfn, with random bytes or with
 * stretches of text. text_pages of 256 pages, chosen at random, are text.
 *
 * Pre: text_bytes is at least 8192; base is aligned to 8.
 */
void ps_fill(void *base, uint64_t vfn, uint64_t n_pages, uint64_t seed, int text_pages,
             const void *text, uint64_t text_bytes);

/* ---- pre-copy as QEMU 10 runs it: precopy_model.c ---- */

enum {
    PS_PRECOPY_COMPONENTS = 12, /* at most so many components of a dirty-page curve */
};

enum ps_component_kind {
    PS_COMPONENT_RANDOM, /* pages written at random: 1 - exp(-rate t) of them are dirty after t */
    PS_COMPONENT_SEQUENTIAL, /* written one after the other, over and over: min(1, rate t) */
    PS_COMPONENT_TABLE,      /* the first component only: linear between knots */
};

struct ps_precopy_component {
    double pages;
    double rate; /* per ms */
    int32_t kind;
    int32_t reserved;
};

struct ps_precopy_guest {
    double nonzero_pages; /* of which the components' pages are a part */
    double zero_pages;
    double phase;            /* of sequential writers at time 0, in laps: 0..1 */
    double burst_period_ms;  /* 0: writes all the time */
    double burst_on_ms;      /* writes that long of each period */
    double burst_phase_ms;   /* how far into a period time 0 is */
    double zero_page_factor; /* of zero_page_ms of struct ps_precopy_parameters */
};

struct ps_precopy_cell {
    double bandwidth; /* bytes per ms, max-bandwidth */
    double link;      /* bytes per ms that the link itself carries */
    double downtime_limit_ms;
    /* Index of an earlier cell that has a longer limit and is else the same; -1: none. */
    int64_t longer_limit_cell;
};

struct ps_precopy_parameters { /* what all cells have in common */
    double deadline_ms;
    double window_ms;    /* the rate is limited and measured over that time */
    double iteration_ms; /* that one iteration sends pages at most */
    double page_size;
    double page_bytes;      /* bytes that a page costs on the wire */
    double zero_page_bytes; /* bytes that a zero page costs */
    double zero_page_ms;    /* time to find out that a page is zero */
    double flush_bytes;     /* the rate limit is looked at once per so many bytes */
    double on_way_bytes;    /* that channels of multifd still send when it has been reached */
    double device_bytes;    /* device state, in the last pass */
    double setup_ms;
    double stop_ms;             /* stopping the vCPUs and handing over, part of the downtime */
    double wake_up_ms;          /* how late a window starts */
    double logging_ms_per_page; /* what dirty logging costs the guest at a page's first write */
};

struct ps_precopy_outcome {
    double total_ms;
    double downtime_ms;
    double sent_bytes;
    int32_t converged;
    int32_t iterations; /* the bulk stage, and each bitmap sync that found pages to send again */
    /* Shorter downtime-limits above this one decide nothing otherwise; but quiet windows are taken
     * together by others then, and round the rest. */
    double same_above_ms;
};

struct ps_precopy_round { /* just after a bitmap sync */
    double now_ms;
    double remaining_pages;
    double sent_bytes;
    double threshold_bytes;
};

struct ps_precopy_guests {
    const struct ps_precopy_guest *guests;
    const struct ps_precopy_component *components; /* n_components of each guest */
    const double *knots_ms;
    const double *knots_share; /* n_knots of each guest, at the times knots_ms */
    size_t n_guests;
    size_t n_components;
    size_t n_knots;
};

/*
 * Migrate each guest with each cell. outcomes_ret holds n_cells of each guest. A cell is not run
 * but has the outcome of its longer_limit_cell where that does not converge or would be the same.
 *
 * Returns 0, or -EINVAL: more than PS_PRECOPY_COMPONENTS components, knots without a component, a
 * size of a page that is not positive, a window or an iteration below 1 ms, a deadline over 1e9 ms,
 * a longer_limit_cell that is none.
 *
 * Pre: finite numbers, shares from 0 to 1; zero_page_ms >= 0; rising knots_ms > 0;
 * PS_COMPONENT_TABLE only with knots.
 */
int ps_precopy_grid(const struct ps_precopy_parameters *parameters,
                    const struct ps_precopy_guests *guests, const struct ps_precopy_cell *cells,
                    size_t n_cells, struct ps_precopy_outcome *outcomes_ret);

/*
 * Migrate one guest with one cell and keep the bitmap syncs, n_rounds at most; rounds_ret[0] stays
 * as it is. Returns the number of syncs, the one at the start among them, or -EINVAL as above and
 * where there is not one guest.
 */
int64_t ps_precopy_rounds(const struct ps_precopy_parameters *parameters,
                          const struct ps_precopy_guests *guests,
                          const struct ps_precopy_cell *cell, size_t n_rounds,
                          struct ps_precopy_outcome *outcome_ret,
                          struct ps_precopy_round *rounds_ret);

/* ---- how a guest is slowed down: convergence.c ---- */

/*
 * Pure functions of numbers, for the engine that migrates and for the model of it. All return
 * -EINVAL for numbers out of the bounds that are given here, and change nothing then.
 */

struct ps_auto_converge {       /* QEMU's parameters, in percent */
    uint32_t trigger_threshold; /* throttle-trigger-threshold, at most 100 */
    uint32_t initial;           /* cpu-throttle-initial, at most 99 */
    uint32_t increment;         /* cpu-throttle-increment, at most 99 */
    uint32_t most;              /* max-cpu-throttle, at most 99 */
    uint32_t tailslow;          /* cpu-throttle-tailslow, 0 or 1 */
};

enum { PS_THROTTLE_CHECKS = 2 }; /* so many checks find too little progress before each step */

/*
 * Look at a period of at least a second, in which dirty_bytes became dirty and sent_bytes were
 * sent. high_count is the migration's state, 0 at first; a period of good progress leaves it as it
 * is. Returns 1 when a step is due, else 0. auto-converge and dirty-limit step alike.
 */
int ps_throttle_check(const struct ps_auto_converge *settings, uint64_t dirty_bytes,
                      uint64_t sent_bytes, uint32_t *high_count);

/*
 * A step of auto-converge. Returns the next percentage of the time that vCPUs sleep, from 1 to 99;
 * percentage is the present one, 0 where nothing is throttled yet. It falls only where max-cpu-
 * throttle has been lowered.
 */
int ps_throttle_step(const struct ps_auto_converge *settings, uint32_t percentage,
                     uint64_t dirty_bytes, uint64_t sent_bytes);

enum {
    PS_DIRTY_LIMIT_TOLERANCE = 25,  /* MiB/s by which a rate may miss its quota */
    PS_DIRTY_LIMIT_LINEAR = 50,     /* percent of which it misses it: above, in one step, */
    PS_DIRTY_LIMIT_STEPS = 10,      /* else in so many steps for each time that a ring takes */
    PS_DIRTY_LIMIT_MOST_FULLS = 99, /* the longest sleep, in times that a ring takes */
    PS_DIRTY_LIMIT_MOST_RING_MIB = 1 << 30,
};

/*
 * The dirty rate, in MiB/s rounded down, of n_pages (at most 2^52) of 4096 bytes in ms (at least
 * 1). whole_mib: what is left of a MiB is dropped first, as the dirty restraint does.
 */
int64_t ps_dirty_limit_rate(uint64_t n_pages, uint64_t ms, int whole_mib);

/* How long, in us, a ring for ring_mib MiB of pages takes to be full, at a rate in MiB/s, at least
 * 1. */
int64_t ps_dirty_limit_ring_full_us(uint64_t ring_mib, uint64_t rate);

/*
 * Adjust how long a vCPU sleeps each time that its ring is full. quota (at least 1) and current are
 * rates in MiB/s, sleep_us (at most INT64_MAX) is what it sleeps now, 0 at first. max_rate is the
 * highest rate of any vCPU that this function has been told, 0 at first: one for all of them, for
 * good. Returns the sleep in us.
 */
int64_t ps_dirty_limit_sleep(uint64_t quota, uint64_t current, uint64_t ring_mib, uint64_t sleep_us,
                             uint64_t *max_rate);

enum {
    PS_RESTRAINT_TOLERANCE = 15, /* MiB/s by which a rate may miss its quota */
    PS_RESTRAINT_COARSE = 75,    /* percent: below, steps are as long as the rate is off, */
    PS_RESTRAINT_FINE = 90,      /* then of 5, from here on of 2 percent, */
    PS_RESTRAINT_MOST = 99,      /* up to here */
};

/*
 * The dirty restraint, the dirty limit's first version: the percentage of the time that a vCPU
 * sleeps, from 0 to 99. quota and current are rates in MiB/s. last is the last percentage that was
 * not 0; 0 where there was none.
 */
int ps_restraint_first(uint64_t quota, uint64_t current);
int ps_restraint_next(uint64_t quota, uint64_t current, uint32_t last);

/*
 * What an aggression level has learned. All 0 at first, but for factor, which is 1; the sums may
 * begin with what was sent and dirtied before the first tick. Bytes are at most 10^18.
 */
struct ps_aggression {
    double break_even; /* M: at this share of the time the guest dirties as much as is sent */
    double factor;     /* lowers the target while progress is too little, 0.05 to 1 */
    double mean_ran_sent, mean_written; /* running averages of samples, in bytes */
    double mean_sent, mean_dirtied;     /* running averages of ticks after the first sample */
    double sum_sent, sum_dirtied;       /* bytes */
    int32_t sampled, judged; /* whether there has been a sample, and a tick after it: 0 or 1 */
};

struct ps_aggression_tick { /* 100 ms */
    double sent;            /* bytes */
    double written;         /* bytes of the pages that were written, sent already or not */
    double dirtied;         /* bytes of those that have to be sent because of it */
    double ran;             /* share of the tick that the vCPUs ran, 0 to 1 */
    int32_t idle;           /* 1: the sender had nothing to send, so `sent` says little; else 0 */
    int32_t averages;       /* 1: M is a ratio of averages; 0: an average of ratios, at most 1 */
};

/* At level 0 a steady guest dirties as much as is sent. Averages that one tick could turn over must
 * not count as progress then, or nothing is ever gained: they have to differ by its weight, 1 %. */
enum ps_aggression_passed { /* what has been sent is more than what was dirtied: */
                            PS_AGGRESSION_AVERAGES_PASS = 1, /* by running averages, by 1 % */
                            PS_AGGRESSION_SUMS_PASS = 2,     /* over the whole migration */
};

/*
 * Learn from a tick. level: 0 lets the guest have what it can have while something is still gained,
 * 1 nothing. target_ret is the share of the time for which the vCPUs are to run, 0 to 1.
 * Returns enum ps_aggression_passed, added up. Averages and factor are not touched before the first
 * sample has led to a target.
 */
int ps_aggression_tick(struct ps_aggression *state, const struct ps_aggression_tick *tick,
                       double level, double *target_ret);

/* ---- pages of a migration: migrate_send.c, migrate_receive.c ---- */

/*
 * The stream is a sequence of batches of pages and of messages, without gaps. Each begins with a
 * word of 8 bytes, the lowest byte first.
 *
 * A batch is its page records, one after the other, then the contents of its whole pages in the
 * order of their records. A record is
 *     word: flags in bits 0..7, PS_RECORD_*; in bits 8..23 the bytes of all the batch's records if
 *           this is its first one, else 0; in bits 24..63 the number of the page in its block
 *     if it has PS_RECORD_NAMED: 1 byte, the length of the block's name, and the name.
 *           The other records are of the block of the record before them, in the stream.
 *     if it has PS_RECORD_ZERO: 1 byte, 0.
 * So a receiver that has read a batch's records knows where its contents go, and they need no copy.
 *
 * A message is
 *     word: PS_RECORD_MESSAGE in bits 0..7; its kind in bits 8..23; in bits 24..63 the bytes of
 *           what follows
 *     what follows, which is Python's business.
 */
enum {
    PS_STREAM_PAGE = 4096,
    PS_BATCH_PAGES = 32,    /* whole pages, with which QEMU's buffer of 64 vectors is full */
    PS_BATCH_BYTES = 32768, /* of records or of messages, with which QEMU's other buffer is full */
    PS_BLOCK_NAME = 255,    /* bytes of a block's name at most */
};

enum ps_record {
    PS_RECORD_ZERO = 1,
    PS_RECORD_NAMED = 2,
    PS_RECORD_MESSAGE = 0x80,
};

/* The word that a message begins with. Pre: kind < 2^16, n_bytes < 2^40. */
uint64_t ps_message_word(uint16_t kind, uint64_t n_bytes);

/*
 * dirty |= taken, n words. Returns how many bits were not set before.
 */
uint64_t ps_mark_dirty(const uint64_t *taken, size_t n, uint64_t *dirty);

struct ps_sent_block {
    const char *name; /* 1 to PS_BLOCK_NAME bytes, no end mark: */
    size_t name_bytes;
    const void *address; /* n_pages of PS_STREAM_PAGE bytes, at most 2^40 */
    uint64_t n_pages;
    uint64_t *dirty; /* page n is bit n % 64 of word n / 64 */
    int fd;          /* what is mapped there from offset 0; -1: memory in which reading a hole costs
                        nothing */
};

struct ps_page_sender {
    int fd;              /* a blocking socket */
    uint64_t link_speed; /* bytes/s that the link carries; 0: whatever the socket takes */
    const struct ps_sent_block *blocks;
    size_t n_blocks;
    /* figures, which other threads may read */
    uint64_t used;        /* bytes flushed since the caller set it to 0 */
    uint64_t transferred; /* bytes flushed */
    uint64_t ram_bytes;   /* of pages, with their records, flushed or not */
    uint64_t normal;      /* pages sent whole */
    uint64_t duplicate;   /* zero pages */
    uint64_t pending;     /* dirty pages, by the caller's count; each page sent is one less */
    /* state */
    size_t block; /* where the scan goes on: in this block */
    uint64_t page;
    size_t named_block;    /* 1 + the one that the last record was of; 0: there was none */
    uint64_t link_free_ns; /* when the link will have carried all, */
    uint64_t overslept_ns; /* and how long after that the last wait for it ended */
    size_t n_contents;     /* whole pages of the open batch, */
    const void *contents[PS_BATCH_PAGES]; /* and where they are */
    int is_batch;                         /* what is in `small` are records, not messages */
    size_t n_small;
    uint8_t small[PS_BATCH_BYTES];
};

enum ps_send_end {
    PS_SEND_LIMIT, /* more than the limit has been used */
    PS_SEND_CLEAN, /* no page is dirty */
    PS_SEND_TIME,  /* it is late enough */
};

/*
 * Send dirty pages from where the last call stopped, over all blocks and round again. Before each
 * page: until more than `limit` bytes are used (0: no limit); or until none is dirty. After each 64
 * pages: until CLOCK_MONOTONIC is until_ns or later. A page's bit is cleared, then the page is
 * read; zero pages are recognized then. A batch may stay open; see ps_sender_flush().
 *
 * A hole of a block with an fd is not filled: only pages that are in memory are read by their
 * address, others by pread().
 *
 * Returns enum ps_send_end, or -errno of sendmsg() and pread(): -EPIPE or -ECONNRESET: the other
 * side has gone, or somebody has shut the socket down; -EFAULT: memory cannot be read.
 */
int ps_sender_send(struct ps_page_sender *sender, uint64_t limit, uint64_t until_ns);

/* Append messages, whole or in parts; the open batch ends. Returns 0 or -errno as above. */
int ps_sender_put(struct ps_page_sender *sender, const void *data, size_t n);

/*
 * Give all that is not sent yet to the socket. Then wait until the link has carried it, or the
 * socket is shut down. Returns 0 or -errno as above.
 */
int ps_sender_flush(struct ps_page_sender *sender);

struct ps_received_block {
    const char *name;
    size_t name_bytes;
    void *address; /* n_pages of PS_STREAM_PAGE bytes, all zero at first */
    uint64_t n_pages;
    uint64_t *received; /* bits of the pages that may be other than zero; all clear at first */
};

enum ps_stream_fault {                     /* what is wrong with a stream after -EBADMSG */
                       PS_FAULT_START,     /* it does not begin with a message */
                       PS_FAULT_WORD,      /* a word that is none; fault_value has it */
                       PS_FAULT_LENGTH,    /* so many bytes of records cannot be, or do not fit */
                       PS_FAULT_NAME,      /* no block has the name; it is in `records` */
                       PS_FAULT_UNNAMED,   /* the first page names no block */
                       PS_FAULT_PAGE,      /* the block has no such page */
                       PS_FAULT_FILLER,    /* a zero page is followed by another byte than 0 */
                       PS_FAULT_MANY,      /* more than PS_BATCH_PAGES whole pages in a batch */
                       PS_FAULT_TRUNCATED, /* it ends inside of a batch or a message */
};

struct ps_page_receiver {
    int fd;
    const struct ps_received_block *blocks;
    size_t n_blocks;
    uint64_t normal;    /* whole pages received, which other threads may read */
    uint64_t duplicate; /* zero pages received */
    /* state */
    int begun;
    size_t block;  /* 1 + that of the last record; 0: there was none */
    size_t n_next; /* bytes of the next word that are here already: */
    uint8_t next[8];
    int fault; /* enum ps_stream_fault, and what it is about: */
    uint64_t fault_value;
    size_t fault_name_at; /* in records */
    size_t fault_name_bytes;
    uint8_t records[PS_BATCH_BYTES];
};

/*
 * Receive and place pages until a message comes. Contents go into the blocks by recvmsg(). A zero
 * page is cleared where one with content has been received; elsewhere nothing is written.
 *
 * Returns 1: a message has come, and its bytes are to be read by ps_receiver_read(); 0: the stream
 * has ended between two messages or batches; -EBADMSG: see enum ps_stream_fault; or -errno of
 * recvmsg(); -EFAULT: a page cannot be written, as there is no memory for it, for example.
 */
int ps_receiver_receive(struct ps_page_receiver *receiver, uint16_t *kind_ret,
                        uint64_t *n_bytes_ret);

/* Read n bytes of a message. Returns 0 or -errno as above. */
int ps_receiver_read(struct ps_page_receiver *receiver, void *buffer_ret, size_t n);

/* cdef: end */

#endif
