/* SPDX-License-Identifier: MIT */
/* What the ring server needs of userfaultfd beside pysampler.h. */
#ifndef PYSAMPLER_USERFAULTFD_H
#define PYSAMPLER_USERFAULTFD_H

#include "pysampler.h"

/* UFFDIO_WRITEPROTECT with a mode: protect (UFFDIO_WRITEPROTECT_MODE_WP) or release (0). Returns 0
 * or -errno; -ENOENT: it is not registered. */
int ps_uffd_write_protect(int uffd, uint64_t address, uint64_t length, uint64_t mode);

#endif
