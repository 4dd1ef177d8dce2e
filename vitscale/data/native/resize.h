/* Antialiased bicubic resizing of bytes: PIL's filter (a = -0.5, widened where the image shrinks), 16-bit weights as in torch's uint8
 * kernels, to whose last bit it is equal.  First along rows, then along columns; each pass rounds to bytes. */
#ifndef VITSCALE_RESIZE_H
#define VITSCALE_RESIZE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {            /* of one axis */
    int size;               /* outputs, of the window that is wanted */
    int taps;               /* weights of each output: a multiple of 4, zero beyond `count` */
    int precision;          /* weights are multiples of 2^-precision */
    int low, high;          /* inputs that matter: [low, high) */
    int *start;             /* first input of each output */
    int16_t *weights;       /* (size, taps) */
    size_t capacity;        /* bytes behind start and weights */
    void *memory;
    double *scratch;
    size_t scratch_capacity;
} axis;

/* From the stretch [offset, offset + extent) of `input` values to `output` of them, the outputs [first, first + size).  Inputs that the
 * stretch only cuts count whole.  most_bits: of the precision, 22 at most; with 15 every sum is a whole number that a float holds exactly.
 * 0: no memory. */
int axis_make(axis *self, int input, double offset, double extent, int output, int first, int size, int most_bits);

void axis_free(axis *self);

/* Two rows at once, of pixels of `channels` (1 or 4) bytes: each `to` gets `size` pixels.  `from` points at input 0 of the axis; `taps`
 * pixels must be readable from each `start` on. */
void along_rows(const axis *self, int channels, const uint8_t *from[2], uint8_t *to[2]);

/* One output row: `from` + start * stride is its first input row, `bytes` of each are taken. */
void along_columns(const axis *self, int output, const uint8_t *from, size_t stride, size_t bytes, uint8_t *to);

/* Pixels of four bytes to pixels of their first three. */
void three_of_four(const uint8_t *from, int pixels, uint8_t *to);

/* "AVX2" or "C": what runs on this processor. */
const char *instructions(void);

#endif
