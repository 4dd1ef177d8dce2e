/* See entropy.h. */
#include "entropy.h"

#include <stdlib.h>
#include <string.h>

#include <jerror.h>

/* An entry of a table, from its lowest bits:
 *   DC     5 bits of length, 5 of size.  Length 0: the code is longer than LOOK.
 *   store  5 bits of length, 1 TAKEN, 1 END, 1 unused, 4 of zeros before it, 4 of size, 16 of value.  TAKEN: the value is part of it; else
 *          `length` is that of the code, and `size` bits follow.  Length 0: longer than LOOK.
 *   skip   5 bits of length and 8 of steps of all codes that are seen whole, 6 of steps before the last of them, then 5 of length and 8 of
 *          steps of the first alone; a step is a coefficient, an end of block counts ENDED.  0: longer. */
#define TAKEN 32u
#define END 64u
#define ENDED 128

#ifndef SPARE
#define SPARE 4096                  /* readable bytes beyond the data: an MCU has at most 10 x 64 codes of 31 bits */
#endif

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

static const uint8_t natural[64 + 16] = {     /* zigzag -> row by row; beyond the end: the last */
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
};

/* The value of `size` bits (F.2.2.1, EXTEND); size 0: 0. */
static inline int32_t extended(uint32_t bits, int size)
{
    return size && bits < 1u << (size - 1) ? (int32_t)bits - (1 << size) + 1 : (int32_t)bits;
}

static void build(huffman_table *table, j_decompress_ptr cinfo, const JHUFF_TBL *given, int dc)
{
    if (given == NULL)
        refuse(cinfo, "a Huffman table is missing");
    if (table->ready && table->dc == dc && !memcmp(table->bits + 1, given->bits + 1, 16) && !memcmp(table->symbols, given->huffval, 256))
        return;
    table->ready = 0;
    memcpy(table->bits, given->bits, 17);
    memcpy(table->symbols, given->huffval, 256);
    memset(table->store, 0, sizeof table->store);
    memset(table->skip, 0, sizeof table->skip);

    uint8_t length_of[1 << LOOK], symbol_of[1 << LOOK];         /* by the first LOOK bits; length 0: a longer code, or none */
    memset(length_of, 0, sizeof length_of);
    int32_t code = 0, number = 0;
    for (int length = 1; length <= 16; length++) {              /* C.2 */
        table->offset[length] = number - code;
        for (int left = given->bits[length]; left > 0; left--, code++, number++) {
            if (number > 255 || code >= 1 << length)
                refuse(cinfo, "a Huffman table has too many codes");
            int symbol = given->huffval[number];
            if (dc && symbol > 15)
                refuse(cinfo, "a Huffman table has a size that cannot be");
            if (length <= LOOK) {
                memset(length_of + (code << (LOOK - length)), length, (size_t)1 << (LOOK - length));
                memset(symbol_of + (code << (LOOK - length)), symbol, (size_t)1 << (LOOK - length));
            }
        }
        table->last[length] = given->bits[length] ? code << (16 - length) : 0;
        code <<= 1;
    }

    for (uint32_t bits = 0; bits < 1 << LOOK; bits++) {
        int length = length_of[bits], symbol = symbol_of[bits], zeros = symbol >> 4, size = symbol & 15;
        if (length == 0)                    /* longer than LOOK, or none */
            continue;
        if (dc) {
            table->store[bits] = (uint32_t)length | (uint32_t)symbol << 5;
            continue;
        }
        int ends = size == 0 && zeros < 15, whole = length + size;
        int steps = ends ? ENDED : zeros + 1, before = 0;
        uint32_t first = (uint32_t)whole << 19 | (uint32_t)steps << 24;
        int taken = whole, next;
        for (uint32_t rest = bits; steps < 63 && taken < LOOK; before = next) {        /* as many more as are seen whole */
            rest = bits << taken & ((1 << LOOK) - 1);
            int symbol_then = symbol_of[rest], then = length_of[rest];
            if (then == 0 || then > LOOK - taken)
                break;
            next = steps;
            steps += (symbol_then & 15) == 0 && symbol_then >> 4 < 15 ? ENDED : (symbol_then >> 4) + 1;
            taken += then + (symbol_then & 15);
        }
        table->skip[bits] = (uint32_t)taken | (uint32_t)steps << 5 | (uint32_t)before << 13 | first;
        if (ends)
            table->store[bits] = (uint32_t)length | END;
        else if (whole <= LOOK) {
            int32_t value = extended(bits >> (LOOK - whole) & ((1u << size) - 1), size);
            table->store[bits] = (uint32_t)whole | TAKEN | (uint32_t)zeros << 8 | (uint32_t)(uint16_t)value << 16;
        } else
            table->store[bits] = (uint32_t)length | (uint32_t)zeros << 8 | (uint32_t)size << 12;
    }
    table->dc = dc;
    table->ready = 1;
}

