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

typedef struct {
    cut given;                          /* its box in pixels of the image as decoded: those that it cuts are in it */
    axis along, across;
    int first, count;                   /* rows of the image as decoded that matter */
    uint8_t *resized;                   /* these along their length, with room for one before them and one behind; */
    size_t stride;                      /* of so many bytes each */
} view;

struct workspace {
    struct jpeg_decompress_struct cinfo;
    struct jpeg_error_mgr errors;
    jmp_buf way_out;
    char why[JMSG_LENGTH_MAX];
    entropy coded;
    view *views;
    int room;                           /* for so many views */
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
    for (int number = 0; number < self->room; number++) {
        axis_free(&self->views[number].along);
        axis_free(&self->views[number].across);
    }
    free(self->views);
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

/* Memory for two decoded rows, for all rows that are resized along their length, and for one that is resized. */
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

static void reserve_views(workspace *self, int count)
{
    if (self->room >= count)
        return;
    view *more = realloc(self->views, sizeof(view) * (size_t)count);
    if (more == NULL)
        refuse(&self->cinfo, "no memory");
    memset(more + self->room, 0, sizeof(view) * (size_t)(count - self->room));
    self->views = more;
    self->room = count;
}

/* Where a view lies in the image as decoded, and with which weights it is resized. */
static void prepare(workspace *self, view *one, const cut *asked, int scale)
{
    j_decompress_ptr cinfo = &self->cinfo;
    if (asked->top < 0 || asked->left < 0 || asked->height < 1 || asked->width < 1 || asked->rows < 1 || asked->columns < 1 ||
        asked->from_row < 0 || asked->from_column < 0 || asked->to_height > MOST_OUTPUTS || asked->to_width > MOST_OUTPUTS ||
        asked->height > (int)cinfo->image_height - asked->top || asked->width > (int)cinfo->image_width - asked->left ||
        asked->rows > asked->to_height - asked->from_row || asked->columns > asked->to_width - asked->from_column)
        refuse(cinfo, "the crop is not inside");
    cut *small = &one->given;
    *small = *asked;
    small->top /= scale;
    small->left /= scale;
    small->height = (asked->top + asked->height + scale - 1) / scale - small->top;
    small->width = (asked->left + asked->width + scale - 1) / scale - small->left;
    double whole = scale;
    int most_bits = scale > 1 ? 15 : 22;
    if (!axis_make(&one->across, small->height, asked->top / whole - small->top, asked->height / whole, asked->to_height, asked->from_row,
                   asked->rows, most_bits) ||
        !axis_make(&one->along, small->width, asked->left / whole - small->left, asked->width / whole, asked->to_width, asked->from_column,
                   asked->columns, most_bits))
        refuse(cinfo, "no memory");
    one->first = small->top + one->across.low;
    one->count = one->across.high - one->across.low;
}

/* Decode the rows that matter to any view, and resize them along their length, two at a time.  length: bytes of each of the two. */
static void read_rows(workspace *self, const request *asked, int channels, size_t length)
{
    j_decompress_ptr cinfo = &self->cinfo;
    JDIMENSION start = cinfo->output_width, end = 0;
    int first = (int)cinfo->output_height, beyond = 0;
    for (const view *one = self->views; one < self->views + asked->num_cuts; one++) {
        JDIMENSION low = (JDIMENSION)(one->given.left + one->along.low), high = (JDIMENSION)(one->given.left + one->along.high);
        start = low < start ? low : start;
        end = high > end ? high : end;
        first = one->first < first ? one->first : first;
        beyond = one->first + one->count > beyond ? one->first + one->count : beyond;
    }
    start = start > MARGIN ? start - MARGIN : 0;
    end = end + MARGIN < cinfo->output_width ? end + MARGIN : cinfo->output_width;
    JDIMENSION width = end - start;
    if (width < cinfo->output_width)
        jpeg_crop_scanline(cinfo, &start, &width);      /* moves start down to where a block begins */
    self->coded.first = cinfo->master->first_iMCU_col;
    self->coded.beyond = cinfo->master->last_iMCU_col + 1;
    /* not aligned: else libjpeg-turbo's colour conversion writes past the caches, and reading what it wrote takes longer than all else here */
    uint8_t *rows[2] = {self->memory + 4, self->memory + length + 4};
    if (asked->marks && !asked->whole && first > 0) {   /* libjpeg passes over whole rows of MCUs, if need be but for one line above */
        unsigned lines = (unsigned)(cinfo->max_v_samp_factor * DCTSIZE / asked->scale);
        entropy_jump(&self->coded, cinfo, asked->marks, (unsigned)asked->num_marks, (unsigned)(first - 1) / lines);
    }
    if (first > 0 && jpeg_skip_scanlines(cinfo, (JDIMENSION)first) != (JDIMENSION)first)
        refuse(cinfo, "rows could not be skipped");
    for (int row = first; row < beyond; row += 2) {
        for (int both = 0; both < 2 && row + both < beyond; both++)
            if (jpeg_read_scanlines(cinfo, &rows[both], 1) != 1)
                refuse(cinfo, "a row is missing");
        for (const view *one = self->views; one < self->views + asked->num_cuts; one++) {
            if (row + 1 < one->first || row >= one->first + one->count)
                continue;
            ptrdiff_t inside = ((ptrdiff_t)one->given.left - (ptrdiff_t)start) * channels;
            uint8_t *to = one->resized + (row - one->first) * (ptrdiff_t)one->stride;
            along_rows(&one->along, channels, (const uint8_t *[2]){rows[0] + inside, rows[1] + inside}, (uint8_t *[2]){to, to + one->stride});
        }
    }
}

static void resize_columns(const view *one, int channels, uint8_t *line)
{
    int per_pixel = channels == 4 ? 3 : 1;
    for (int row = 0; row < one->given.rows; row++) {
        uint8_t *to = one->given.out + (size_t)row * (size_t)one->given.columns * (size_t)per_pixel;
        along_columns(&one->across, row, one->resized - (ptrdiff_t)one->across.low * (ptrdiff_t)one->stride, one->stride, one->stride, line);
        if (channels == 4)
            three_of_four(line, one->given.columns, to);
        else
            memcpy(to, line, (size_t)one->given.columns);
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
    reserve_views(self, asked->num_cuts);
    int taps = 0;
    size_t widest = 0, all_rows = 0;
    for (int number = 0; number < asked->num_cuts; number++) {
        view *one = &self->views[number];
        prepare(self, one, &asked->cuts[number], asked->scale);
        one->stride = ((size_t)one->given.columns * (size_t)channels + 31) & ~(size_t)31;
        taps = one->along.taps > taps ? one->along.taps : taps;
        widest = one->stride > widest ? one->stride : widest;
        all_rows += ((size_t)one->count + 2) * one->stride;
    }
    entropy_begin(&self->coded, cinfo);
    cinfo->entropy->decode_mcu = next_mcu;
    if (asked->marks && asked->whole)
        entropy_mark(&self->coded, cinfo, asked->marks, (unsigned)asked->num_marks);

    /* beyond a row's last pixel the weights are zero, but they are multiplied */
    size_t length = ((size_t)cinfo->output_width + (size_t)taps + 16) * (size_t)channels + 4;
    length = (length + 63) & ~(size_t)63;
    reserve(self, 2 * length + all_rows + widest);
    uint8_t *line = self->memory + 2 * length, *next = line + widest;
    for (view *one = self->views; one < self->views + asked->num_cuts; next += ((size_t)one->count + 2) * one->stride, one++)
        one->resized = next + one->stride;
    read_rows(self, asked, channels, length);
    if (asked->whole)
        entropy_finish(&self->coded, cinfo);
    for (const view *one = self->views; one < self->views + asked->num_cuts; one++)
        resize_columns(one, channels, line);
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
