/* A JPEG's bytes to resized crops, in one go: only what the crops show is transformed back to pixels. */
#ifndef VITSCALE_CROP_H
#define VITSCALE_CROP_H

#include <stddef.h>
#include <stdint.h>

typedef struct workspace workspace;     /* memory that is used again; for one call at a time */

typedef struct {
    int top, left, height, width;       /* the box that is resized, in pixels of the whole image: at 1 / scale it may cut pixels */
    int to_height, to_width;            /* what it is resized to */
    int from_row, from_column;          /* the part of that which is wanted, */
    int rows, columns;                  /* and so many */
    uint8_t *out;                       /* (rows, columns, channels) */
} cut;

typedef struct {
    const uint8_t *data;
    size_t size;
    int channels;                       /* 3: RGB, 1: grey */
    int scale;                          /* the image is decoded at 1 / scale: 1, 2, 4, 8 */
    const cut *cuts;
    int num_cuts;                       /* at least 1 */
    int whole;                          /* read the coded data to its end, to see that all of it is sound */
    uint32_t *marks;                    /* NULL, or as in entropy.h: written if whole, else read */
    int num_marks;
} request;

workspace *workspace_new(void);
void workspace_free(workspace *self);

/* NULL, or why this image is not taken: some kinds never are, damage never is.  Then no `out` holds anything of use. */
const char *crop(workspace *self, const request *asked);

#endif
