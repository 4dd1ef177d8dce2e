/* See pixels.h.  The loops are plain, and written so that compilers make vector instructions of them; each says what pixels.py does. */
#include "pixels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Compiled twice, for processors with AVX2 and without, where the loader can choose. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define EVERY_PROCESSOR __attribute__((target_clones("avx2", "default")))
#endif
#endif
#ifndef EVERY_PROCESSOR
#define EVERY_PROCESSOR
#endif

typedef struct {
    int channels, height, width;
    size_t size;                        /* height * width */
    uint8_t *plane[3];                  /* one after the other */
    uint8_t *other;                     /* room for a plane; */
    uint8_t *wide[2];                   /* for two rows and two pixels on either side; */
    const uint8_t *fill;
} image;

static inline uint8_t cut_off(float value)
{
    value = value < 0 ? 0 : value;
    value = value > 255 ? 255 : value;
    return (uint8_t)(int)value;
}

static inline int luma(int r, int g, int b)
{
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
}

static size_t all_of(const image *x)
{
    return x->size * (size_t)x->channels;
}

/* low + factor (x - low) */
EVERY_PROCESSOR
static void blend_with_one(float low, uint8_t *restrict x, size_t count, float factor)
{
    for (size_t at = 0; at < count; at++)
        x[at] = cut_off(low + factor * (x[at] - low));
}

EVERY_PROCESSOR
static void blend(const uint8_t *restrict low, uint8_t *restrict x, size_t count, float factor)
{
    for (size_t at = 0; at < count; at++)
        x[at] = cut_off((float)low[at] + factor * ((float)x[at] - (float)low[at]));
}

EVERY_PROCESSOR
static void lumas(const uint8_t *restrict r, const uint8_t *restrict g, const uint8_t *restrict b, uint8_t *restrict to, size_t count)
{
    for (size_t at = 0; at < count; at++)
        to[at] = (uint8_t)luma(r[at], g[at], b[at]);
}

EVERY_PROCESSOR
static uint32_t sum_of(const uint8_t *x, size_t count)
{
    uint32_t sum = 0;
    for (size_t at = 0; at < count; at++)
        sum += x[at];
    return sum;
}

static const uint8_t *greys_of(image *x)
{
    if (x->channels == 1)
        return x->plane[0];
    lumas(x->plane[0], x->plane[1], x->plane[2], x->other, x->size);
    return x->other;
}

static void brightness(image *x, const double *given)
{
    blend_with_one(0, x->plane[0], all_of(x), (float)given[0]);
}

static void contrast(image *x, const double *given)
{
    const uint8_t *greys = greys_of(x);
    double total = 0;
    for (size_t at = 0, part; at < x->size; at += part) {       /* a part's sum fits 32 bits */
        part = x->size - at < 1 << 20 ? x->size - at : 1 << 20;
        total += sum_of(greys + at, part);
    }
    blend_with_one((float)floor(total / (double)x->size + 0.5), x->plane[0], all_of(x), (float)given[0]);
}

static void saturation(image *x, const double *given)
{
    const uint8_t *greys = greys_of(x);
    if (x->channels == 3)               /* a grey image is its own greys */
        for (int channel = 0; channel < 3; channel++)
            blend(greys, x->plane[channel], x->size, (float)given[0]);
}

EVERY_PROCESSOR
static void smooth_row(const uint8_t *restrict above, const uint8_t *restrict row, const uint8_t *restrict below, uint8_t *restrict to, int width)
{
    for (int at = 1; at < width - 1; at++) {
        int nine = above[at - 1] + above[at] + above[at + 1] + row[at - 1] + row[at] + row[at + 1] + below[at - 1] + below[at] + below[at + 1];
        to[at] = (uint8_t)((2 * (nine + 4 * row[at]) + 13) / 26);
    }
}

static void sharpness(image *x, const double *given)
{
    for (int channel = 0; channel < x->channels; channel++) {
        uint8_t *plane = x->plane[channel];
        memcpy(x->other, plane, x->size);
        for (int row = 1; row < x->height - 1; row++) {
            const uint8_t *here = plane + (size_t)row * (size_t)x->width;
            smooth_row(here - x->width, here, here + x->width, x->other + (here - plane), x->width);
        }
        blend(x->other, plane, x->size, (float)given[0]);
    }
}

/* Colours by way of HSV in 8 bits.  pixels.py takes single and double precision just where PIL does.  Here all is in single precision, of
 * which it was tried for every colour that it comes to the same: quotients of bytes are never near enough to where it would matter. */
