/* Huffman decoding of a baseline or extended sequential scan (ITU T.81, annex F), in place of libjpeg's own.
 *
 * libjpeg's decoder gives no warning of most bad codes, and stores every coefficient.  This one takes a scan only if it is well formed to
 * its last bit, and stores only what is looked at: blocks outside a crop are parsed, several codes at a lookup. */
#ifndef VITSCALE_ENTROPY_H
#define VITSCALE_ENTROPY_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>

#define LOOK 11                     /* bits that a lookup sees */

typedef struct {                    /* of one Huffman table; rebuilt only when the image's differs from the one before */
    int ready, dc;
    UINT8 bits[17], symbols[256];
    uint32_t store[1 << LOOK];      /* codes with their values (AC), or with their sizes (DC) */
    uint32_t skip[1 << LOOK];       /* AC: one code or two, to be passed over */
    int32_t last[18];               /* largest code of each length, left-aligned to 16 bits, + 1; 0 if there is none so long */
    int32_t offset[17];             /* from a code of that length to its symbol */
} huffman_table;

typedef struct {
    huffman_table tables[2][4];     /* DC, AC */
    uint8_t *bytes;                 /* the coded data without stuffing and markers, the stretches between restarts one after the other */
    size_t capacity;
    size_t *ends;                   /* where each stretch ends */
    size_t num_stretches, ends_capacity;

    const uint8_t *at;              /* the next byte to be taken into `buffer` */
    uint64_t buffer;                /* its `valid` upper bits come next */
    int valid;
    size_t stretch;
    uint32_t dc[3];                 /* last value of each component */
    unsigned mcu, column, until_restart;
    unsigned num_mcus, per_row, first, beyond;      /* columns of MCUs that are looked at: [first, beyond) */

    uint32_t *marks;                /* to be written; NULL: none are */
    unsigned num_marks, next_mark;
    const uint32_t *way_in;         /* the mark that is jumped to, at MCU `landing`; 0: none */
    unsigned landing, jumping;
} entropy;

/* A mark is how the decoder stands before a row of MCUs: from there the rest can be decoded without what comes before.  MARK words: the
 * place in `bytes`, in bits, 0 if there is no mark; the last values of the components, 16 bits each.  The i-th of n stands before row
 * (i + 1) rows / (n + 1). */
#define MARK 3

/* Prepare to decode the scan whose header libjpeg has just read; it starts at the source's next byte.  Needs jpeg_start_decompress().
 * All errors here and below leave by cinfo->err->error_exit(). */
void entropy_begin(entropy *state, j_decompress_ptr cinfo);

/* After entropy_begin(), for a scan without restarts (for others it does nothing): write marks while decoding, where there are any.  Or
 * read what such a decoding of the same data has written, and pass over as many of the first `rows` rows of MCUs as they allow at once;
 * none of these may then be asked for with blocks. */
void entropy_mark(entropy *state, j_decompress_ptr cinfo, uint32_t *marks, unsigned count);
void entropy_jump(entropy *state, j_decompress_ptr cinfo, const uint32_t *marks, unsigned count, unsigned rows);

/* The next MCU; blocks NULL: pass over it. */
void entropy_mcu(entropy *state, j_decompress_ptr cinfo, JBLOCKROW *blocks);

/* Pass over all that is left, and see that it ends where the image does. */
void entropy_finish(entropy *state, j_decompress_ptr cinfo);

void entropy_free(entropy *state);

_Noreturn void refuse(j_decompress_ptr cinfo, const char *why);

#endif