/* Copy the coded data without its stuffed zeros (B.1.1.5), and note where the restart markers stood. */
static void unstuff(entropy *state, j_decompress_ptr cinfo)
{
    const uint8_t *from = cinfo->src->next_input_byte, *end = from + cinfo->src->bytes_in_buffer;
    size_t stretches = cinfo->restart_interval ? (state->num_mcus + cinfo->restart_interval - 1) / cinfo->restart_interval : 1;
    size_t room = (size_t)(end - from) + SPARE;
    if (state->capacity < room) {
        free(state->bytes);
        state->capacity = 0;
        state->bytes = malloc(room);
        if (state->bytes == NULL)
            refuse(cinfo, "no memory");
        state->capacity = room;
    }
    if (state->ends_capacity < stretches) {
        free(state->ends);
        state->ends_capacity = 0;
        state->ends = malloc(stretches * sizeof *state->ends);
        if (state->ends == NULL)
            refuse(cinfo, "no memory");
        state->ends_capacity = stretches;
    }
    uint8_t *to = state->bytes;
    state->num_stretches = 0;
    for (;;) {
        const uint8_t *mark = memchr(from, 0xFF, (size_t)(end - from));
        if (mark == NULL || mark + 1 >= end)
            refuse(cinfo, "the coded data has no end");
        size_t count = (size_t)(mark - from);
        memcpy(to, from, count);
        to += count;
        from = mark + 2;
        if (mark[1] == 0)
            *to++ = 0xFF;
        else if (mark[1] == 0xD0 + (int)(state->num_stretches & 7) && state->num_stretches + 1 < stretches)
            state->ends[state->num_stretches++] = (size_t)(to - state->bytes);
        else if (mark[1] == JPEG_EOI && state->num_stretches + 1 == stretches)
            break;
        else
            refuse(cinfo, "a marker stands where none should");
    }
    state->ends[state->num_stretches++] = (size_t)(to - state->bytes);
    memset(to, 0, SPARE);
}

void entropy_begin(entropy *state, j_decompress_ptr cinfo)
{
    state->per_row = cinfo->MCUs_per_row;
    state->num_mcus = cinfo->MCUs_per_row * cinfo->MCU_rows_in_scan;
    for (int number = 0; number < cinfo->comps_in_scan; number++) {
        const jpeg_component_info *part = cinfo->cur_comp_info[number];
        if ((unsigned)part->dc_tbl_no >= NUM_HUFF_TBLS || (unsigned)part->ac_tbl_no >= NUM_HUFF_TBLS)
            refuse(cinfo, "a table that cannot be");
        build(&state->tables[0][part->dc_tbl_no], cinfo, cinfo->dc_huff_tbl_ptrs[part->dc_tbl_no], 1);
        build(&state->tables[1][part->ac_tbl_no], cinfo, cinfo->ac_huff_tbl_ptrs[part->ac_tbl_no], 0);
    }
    unstuff(state, cinfo);
    state->at = state->bytes;
    state->buffer = 0;
    state->valid = 0;
    state->stretch = 0;
    memset(state->dc, 0, sizeof state->dc);
    state->mcu = state->column = 0;
    state->until_restart = cinfo->restart_interval;
    state->first = 0;
    state->beyond = state->per_row;
    state->marks = NULL;
    state->landing = state->jumping = 0;
}

static unsigned row_of(const entropy *state, unsigned mark, unsigned count)
{
    return (unsigned)((uint64_t)(mark + 1) * (state->num_mcus / state->per_row) / (count + 1));
}

void entropy_mark(entropy *state, j_decompress_ptr cinfo, uint32_t *marks, unsigned count)
{
    memset(marks, 0, count * MARK * sizeof *marks);
    if (cinfo->restart_interval || state->ends[0] > UINT32_MAX / 8)
        return;
    state->marks = marks;
    state->num_marks = count;
    state->next_mark = 0;
}

void entropy_jump(entropy *state, j_decompress_ptr cinfo, const uint32_t *marks, unsigned count, unsigned rows)
{
    if (cinfo->restart_interval)
        return;
    for (unsigned mark = count; mark > 0; mark--) {
        const uint32_t *one = marks + (mark - 1) * MARK;
        unsigned row = row_of(state, mark - 1, count);
        if (row > 0 && row <= rows && one[0] != 0 && one[0] / 8 < state->ends[0]) {
            state->way_in = one;
            state->landing = row * state->per_row;
            return;
        }
    }
}

