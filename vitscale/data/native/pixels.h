/* The operations of pixels.py on one image after the other, in whole numbers and single precision just where those are: the same bytes. */
#ifndef VITSCALE_PIXELS_H
#define VITSCALE_PIXELS_H

#include <stdint.h>

#define PARAMETERS 6                    /* numbers that an operation is given */

typedef struct {
    int count, height, width, channels; /* channels: 1 or 3 */
    const uint8_t *images;              /* (count, height, width, channels) */
    const uint8_t *flip;                /* (count,) mirror it first where it is not 0; or NULL */
    const int64_t *first;               /* (count + 1,) an image's operations are [first, next first) */
    const int64_t *codes;               /* 0 to num_operations - 1 */
    const double *parameters;           /* (operations, PARAMETERS) */
    const uint8_t *fill;                /* (channels,) what comes from outside an image */
    const float *table;                 /* (channels, 256) what each byte becomes at last */
    float *out;                         /* (count, channels, height, width) */
} batch;

extern const int num_operations;

const char *operation_name(int code);

/* 0: no memory. */
int augment(const batch *asked);

#endif
