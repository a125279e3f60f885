/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "pysampler.h"
#include "random.h"

enum { PAGE = PS_GUEST_PAGE_SIZE, WORDS = PAGE / 8 };

void ps_fill(void *base, uint64_t vfn, uint64_t n_pages, uint64_t seed, int text_pages,
             const void *text, uint64_t text_bytes)
{
    uint64_t *page = base;

    for (uint64_t i = 0; i < n_pages; i++, page += WORDS) {
        const uint64_t random = ps_random(seed, vfn + i);
        if ((int)(random & 255) < text_pages) {
            memcpy(page, (const char *)text + (random >> 8) % (text_bytes - PAGE), PAGE);
            continue;
        }
        for (uint64_t word = 0; word < WORDS; word++)
            page[word] = ps_random(random, word);
    }
}