static inline float parts_of_255(float share)           /* floor(255 share) of the exact product, which 256 share - share would round */
{
    float whole = (float)(int)(share * 255), less = whole - 1;
    return share * 256 - whole < share ? less : whole;
}

EVERY_PROCESSOR
static void turn_hue(uint8_t *restrict red, uint8_t *restrict green, uint8_t *restrict blue, size_t count, float shift)
{
    for (size_t at = 0; at < count; at++) {
        float r = red[at], g = green[at], b = blue[at];
        float high = r > g ? r : g, low = r < g ? r : g;
        high = high > b ? high : b;
        low = low < b ? low : b;
        float spread = high - low, middle = r + g + b - high - low, divisor = spread < 1 ? 1 : spread, brightest = high < 1 ? 1 : high;
        float share = (high - middle) / divisor;
        /* of the three quotients the lowest channel's is 1, the highest's 0, and this is the third */
        float red_turn = share - 1, green_turn = 1 + share, green_back = 3 - share, blue_turn = 3 + share, blue_back = 5 - share;
        red_turn = b == low ? -red_turn : red_turn;
        green_turn = b == low ? green_turn : green_back;
        blue_turn = r == low ? blue_turn : blue_back;
        float turn = g == high ? green_turn : blue_turn;
        turn = r == high ? red_turn : turn;
        float circle = turn / 6, behind = circle + 1;
        circle = turn < 0 ? behind : circle;
        float h = parts_of_255(circle);
        h = (spread > 0 ? h : 0) + shift;
        float around = h - 256;
        h = h >= 256 ? around : h;
        float s = parts_of_255(spread / brightest) / 255;
        float sixth = h * 6 / 255;
        int part = (int)sixth;
        float rest = sixth - (float)part;
        int v = (int)high;
        int p = (int)(high * (1 - s) + 0.5f), q = (int)(high * (1 - s * rest) + 0.5f), t = (int)(high * (1 - s * (1 - rest)) + 0.5f);
        /* all ones where a part is meant; choosing by them rather than by branches, which no vector instruction has */
        int is[7];
        for (int number = 0; number < 7; number++)
            is[number] = -(part == number);
        int one = (v & (is[0] | is[5] | is[6])) | (q & is[1]) | (p & (is[2] | is[3])) | (t & is[4]);
        int two = (t & (is[0] | is[6])) | (v & (is[1] | is[2])) | (q & is[3]) | (p & (is[4] | is[5]));
        int three = (p & (is[0] | is[1] | is[6])) | (t & is[2]) | (v & (is[3] | is[4])) | (q & is[5]);
        red[at] = (uint8_t)one;
        green[at] = (uint8_t)two;
        blue[at] = (uint8_t)three;
    }
}

static void hue(image *x, const double *given)
{
    if (x->channels == 3)
        turn_hue(x->plane[0], x->plane[1], x->plane[2], x->size, (float)(given[0] - 256 * floor(given[0] / 256)));
}

static void grey(image *x, const double *given)
{
    (void)given;
    if (x->channels == 1)
        return;
    lumas(x->plane[0], x->plane[1], x->plane[2], x->other, x->size);
    for (int channel = 0; channel < 3; channel++)
        memcpy(x->plane[channel], x->other, x->size);
}

/* Of what each byte becomes. */
static void look_up(uint8_t *x, size_t count, const uint8_t table[256])
{
    for (size_t at = 0; at < count; at++)
        x[at] = table[x[at]];
}

static void through_table(image *x, int (*of)(int level, int parameter), int parameter)
{
    uint8_t table[256];
    for (int level = 0; level < 256; level++)
        table[level] = (uint8_t)of(level, parameter);
    look_up(x->plane[0], all_of(x), table);
}

static int whole(double value, int low, int high)
{
    return value >= high ? high : value > low ? (int)value : low;
}

static int inverted(int level, int parameter)
{
    (void)parameter;
    return 255 - level;
}

static void invert(image *x, const double *given)
{
    (void)given;
    through_table(x, inverted, 0);
}

EVERY_PROCESSOR
static void invert_from(uint8_t *x, size_t count, uint8_t threshold)
{
    for (size_t at = 0; at < count; at++)
        x[at] = x[at] < threshold ? x[at] : 255 - x[at];
}

static void solarize(image *x, const double *given)
{
    int threshold = whole(given[0], 0, 256);
    if (threshold < 256)
        invert_from(x->plane[0], all_of(x), (uint8_t)threshold);
}

static int added(int level, int addend)
{
    return level >= 128 ? level : level + addend > 255 ? 255 : level + addend;
}

