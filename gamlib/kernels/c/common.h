/* What the C files share: GAM on a processor with vectors, float32, for `native.py`.

   A tile of a product, ROWS rows and up to VECTORS vectors wide, stays in registers while a and b are read along k:
   each vector of b serves all rows, each number of a all vectors. Sums are made of parts of DEPTH numbers: one chain of
   thousands would lose a digit.

   Every pointer comes with the size of what it points to. What `native.py` calls returns 0, UNFIT where sizes do not
   fit each other, before a number is read, or FULL where there is no memory. */

#pragma once
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16, ROWS = 6, VECTORS = 4 }; /* 24 of 32 registers hold the tile */
#else
enum { LANES = 8, ROWS = 6, VECTORS = 2 }; /* 12 of 16 */
#endif
enum { WIDE = LANES * VECTORS, DEPTH = 128, FILL = 16 /* channels fill the vectors of every processor */ };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (__typeof__(int __attribute__((vector_size(16))))){__VA_ARGS__})
#endif

enum { FULL = 1, UNFIT = 2 };

typedef struct {
    float *at;
    long numbers; /* one after the other; less than 0 where they are not */
} array;

static inline int holds(array a, long numbers) { return a.at && a.numbers == numbers; }

static inline __attribute__((always_inline)) void tile(int rows, int vectors, int adds, long k, const float *a, long a_row,
                                                       long a_column, const float *b, long b_row, float *c, long c_row,
                                                       long columns) {
    vector sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) sum[i][j] = (vector){0};
    for (long p = 0; p < k; p++, a += a_column, b += b_row) {
        vector of_b[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) of_b[j] = *(const vector *)(b + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            float of_a = a[i * a_row];
#pragma GCC unroll 8
            for (int j = 0; j < vectors; j++) sum[i][j] += of_a * of_b[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++, c += c_row)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) {
            long left = columns - j * LANES;
            if (left >= LANES) {
                if (adds) sum[i][j] += *(const vector *)(c + j * LANES); /* last: a sum of sums rounds less */
                *(vector *)(c + j * LANES) = sum[i][j];
            } else { /* beyond these may be no memory */
                vector known = {0};
                memcpy(&known, c + j * LANES, 4 * left);
                if (adds) sum[i][j] += known;
                memcpy(c + j * LANES, &sum[i][j], 4 * left);
            }
        }
}

static inline __attribute__((always_inline)) void tall(int rows, int vectors, int adds, long k, const float *a, long a_row,
                                                       long a_column, const float *b, long b_row, float *c, long c_row,
                                                       long columns) {
    tile(rows, vectors, adds, k < DEPTH ? k : DEPTH, a, a_row, a_column, b, b_row, c, c_row, columns);
    for (long p = DEPTH; p < k; p += DEPTH)
        tile(rows, vectors, 1, k - p < DEPTH ? k - p : DEPTH, a + p * a_column, a_row, a_column, b + p * b_row, b_row, c,
             c_row, columns);
}

static inline __attribute__((always_inline)) void strip(int vectors, int adds, long m, long k, const float *a, long a_row,
                                                        long a_column, const float *b, long b_row, float *c,
                                                        long c_row, long columns) {
    for (; m >= ROWS; m -= ROWS, a += ROWS * a_row, c += ROWS * c_row)
        tall(ROWS, vectors, adds, k, a, a_row, a_column, b, b_row, c, c_row, columns);
    for (; m >= 2; m -= 2, a += 2 * a_row, c += 2 * c_row)
        tall(2, vectors, adds, k, a, a_row, a_column, b, b_row, c, c_row, columns);
    if (m) tall(1, vectors, adds, k, a, a_row, a_column, b, b_row, c, c_row, columns);
}

/* found[4, 4] = transposed b[4, 4] */
static inline void turned(const float *b, long column, float *found, long row) {
    four w = *(const four *)b, x = *(const four *)(b + column), y = *(const four *)(b + 2 * column),
         z = *(const four *)(b + 3 * column);
    four wx = SHUFFLE(w, x, 0, 4, 1, 5), yz = SHUFFLE(y, z, 0, 4, 1, 5);
    four wx2 = SHUFFLE(w, x, 2, 6, 3, 7), yz2 = SHUFFLE(y, z, 2, 6, 3, 7);
    *(four *)found = SHUFFLE(wx, yz, 0, 1, 4, 5), *(four *)(found + row) = SHUFFLE(wx, yz, 2, 3, 6, 7);
    *(four *)(found + 2 * row) = SHUFFLE(wx2, yz2, 0, 1, 4, 5);
    *(four *)(found + 3 * row) = SHUFFLE(wx2, yz2, 2, 3, 6, 7);
}