/* Before a row of MCUs. */
static void write_marks(entropy *state)
{
    unsigned row = state->mcu / state->per_row;
    for (; state->next_mark < state->num_marks; state->next_mark++) {
        unsigned wanted = row_of(state, state->next_mark, state->num_marks);
        if (wanted > row)
            return;
        uint32_t *mark = state->marks + state->next_mark * MARK;
        if (wanted == row && row > 0) {
            mark[0] = (uint32_t)((state->at - state->bytes) * 8 - state->valid);
            mark[1] = (state->dc[0] & 0xFFFF) | state->dc[1] << 16;
            mark[2] = state->dc[2] & 0xFFFF;
        }
    }
}

/* Stand where the mark says. */
static void land(entropy *state)
{
    const uint32_t *mark = state->way_in;
    state->at = state->bytes + mark[0] / 8;
    state->valid = 0;
    state->buffer = 0;
    if (mark[0] % 8) {
        state->buffer = (uint64_t)*state->at++ << (56 + mark[0] % 8);
        state->valid = 8 - (int)(mark[0] % 8);
    }
    state->dc[0] = (uint32_t)(int16_t)mark[1];
    state->dc[1] = (uint32_t)(int16_t)(mark[1] >> 16);
    state->dc[2] = (uint32_t)(int16_t)mark[2];
    state->landing = state->jumping = 0;
}

/* How many bits of the stretch were taken, against how many there are: up to seven of padding may be left. */
static void end_stretch(entropy *state, j_decompress_ptr cinfo)
{
    int64_t left = (int64_t)(state->bytes + state->ends[state->stretch] - state->at) * 8 + state->valid;
    if (left < 0 || left > 7)
        refuse(cinfo, "the coded data does not end with the image");
}

static void restart(entropy *state, j_decompress_ptr cinfo)
{
    end_stretch(state, cinfo);
    state->at = state->bytes + state->ends[state->stretch++];
    state->buffer = 0;
    state->valid = 0;
    memset(state->dc, 0, sizeof state->dc);
    state->until_restart = cinfo->restart_interval;
}

/* The bits in hand.  Eight bytes are loaded at once; after it at least 56 bits are valid. */
#define REFILL() \
    do { \
        uint64_t next_; \
        memcpy(&next_, at, 8); \
        buffer |= big_endian(next_) >> valid; \
        at += (63 - valid) >> 3; \
        valid |= 56; \
    } while (0)

#define DROP(count) (buffer <<= (count), valid -= (count))

/* A code whose value its entry holds. */
#define TAKE() \
    do { \
        DROP(entry & 31); \
        k += entry >> 8 & 15; \
        block[natural[k++]] = (JCOEF)(entry >> 16); \
    } while (0)

/* All codes that are seen whole; but those after the first may be the next block's. */
#define PASS() \
    do { \
        if (k + (int)(entry >> 13 & 63) >= 64) \
            entry = (entry >> 19 & 31) | entry >> 24 << 5; \
        k += (int)(entry >> 5 & 255); \
        DROP(entry & 31); \
    } while (0)

static inline uint64_t big_endian(uint64_t word)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return __builtin_bswap64(word);
#else
    return word;
#endif
}

/* The symbol of a code longer than LOOK bits, and its length; refuses what is no code. */
static int long_code(const huffman_table *table, j_decompress_ptr cinfo, uint64_t buffer, int *length)
{
    int32_t bits = (int32_t)(buffer >> 48);
    for (int size = LOOK + 1; size <= 16; size++)
        if (bits < table->last[size]) {
            *length = size;
            return table->symbols[(bits >> (16 - size)) + table->offset[size]];
        }
    refuse(cinfo, "a code that is none");
}