static void solarize_add(image *x, const double *given)
{
    through_table(x, added, whole(given[0], 0, 255));
}

static int kept(int level, int bits)
{
    return level & (256 - (1 << (8 - bits)));
}

static void posterize(image *x, const double *given)
{
    through_table(x, kept, whole(given[0], 0, 8));
}

static void autocontrast(image *x, const double *given)
{
    (void)given;
    for (int channel = 0; channel < x->channels; channel++) {
        int low = 255, high = 0;
        for (size_t at = 0; at < x->size; at++) {
            low = x->plane[channel][at] < low ? x->plane[channel][at] : low;
            high = x->plane[channel][at] > high ? x->plane[channel][at] : high;
        }
        if (high <= low)
            continue;
        uint8_t table[256];
        double scale = 255.0 / (high - low);
        for (int level = 0; level < 256; level++) {
            double value = level * scale - low * scale;
            table[level] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
        }
        look_up(x->plane[channel], x->size, table);
    }
}

static void equalize(image *x, const double *given)
{
    (void)given;
    for (int channel = 0; channel < x->channels; channel++) {
        size_t histogram[256] = {0}, below = 0, step;
        int last = 255;
        for (size_t at = 0; at < x->size; at++)
            histogram[x->plane[channel][at]]++;
        while (!histogram[last])
            last--;
        step = (x->size - histogram[last]) / 255;
        if (!step)
            continue;
        uint8_t table[256];
        for (int level = 0; level < 256; below += histogram[level++])
            table[level] = (uint8_t)((step / 2 + below) / step > 255 ? 255 : (step / 2 + below) / step);
        look_up(x->plane[channel], x->size, table);
    }
}

static int nearest(double place, int count)
{
    return place < 0 ? 0 : place > count - 1 ? count - 1 : (int)place;
}

static float between(float low, float high, float share)
{
    return low + (high - low) * share;
}

static void affine(image *x, const double *matrix)
{
    for (int channel = 0; channel < x->channels; channel++) {
        uint8_t *to = x->plane[channel];
        const uint8_t *from = memcpy(x->other, to, x->size);
        for (int row = 0; row < x->height; row++)
            for (int column = 0; column < x->width; column++, to++) {
                double across = matrix[0] * (column + 0.5) + matrix[1] * (row + 0.5) + matrix[2];
                double down = matrix[3] * (column + 0.5) + matrix[4] * (row + 0.5) + matrix[5];
                if (!(across >= 0 && across < x->width && down >= 0 && down < x->height)) {
                    *to = x->fill[channel];
                    continue;
                }
                across -= 0.5;
                down -= 0.5;
                double left = floor(across), top = floor(down);
                const uint8_t *upper = from + (size_t)nearest(top, x->height) * (size_t)x->width;
                const uint8_t *lower = from + (size_t)nearest(top + 1, x->height) * (size_t)x->width;
                int one = nearest(left, x->width), other = nearest(left + 1, x->width);
                float share = (float)(across - left);
                *to = (uint8_t)between(between(upper[one], upper[other], share), between(lower[one], lower[other], share), (float)(down - top));
            }
    }
}

/* One of the box blurs that a Gaussian's is made of: of five pixels side by side, or one below the other.  The sum is modulo 2^32.  Boxes
 * have either no weight for the outer two or the same for the inner three (policy.blur_weights), and so one multiplication less. */
EVERY_PROCESSOR
static void box(const uint8_t *restrict a, const uint8_t *restrict b, const uint8_t *restrict c, const uint8_t *restrict d,
                const uint8_t *restrict e, uint8_t *restrict to, int count, uint32_t centre, uint32_t near, uint32_t far)
{
    const uint32_t half = 1u << 23;
    if (far == 0)
        for (int at = 0; at < count; at++)
            to[at] = (uint8_t)((centre * c[at] + near * (uint32_t)(b[at] + d[at]) + half) >> 24);
    else if (near == centre)
        for (int at = 0; at < count; at++)
            to[at] = (uint8_t)((centre * (uint32_t)(b[at] + c[at] + d[at]) + far * (uint32_t)(a[at] + e[at]) + half) >> 24);
    else
        for (int at = 0; at < count; at++)
            to[at] = (uint8_t)((centre * c[at] + near * (uint32_t)(b[at] + d[at]) + far * (uint32_t)(a[at] + e[at]) + half) >> 24);
}

static uint32_t weight(double given)
{
    return (uint32_t)whole(given, INT32_MIN, INT32_MAX);
}

/* Edges are repeated. */
static void repeat_edges(uint8_t *wide, int width)
{
    wide[0] = wide[1] = wide[2];
    wide[width + 2] = wide[width + 3] = wide[width + 1];
}