/* One product by one thread: c[m, n] = a[m, k] b[k, n], added to c if it `adds`; n fills vectors. */
static inline __attribute__((always_inline)) void product(int adds, long m, long n, long k, const float *a, long a_row,
                                                          long a_column, const float *b, long b_row, float *c,
                                                          long c_row) {
    long j = 0, two = 2 * LANES;
    for (; j + WIDE <= n; j += WIDE) strip(VECTORS, adds, m, k, a, a_row, a_column, b + j, b_row, c + j, c_row, WIDE);
    for (; j + two <= n; j += two) strip(2, adds, m, k, a, a_row, a_column, b + j, b_row, c + j, c_row, two);
    if (j < n) strip(1, adds, m, k, a, a_row, a_column, b + j, b_row, c + j, c_row, LANES);
}

typedef int integers __attribute__((vector_size(4 * LANES), aligned(4)));

static inline vector least(vector x, float y) {
    integers more = x > y; /* NaN is not */
    return (vector)(((integers)x & ~more) | ((integers)((vector){0} + y) & more));
}

/* 1 / (1 + exp(-x)), with exp(r + n ln 2) = 2^n exp(r) and a polynomial for |r| < ln(2) / 2 */
static inline vector sigmoid(vector x) {
    vector y = least(-x, 88), magic = (vector){0} + 12582912.f; /* 1.5 2^23: what is added to it is rounded */
    y = -least(-y, 87);
    vector n = (y * 1.44269504f + magic) - magic, r = y - n * 0.693359375f + n * 2.12194440e-4f;
    vector e = r * 1.9875691500e-4f + 1.3981999507e-3f;
    e = e * r + 8.3334519073e-3f, e = e * r + 4.1665795894e-2f;
    e = e * r + 1.6666665459e-1f, e = e * r + 5.0000001201e-1f;
    e = e * r * r + r + 1;
    return 1 / (1 + e * (vector)((__builtin_convertvector(n, integers) + 127) << 23));
}

typedef struct {
    long n, channels, h, w;
} size;
typedef struct {
    float *at;
    long n, channel, h, w; /* steps */
    size of;
} map;
typedef struct {
    long hidden;         /* C/r */
    array w1, b1, w2, b2; /* w1 [hidden, C], w2 [C, hidden] */
} mlp;

static inline long filled(long channels) { return (channels + FILL - 1) / FILL * FILL; }
static inline long rows_of(size s) { return s.n * s.h * s.w; }

static inline int fills(size s) { return rows_of(s) > 0 && s.channels > 0 && s.channels % FILL == 0; }
static inline int is_map(size s, map m) { return m.at && m.channel == 1 && !memcmp(&s, &m.of, sizeof s); }
static inline int is_mlp(long c, mlp w) {
    long numbers = w.hidden * c;
    return w.hidden > 0 && holds(w.w1, numbers) && holds(w.b1, w.hidden) && holds(w.w2, numbers) && holds(w.b2, c);
}

typedef struct {
    long n, h, w;
} place;

static inline place find(size s, long index) { return (place){index / (s.h * s.w), index / s.w % s.h, index % s.w}; }

static inline void advance(size s, place *p) {
    if (++p->w < s.w) return;
    p->w = 0;
    if (++p->h < s.h) return;
    p->h = 0, p->n++;
}

static inline float *row(map x, place p) { return x.at + p.n * x.n + p.h * x.h + p.w * x.w; }

#define VECTOR(p) (*(vector *)(p))
enum { BLOCK = 48 }; /* rows, of maps whose rows are many */

/* Rows that one thread takes at once: fewer where all threads would not have some, and whole tiles. */
static inline long block_of(long rows) {
    long share = (rows + omp_get_max_threads() - 1) / omp_get_max_threads();
    long tiles = (share + ROWS - 1) / ROWS * ROWS;
    return tiles < BLOCK ? tiles : BLOCK;
}

int channel_gate(size s, array x, mlp w, map gated, array hidden, map gradient, map spatial, map of_spatial);
int channel_gate_gradients(size s, array x, mlp w, array hidden, map gradient, map further, map spatial, array of_x,
                           mlp of_w);
