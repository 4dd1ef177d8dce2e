/* See resize.h. */
#include "resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAVE_AVX2 __builtin_cpu_supports("avx2")
#else
#define HAVE_AVX2 0
#endif

static double bicubic(double x)        /* Keys 1981, a = -0.5 */
{
    x = fabs(x);
    if (x < 1)
        return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

typedef struct {
    double offset, scale, support, inverse;
    int input;
} ruler;

static int ends_of(const ruler *rule, int output, int *start)
{
    double centre = rule->offset + rule->scale * (output + 0.5);
    int from = (int)(centre - rule->support + 0.5), to = (int)(centre + rule->support + 0.5);
    *start = from < 0 ? 0 : from;
    return (to > rule->input ? rule->input : to) - *start;
}

static int weights_of(const ruler *rule, int output, int *start, double *weights)
{
    double centre = rule->offset + rule->scale * (output + 0.5), sum = 0;
    int count = ends_of(rule, output, start);
    for (int number = 0; number < count; number++)
        sum += weights[number] = bicubic((number + *start - centre + 0.5) * rule->inverse);
    for (int number = 0; number < count; number++)
        weights[number] /= sum;
    return count;
}

int axis_make(axis *self, int input, double offset, double extent, int output, int first, int size, int most_bits)
{
    double scale = extent / output;
    ruler rule = {offset, scale, scale >= 1 ? 2 * scale : 2, scale >= 1 ? 1 / scale : 1, input};
    int most = 0, start;
    for (int number = first; number < first + size; number++) {
        int count = ends_of(&rule, number, &start);
        most = count > most ? count : most;
    }
    int room = 2 * (int)ceil(rule.support) + 1;         /* of any output, also outside the window */
    self->size = size;
    self->taps = (most + 3) & ~3;
    size_t starts = (sizeof(int) * (size_t)size + 63) & ~(size_t)63;
    size_t needed = starts + sizeof(int16_t) * (size_t)size * (size_t)self->taps;
    if (self->capacity < needed) {
        free(self->memory);
        self->capacity = 0;
        if ((self->memory = malloc(needed)) == NULL)
            return 0;
        self->capacity = needed;
    }
    self->start = self->memory;
    self->weights = (int16_t *)((char *)self->memory + starts);
    size_t doubles = (size_t)size * (size_t)self->taps + (size_t)room;
    if (self->scratch_capacity < doubles) {
        free(self->scratch);
        self->scratch_capacity = 0;
        if ((self->scratch = malloc(doubles * sizeof(double))) == NULL)
            return 0;
        self->scratch_capacity = doubles;
    }

    double largest = 0;                 /* of all outputs, so that a window of them has the same weights */
    memset(self->scratch, 0, doubles * sizeof(double));
    self->low = input;
    self->high = 0;
    for (int number = 0; number < output; number++) {
        int mine = number >= first && number < first + size;
        double *weights = self->scratch + (size_t)(mine ? number - first : size) * (size_t)self->taps;
        int count = weights_of(&rule, number, &start, weights);
        for (int one = 0; one < count; one++)
            largest = weights[one] > largest ? weights[one] : largest;
        if (mine) {
            self->start[number - first] = start;
            self->low = start < self->low ? start : self->low;
            self->high = start + count > self->high ? start + count : self->high;
        }
    }
    for (self->precision = 0; self->precision < most_bits; self->precision++)
        if ((int)(0.5 + largest * (1 << (self->precision + 1))) >= 1 << 15)
            break;
    for (size_t number = 0; number < (size_t)size * (size_t)self->taps; number++) {
        double value = self->scratch[number] * (1 << self->precision);
        self->weights[number] = (int16_t)(value < 0 ? value - 0.5 : value + 0.5);
    }
    return 1;
}

void axis_free(axis *self)
{
    free(self->memory);
    free(self->scratch);
}

static inline uint8_t to_byte(int32_t sum, int precision)
{
    sum >>= precision;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

static void rows_in_c(const axis *self, int channels, const uint8_t *from[2], uint8_t *to[2])
{
    for (int row = 0; row < 2; row++)
        for (int output = 0; output < self->size; output++) {
            const uint8_t *pixel = from[row] + (ptrdiff_t)self->start[output] * channels;
            const int16_t *weights = self->weights + (size_t)output * (size_t)self->taps;
            for (int channel = 0; channel < channels; channel++) {
                int32_t sum = 1 << (self->precision - 1);
                for (int tap = 0; tap < self->taps; tap++)
                    sum += pixel[tap * channels + channel] * weights[tap];
                to[row][output * channels + channel] = to_byte(sum, self->precision);
            }
        }
}

static void columns_in_c(const axis *self, int output, const uint8_t *from, size_t stride, size_t bytes, uint8_t *to)
{
    const int16_t *weights = self->weights + (size_t)output * (size_t)self->taps;
    for (size_t begin = 0; begin < bytes; begin += 256) {
        int32_t sums[256];
        size_t count = bytes - begin < 256 ? bytes - begin : 256;
        for (size_t byte = 0; byte < count; byte++)
            sums[byte] = 1 << (self->precision - 1);
        for (int tap = 0; tap < self->taps; tap++) {
            if (weights[tap] == 0)          /* beyond the last row there is none to be read */
                continue;
            const uint8_t *row = from + (size_t)(self->start[output] + tap) * stride + begin;
            for (size_t byte = 0; byte < count; byte++)
                sums[byte] += row[byte] * weights[tap];
        }
        for (size_t byte = 0; byte < count; byte++)
            to[begin + byte] = to_byte(sums[byte], self->precision);
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
/* One output of both rows: four sums in each half. */
__attribute__((target("avx2"), always_inline))
static inline __m256i sums_of(const axis *self, const uint8_t *from[2], int output, __m256i near, __m256i far, __m256i sum)
{
    ptrdiff_t start = 4 * (ptrdiff_t)self->start[output];
    const uint8_t *one = from[0] + start, *other = from[1] + start;
    const float *weights = (const float *)(self->weights + (size_t)output * (size_t)self->taps);
    for (int tap = 0; tap < self->taps; tap += 4, one += 16, other += 16, weights += 2) {
        __m256i pixels = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)one)),
                                                 _mm_loadu_si128((const __m128i *)other), 1);
        __m256i first = _mm256_castps_si256(_mm256_broadcast_ss(weights)), second = _mm256_castps_si256(_mm256_broadcast_ss(weights + 1));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, near), first));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, far), second));
    }
    return sum;
}