static void blur(image *x, const double *given)
{
    uint32_t centre = weight(given[0]), near = weight(given[1]), far = weight(given[2]);
    int width = x->width, last = x->height - 1;
    for (int channel = 0; channel < x->channels; channel++) {
        uint8_t *from = x->plane[channel], *to = x->other;
        for (int row = 0; row <= last; row++) {
            size_t start = (size_t)row * (size_t)width;
            uint8_t *one = x->wide[0], *other = x->wide[1];
            memcpy(one + 2, from + start, (size_t)width);
            repeat_edges(one, width);
            box(one, one + 1, one + 2, one + 3, one + 4, other + 2, width, centre, near, far);
            repeat_edges(other, width);
            box(other, other + 1, other + 2, other + 3, other + 4, one + 2, width, centre, near, far);
            repeat_edges(one, width);
            box(one, one + 1, one + 2, one + 3, one + 4, to + start, width, centre, near, far);
        }
        for (int turn = 0; turn < 3; turn++) {
            uint8_t *swapped = from;
            from = to;
            to = swapped;
            for (int row = 0; row <= last; row++) {
                const uint8_t *rows[5];
                for (int near_by = -2; near_by <= 2; near_by++) {
                    int at = row + near_by < 0 ? 0 : row + near_by > last ? last : row + near_by;
                    rows[near_by + 2] = from + (size_t)at * (size_t)width;
                }
                box(rows[0], rows[1], rows[2], rows[3], rows[4], to + (size_t)row * (size_t)width, width, centre, near, far);
            }
        }
    }
}

static const struct {
    const char *name;
    void (*work)(image *, const double *);
} operations[] = {
    {"brightness", brightness}, {"contrast", contrast}, {"saturation", saturation}, {"sharpness", sharpness}, {"hue", hue},
    {"grey", grey}, {"invert", invert}, {"solarize", solarize}, {"solarize_add", solarize_add}, {"posterize", posterize},
    {"autocontrast", autocontrast}, {"equalize", equalize}, {"affine", affine}, {"blur", blur},
};
const int num_operations = sizeof operations / sizeof *operations;

const char *operation_name(int code)
{
    return operations[code].name;
}

EVERY_PROCESSOR
static void split(const uint8_t *restrict from, uint8_t *restrict r, uint8_t *restrict g, uint8_t *restrict b, size_t count)
{
    for (size_t at = 0; at < count; at++) {
        r[at] = from[3 * at];
        g[at] = from[3 * at + 1];
        b[at] = from[3 * at + 2];
    }
}

static void mirror(uint8_t *row, int width)
{
    for (int left = 0, right = width - 1; left < right; left++, right--) {
        uint8_t swapped = row[left];
        row[left] = row[right];
        row[right] = swapped;
    }
}

static void take(const batch *asked, int number, image *x)
{
    const uint8_t *from = asked->images + (size_t)number * all_of(x);
    if (x->channels == 3)
        split(from, x->plane[0], x->plane[1], x->plane[2], x->size);
    else
        memcpy(x->plane[0], from, x->size);
    if (asked->flip && asked->flip[number])
        for (size_t row = 0; row < (size_t)x->height * (size_t)x->channels; row++)
            mirror(x->plane[0] + row * (size_t)x->width, x->width);
}

int augment(const batch *asked)
{
    image x = {asked->channels, asked->height, asked->width, (size_t)asked->height * (size_t)asked->width, {0}, NULL, {0}, asked->fill};
    size_t row = (size_t)x.width + 4;
    uint8_t *memory = malloc((size_t)(x.channels + 1) * x.size + 2 * row);
    if (memory == NULL)
        return 0;
    for (int channel = 0; channel < x.channels; channel++)
        x.plane[channel] = memory + (size_t)channel * x.size;
    x.other = memory + all_of(&x);
    x.wide[0] = x.other + x.size;
    x.wide[1] = x.wide[0] + row;
    for (int number = 0; number < asked->count; number++) {
        take(asked, number, &x);
        for (int64_t one = asked->first[number]; one < asked->first[number + 1]; one++)
            operations[asked->codes[one]].work(&x, asked->parameters + PARAMETERS * one);
        float *to = asked->out + (size_t)number * all_of(&x);
        for (int channel = 0; channel < x.channels; channel++) {
            const float *table = asked->table + 256 * channel;
            for (size_t at = 0; at < x.size; at++)
                *to++ = table[x.plane[channel][at]];
        }
    }
    free(memory);
    return 1;
}
