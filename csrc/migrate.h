/* SPDX-License-Identifier: MIT */
/* The words of a migration's stream, as pysampler.h describes them, made and taken apart. */
#ifndef PYSAMPLER_MIGRATE_H
#define PYSAMPLER_MIGRATE_H

#include <endian.h>
#include <string.h>

#include "pysampler.h"

enum { WORD_BYTES = 8 };

static inline uint64_t word_of(uint8_t flags, uint16_t middle, uint64_t upper)
{
    return upper << 24 | (uint64_t)middle << 8 | flags;
}

static inline uint8_t flags_of(uint64_t word)
{
    return (uint8_t)word;
}

static inline uint16_t middle_of(uint64_t word)
{
    return (uint16_t)(word >> 8);
}

static inline uint64_t upper_of(uint64_t word)
{
    return word >> 24;
}

static inline void put_word(uint8_t *bytes_ret, uint64_t word)
{
    const uint64_t little = htole64(word);
    memcpy(bytes_ret, &little, WORD_BYTES);
}

static inline uint64_t get_word(const uint8_t *bytes)
{
    uint64_t little;
    memcpy(&little, bytes, WORD_BYTES);
    return le64toh(little);
}

#endif