/* At least four outputs. */
__attribute__((target("avx2")))
static void rows_in_avx2(const axis *self, const uint8_t *from[2], uint8_t *to[2])
{
    /* the same channel of two neighbours side by side, as words: that is what one instruction multiplies and adds */
    const __m256i near = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1));
    const __m256i far = _mm256_broadcastsi128_si256(_mm_setr_epi8(8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1));
    const __m256i half = _mm256_set1_epi32(1 << (self->precision - 1));
    const __m128i precision = _mm_cvtsi32_si128(self->precision);
    for (int next = 0; next < self->size; next += 4) {
        int output = next + 4 <= self->size ? next : self->size - 4;
        __m256i a = _mm256_sra_epi32(sums_of(self, from, output, near, far, half), precision);
        __m256i b = _mm256_sra_epi32(sums_of(self, from, output + 1, near, far, half), precision);
        __m256i c = _mm256_sra_epi32(sums_of(self, from, output + 2, near, far, half), precision);
        __m256i d = _mm256_sra_epi32(sums_of(self, from, output + 3, near, far, half), precision);
        __m256i four = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        _mm_storeu_si128((__m128i *)(to[0] + 4 * output), _mm256_castsi256_si128(four));
        _mm_storeu_si128((__m128i *)(to[1] + 4 * output), _mm256_extracti128_si256(four, 1));
    }
}

/* `bytes` is a multiple of 32. */
__attribute__((target("avx2")))
static void columns_in_avx2(const axis *self, int output, const uint8_t *from, size_t stride, size_t bytes, uint8_t *to)
{
    const int16_t *weights = self->weights + (size_t)output * (size_t)self->taps;
    const __m256i half = _mm256_set1_epi32(1 << (self->precision - 1)), zero = _mm256_setzero_si256();
    const __m128i precision = _mm_cvtsi32_si128(self->precision);
    from += (size_t)self->start[output] * stride;
    int taps = self->taps;
    while (taps > 0 && weights[taps - 1] == 0)
        taps--;
    for (size_t byte = 0; byte < bytes; byte += 32) {
        __m256i a = half, b = half, c = half, d = half;
        for (int tap = 0; tap < taps; tap += 2) {
            const uint8_t *row = from + (size_t)tap * stride + byte;
            __m256i one = _mm256_loadu_si256((const __m256i *)row);
            __m256i other = tap + 1 < taps ? _mm256_loadu_si256((const __m256i *)(row + stride)) : zero;
            int32_t pair;
            memcpy(&pair, weights + tap, 4);
            __m256i both = _mm256_set1_epi32(pair), low = _mm256_unpacklo_epi8(one, other), high = _mm256_unpackhi_epi8(one, other);
            a = _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), both));
            b = _mm256_add_epi32(b, _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), both));
            c = _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), both));
            d = _mm256_add_epi32(d, _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), both));
        }
        a = _mm256_packs_epi32(_mm256_sra_epi32(a, precision), _mm256_sra_epi32(b, precision));
        c = _mm256_packs_epi32(_mm256_sra_epi32(c, precision), _mm256_sra_epi32(d, precision));
        _mm256_storeu_si256((__m256i *)(to + byte), _mm256_packus_epi16(a, c));
    }
}

/* Writes four bytes beyond each sixteen it reads, which the next overwrites; so not the last ones. */
__attribute__((target("avx2")))
static int three_in_avx2(const uint8_t *from, int pixels, uint8_t *to)
{
    const __m128i order = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    int pixel = 0;
    for (; pixel + 6 <= pixels; pixel += 4)
        _mm_storeu_si128((__m128i *)(to + 3 * pixel), _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(from + 4 * pixel)), order));
    return pixel;
}
#endif

const char *instructions(void)
{
    return HAVE_AVX2 ? "AVX2" : "C";
}

void along_rows(const axis *self, int channels, const uint8_t *from[2], uint8_t *to[2])
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (channels == 4 && self->size >= 4 && HAVE_AVX2) {
        rows_in_avx2(self, from, to);
        return;
    }
#endif
    rows_in_c(self, channels, from, to);
}

void along_columns(const axis *self, int output, const uint8_t *from, size_t stride, size_t bytes, uint8_t *to)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (HAVE_AVX2 && bytes % 32 == 0) {
        columns_in_avx2(self, output, from, stride, bytes, to);
        return;
    }
#endif
    columns_in_c(self, output, from, stride, bytes, to);
}

void three_of_four(const uint8_t *from, int pixels, uint8_t *to)
{
    int pixel = 0;
#if defined(__x86_64__) && defined(__GNUC__)
    if (HAVE_AVX2)
        pixel = three_in_avx2(from, pixels, to);
#endif
    for (; pixel < pixels; pixel++)
        memcpy(to + 3 * pixel, from + 4 * pixel, 3);
}