static inline __attribute__((always_inline)) void decode_mcu(entropy *state, j_decompress_ptr cinfo, JBLOCKROW *blocks)
{
    if (cinfo->restart_interval) {
        if (state->until_restart == 0)
            restart(state, cinfo);
        state->until_restart--;
    }
    if (unlikely(state->landing)) {
        if (blocks == NULL)
            state->jumping = 1;
        else if (state->jumping)
            refuse(cinfo, "a row is wanted that was passed over");
        if (state->jumping) {
            if (++state->mcu == state->landing)
                land(state);
            return;             /* whole rows: the column stays 0 */
        }
    }
    if (unlikely(state->marks != NULL && state->column == 0))
        write_marks(state);
    if (state->column < state->first || state->column >= state->beyond)
        blocks = NULL;
    if (++state->column == state->per_row)
        state->column = 0;
    state->mcu++;

    const uint8_t *at = state->at;
    uint64_t buffer = state->buffer;
    int valid = state->valid;
    for (int number = 0; number < cinfo->blocks_in_MCU; number++) {
        int member = cinfo->MCU_membership[number];
        const jpeg_component_info *part = cinfo->cur_comp_info[member];
        const huffman_table *table = &state->tables[0][part->dc_tbl_no];
        REFILL();
        uint32_t entry = table->store[buffer >> (64 - LOOK)];
        int length = entry & 31, size = entry >> 5;
        if (unlikely(length == 0))
            size = long_code(table, cinfo, buffer, &length);
        DROP(length);
        if (size) {
            state->dc[member] += (uint32_t)extended((uint32_t)(buffer >> (64 - size)), size);
            DROP(size);
        }
        int32_t value = (int32_t)state->dc[member];
        if (unlikely(value != (int16_t)value))
            refuse(cinfo, "a brightness that cannot be");

        table = &state->tables[1][part->ac_tbl_no];
        int k = 1;
        if (blocks == NULL) {
            for (;;) {
                REFILL();                           /* for two lookups */
                entry = table->skip[buffer >> (64 - LOOK)];
                if (unlikely(entry == 0)) {
                    int symbol = long_code(table, cinfo, buffer, &length);
                    k += (symbol & 15) == 0 && symbol >> 4 < 15 ? ENDED : (symbol >> 4) + 1;
                    length += symbol & 15;
                    DROP(length);
                    if (k >= 64)
                        break;
                    continue;
                }
                PASS();
                if (k >= 64)
                    break;
                entry = table->skip[buffer >> (64 - LOOK)];
                if (likely(entry)) {
                    PASS();
                    if (k >= 64)
                        break;
                }
            }
            if (unlikely(k > 64 && k < 1 + ENDED))
                refuse(cinfo, "a block of more than 64 values");
            continue;
        }

        JCOEF *block = (*blocks[number]);
        block[0] = (JCOEF)value;
        for (;;) {
            REFILL();                               /* for two codes of LOOK bits and a third of any length */
            entry = table->store[buffer >> (64 - LOOK)];
            if (likely(entry & TAKEN)) {
                TAKE();
                if (k >= 64)
                    break;
                entry = table->store[buffer >> (64 - LOOK)];
                if (likely(entry & TAKEN)) {
                    TAKE();
                    if (k >= 64)
                        break;
                    entry = table->store[buffer >> (64 - LOOK)];
                    if (likely(entry & TAKEN)) {
                        TAKE();
                        if (k >= 64)
                            break;
                        continue;
                    }
                }
            }
            if (likely(entry & END)) {
                DROP(entry & 31);
                break;
            }
            int zeros = entry >> 8 & 15;
            length = entry & 31, size = entry >> 12 & 15;
            if (unlikely(length == 0)) {
                int symbol = long_code(table, cinfo, buffer, &length);
                zeros = symbol >> 4, size = symbol & 15;
                if (size == 0 && zeros < 15) {
                    DROP(length);
                    break;
                }
            }
            DROP(length);
            k += zeros;
            if (size) {
                block[natural[k]] = (JCOEF)extended((uint32_t)(buffer >> (64 - size)), size);
                DROP(size);
            }
            if (++k >= 64)
                break;
        }
        if (unlikely(k > 64))
            refuse(cinfo, "a block of more than 64 values");
    }
    state->at = at;
    state->buffer = buffer;
    state->valid = valid;
    if (unlikely((state->bytes + state->ends[state->stretch] - at) * 8 + valid < 0))
        refuse(cinfo, "the coded data ends before the image");
}

#if defined(__x86_64__) && defined(__GNUC__)
/* Shifts that leave the flags alone: a tenth less time. */
__attribute__((target("bmi,bmi2")))
static void decode_mcu_bmi2(entropy *state, j_decompress_ptr cinfo, JBLOCKROW *blocks)
{
    decode_mcu(state, cinfo, blocks);
}
#endif

void entropy_mcu(entropy *state, j_decompress_ptr cinfo, JBLOCKROW *blocks)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("bmi2")) {
        decode_mcu_bmi2(state, cinfo, blocks);
        return;
    }
#endif
    decode_mcu(state, cinfo, blocks);
}

void entropy_finish(entropy *state, j_decompress_ptr cinfo)
{
    while (state->mcu < state->num_mcus)
        entropy_mcu(state, cinfo, NULL);
    end_stretch(state, cinfo);
}

void entropy_free(entropy *state)
{
    free(state->bytes);
    free(state->ends);
}
