/* See crop.h. */
#include "crop.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "entropy.h"
#include "resize.h"

#include <jerror.h>
#define JPEG_INTERNALS
#include <jpegint.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "this is not libjpeg-turbo"
#endif

/* Columns more than the crop on each side: the interpolation of colours treats the first and the last one apart, and narrow images too. */
#define MARGIN 16
#define MOST_OUTPUTS 65536

struct workspace {
    struct jpeg_decompress_struct cinfo;
    struct jpeg_error_mgr errors;
    jmp_buf way_out;
    char why[JMSG_LENGTH_MAX];
    entropy coded;
    axis along, across;
    uint8_t *memory;
    size_t capacity;
};

/* cinfo is the first member */
static workspace *of(j_common_ptr cinfo)
{
    return (workspace *)cinfo;
}

static void leave(j_common_ptr cinfo)
{
    workspace *self = of(cinfo);
    (*cinfo->err->format_message)(cinfo, self->why);
    longjmp(self->way_out, 1);
}

/* Whatever libjpeg warns of is an error. */
static void strict_message(j_common_ptr cinfo, int level)
{
    if (level < 0)
        leave(cinfo);
}

_Noreturn void refuse(j_decompress_ptr cinfo, const char *why)
{
    workspace *self = of((j_common_ptr)cinfo);
    strncpy(self->why, why, sizeof self->why - 1);
    longjmp(self->way_out, 1);
}

static boolean next_mcu(j_decompress_ptr cinfo, JBLOCKROW *blocks)
{
    entropy_mcu(&of((j_common_ptr)cinfo)->coded, cinfo, blocks);
    return TRUE;
}

workspace *workspace_new(void)
{
    return calloc(1, sizeof(workspace));
}

void workspace_free(workspace *self)
{
    entropy_free(&self->coded);
    axis_free(&self->along);
    axis_free(&self->across);
    free(self->memory);
    free(self);
}

static void check_kind(j_decompress_ptr cinfo, int channels)
{
    if (cinfo->progressive_mode || cinfo->arith_code || cinfo->data_precision != 8)
        refuse(cinfo, "coded in another way");
#if LIBJPEG_TURBO_VERSION_NUMBER >= 3000000
    if (cinfo->master->lossless)        /* has no blocks, and no Huffman tables of theirs */
        refuse(cinfo, "coded without loss");
#endif
    if (cinfo->comps_in_scan != cinfo->num_components || (cinfo->num_components != 1 && cinfo->num_components != 3))
        refuse(cinfo, "components in several scans, or neither one nor three");
    if (cinfo->jpeg_color_space != JCS_YCbCr && cinfo->jpeg_color_space != JCS_GRAYSCALE &&
        !(cinfo->jpeg_color_space == JCS_RGB && channels == 3))
        refuse(cinfo, "another colour space");
}

/* Memory for two decoded rows and for all rows resized along their length. */
static void reserve(workspace *self, size_t bytes)
{
    if (self->capacity >= bytes)
        return;
    free(self->memory);
    self->capacity = 0;
    self->memory = NULL;
    if (posix_memalign((void **)&self->memory, 64, bytes))
        refuse(&self->cinfo, "no memory");
    self->capacity = bytes;
}

/* Decode the rows that matter, and resize them along their length, two at a time.  length: bytes of each of the two. */
static void read_rows(workspace *self, const request *asked, int channels, size_t length, uint8_t *resized, size_t stride)
{
    j_decompress_ptr cinfo = &self->cinfo;
    JDIMENSION start = (JDIMENSION)(asked->left + self->along.low), end = (JDIMENSION)(asked->left + self->along.high);
    start = start > MARGIN ? start - MARGIN : 0;
    end = end + MARGIN < cinfo->output_width ? end + MARGIN : cinfo->output_width;
    JDIMENSION width = end - start;
    if (width < cinfo->output_width)
        jpeg_crop_scanline(cinfo, &start, &width);      /* moves start down to where a block begins */
    self->coded.first = cinfo->master->first_iMCU_col;
    self->coded.beyond = cinfo->master->last_iMCU_col + 1;
    /* not aligned: else libjpeg-turbo's colour conversion writes past the caches, and reading what it wrote takes longer than all else here */
    uint8_t *rows[2] = {self->memory + 4, self->memory + length + 4};
    int first = asked->top + self->across.low, count = self->across.high - self->across.low;
    if (asked->marks && !asked->whole && first > 0) {   /* libjpeg passes over whole rows of MCUs, if need be but for one line above */
        unsigned lines = (unsigned)(cinfo->max_v_samp_factor * DCTSIZE / asked->scale);
        entropy_jump(&self->coded, cinfo, asked->marks, (unsigned)asked->num_marks, (unsigned)(first - 1) / lines);
    }
    if (first > 0 && jpeg_skip_scanlines(cinfo, (JDIMENSION)first) != (JDIMENSION)first)
        refuse(cinfo, "rows could not be skipped");
    const uint8_t *from[2] = {rows[0] - ((ptrdiff_t)start - asked->left) * channels, rows[1] - ((ptrdiff_t)start - asked->left) * channels};
    for (int row = 0; row < count; row += 2) {
        for (int one = 0; one < 2 && row + one < count; one++)
            if (jpeg_read_scanlines(cinfo, &rows[one], 1) != 1)
                refuse(cinfo, "a row is missing");
        uint8_t *to[2] = {resized + (size_t)row * stride, resized + (size_t)(row + 1) * stride};
        along_rows(&self->along, channels, from, to);
    }
}

