/* SPDX-License-Identifier: MIT */
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>

#include "pysampler.h"

int ps_find_zlib(ps_crc32_fn *crc32_ret, const char **version_ret)
{
    void *zlib = dlopen("libz.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!zlib)
        return -ENOENT;
    ps_crc32_fn crc32 = (ps_crc32_fn)dlsym(zlib, "crc32");
    const char *(*version)(void) = (const char *(*)(void))dlsym(zlib, "zlibVersion");
    if (!crc32 || !version)
        return -ENOENT;
    *crc32_ret = crc32;
    *version_ret = version();
    return 0;
}