static void work(workspace *self, const request *asked)
{
    j_decompress_ptr cinfo = &self->cinfo;
    jpeg_mem_src(cinfo, asked->data, (unsigned long)asked->size);
    jpeg_read_header(cinfo, TRUE);
    check_kind(cinfo, asked->channels);
    int channels = asked->channels == 3 ? 4 : 1;        /* four bytes a pixel: what vector instructions like */
    cinfo->out_color_space = channels == 4 ? JCS_EXT_RGBX : JCS_GRAYSCALE;
    cinfo->scale_num = 1;
    cinfo->scale_denom = (unsigned)asked->scale;
    cinfo->dct_method = JDCT_ISLOW;
    jpeg_start_decompress(cinfo);
    if (asked->top < 0 || asked->left < 0 || asked->height < 1 || asked->width < 1 || asked->rows < 1 || asked->columns < 1 ||
        asked->from_row < 0 || asked->from_column < 0 || asked->to_height > MOST_OUTPUTS || asked->to_width > MOST_OUTPUTS ||
        asked->height > (int)cinfo->image_height - asked->top || asked->width > (int)cinfo->image_width - asked->left ||
        asked->rows > asked->to_height - asked->from_row || asked->columns > asked->to_width - asked->from_column)
        refuse(cinfo, "the crop is not inside");
    entropy_begin(&self->coded, cinfo);
    cinfo->entropy->decode_mcu = next_mcu;
    if (asked->marks && asked->whole)
        entropy_mark(&self->coded, cinfo, asked->marks, (unsigned)asked->num_marks);
    request small = *asked;             /* its box in pixels of the image as decoded: those that it cuts are in it */
    small.top /= asked->scale;
    small.left /= asked->scale;
    small.height = (asked->top + asked->height + asked->scale - 1) / asked->scale - small.top;
    small.width = (asked->left + asked->width + asked->scale - 1) / asked->scale - small.left;
    double scale = asked->scale;
    int most_bits = asked->scale > 1 ? 15 : 22;
    if (!axis_make(&self->across, small.height, asked->top / scale - small.top, asked->height / scale, asked->to_height, asked->from_row,
                   asked->rows, most_bits) ||
        !axis_make(&self->along, small.width, asked->left / scale - small.left, asked->width / scale, asked->to_width, asked->from_column,
                   asked->columns, most_bits))
        refuse(cinfo, "no memory");

    /* beyond a row's last pixel the weights are zero, but they are multiplied */
    size_t length = ((size_t)cinfo->output_width + (size_t)self->along.taps + 16) * (size_t)channels + 4;
    length = (length + 63) & ~(size_t)63;
    size_t stride = ((size_t)asked->columns * (size_t)channels + 31) & ~(size_t)31;
    size_t count = (size_t)(self->across.high - self->across.low);
    reserve(self, 2 * length + (count + 2) * stride);
    uint8_t *resized = self->memory + 2 * length, *line = resized + (count + 1) * stride;
    read_rows(self, &small, channels, length, resized, stride);
    if (asked->whole)
        entropy_finish(&self->coded, cinfo);
    for (int row = 0; row < asked->rows; row++) {
        uint8_t *to = asked->out + (size_t)row * (size_t)asked->columns * (size_t)asked->channels;
        along_columns(&self->across, row, resized - (ptrdiff_t)self->across.low * (ptrdiff_t)stride, stride, stride, line);
        if (channels == 4)
            three_of_four(line, asked->columns, to);
        else
            memcpy(to, line, (size_t)asked->columns);
    }
}

const char *crop(workspace *self, const request *asked)
{
    /* libjpeg's own state is made anew: it would keep tables, and an image without any would be decoded with another's */
    memset(&self->cinfo, 0, sizeof self->cinfo);
    self->cinfo.err = jpeg_std_error(&self->errors);
    self->errors.error_exit = leave;
    self->errors.emit_message = strict_message;
    if (setjmp(self->way_out)) {
        jpeg_destroy_decompress(&self->cinfo);
        return self->why;
    }
    jpeg_create_decompress(&self->cinfo);
    work(self, asked);
    jpeg_destroy_decompress(&self->cinfo);
    return NULL;
}
