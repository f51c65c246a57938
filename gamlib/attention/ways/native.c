/* GAM on a processor with vectors, float32, for `native.py`: products of many small matrices, and both gates.

   Products: c[t] = a[t] b[t], t = 0..batch-1. A tile of c, ROWS rows and up to VECTORS vectors wide, stays in registers while a and b are read along k: each vector
   of b serves all rows, each number of a all vectors. The columns of b and c lie one after the other; where those of b
   do not, or do not fill vectors, they are copied into a panel of k rows first.

   Gates: maps are rows of C channels, one for each position, which lie where strides of N, H and W say. A block of rows
   goes through the whole MLP and its gate, forward or backward, before the next one is read: what lies between never
   leaves the cache, sigmoids are computed anew in the backward pass, and each map is read or written once. */

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16, ROWS = 6, VECTORS = 4 }; /* 24 of 32 registers hold the tile */
#else
enum { LANES = 8, ROWS = 6, VECTORS = 2 }; /* 12 of 16 */
#endif
enum { WIDE = LANES * VECTORS, TASKS = 4 /* of a thread, at least */ };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (__typeof__(int __attribute__((vector_size(16))))){__VA_ARGS__})
#endif

typedef struct {
    const float *at;
    long batch, row, column; /* steps */
} matrices;

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
            if (adds) sum[i][j] += *(const vector *)(c + j * LANES); /* last: a sum of sums rounds less */
            if (columns - j * LANES >= LANES)
                *(vector *)(c + j * LANES) = sum[i][j];
            else
                memcpy(c + j * LANES, &sum[i][j], 4 * (columns - j * LANES));
        }
}

static inline __attribute__((always_inline)) void strip(int vectors, int adds, long m, long k, const float *a, long a_row,
                                                        long a_column, const float *b, long b_row, float *c,
                                                        long c_row, long columns) {
    for (; m >= ROWS; m -= ROWS, a += ROWS * a_row, c += ROWS * c_row)
        tile(ROWS, vectors, adds, k, a, a_row, a_column, b, b_row, c, c_row, columns);
    for (; m >= 2; m -= 2, a += 2 * a_row, c += 2 * c_row)
        tile(2, vectors, adds, k, a, a_row, a_column, b, b_row, c, c_row, columns);
    if (m) tile(1, vectors, adds, k, a, a_row, a_column, b, b_row, c, c_row, columns);
}

/* found[4, 4] = transposed b[4, 4] */
static inline void turned(const float *b, long column, float *found) {
    four w = *(const four *)b, x = *(const four *)(b + column), y = *(const four *)(b + 2 * column),
         z = *(const four *)(b + 3 * column);
    four wx = SHUFFLE(w, x, 0, 4, 1, 5), yz = SHUFFLE(y, z, 0, 4, 1, 5);
    four wx2 = SHUFFLE(w, x, 2, 6, 3, 7), yz2 = SHUFFLE(y, z, 2, 6, 3, 7);
    *(four *)found = SHUFFLE(wx, yz, 0, 1, 4, 5), *(four *)(found + WIDE) = SHUFFLE(wx, yz, 2, 3, 6, 7);
    *(four *)(found + 2 * WIDE) = SHUFFLE(wx2, yz2, 0, 1, 4, 5);
    *(four *)(found + 3 * WIDE) = SHUFFLE(wx2, yz2, 2, 3, 6, 7);
}

static void panel(const float *b, long row, long column, long k, long columns, float *found) {
    for (; columns > 0; columns -= LANES, b += LANES * column, found += LANES) { /* few lines of cache at once */
        long p = 0;
        if (row == 1 && columns >= LANES)
            for (; p + 4 <= k; p += 4)
                for (long j = 0; j < LANES; j += 4) turned(b + p + j * column, column, found + p * WIDE + j);
        for (; p < k; p++)
            for (long j = 0; j < LANES; j++) found[p * WIDE + j] = j < columns ? b[p * row + j * column] : 0;
    }
}

/* 0, or 1 where there is no memory */
int products(long batch, long m, long n, long k, matrices a, matrices b, matrices c) {
    long panels = (n + WIDE - 1) / WIDE, wanted = TASKS * omp_get_max_threads();
    long blocks = batch * panels >= wanted ? 1 : (wanted + batch * panels - 1) / (batch * panels);
    long rows = ((m + blocks - 1) / blocks + ROWS - 1) / ROWS * ROWS;
    int failed = 0, packs = b.column != 1 || n % LANES;
    blocks = (m + rows - 1) / rows;
#pragma omp parallel reduction(| : failed)
    {
        float *room = packs ? aligned_alloc(64, 4 * WIDE * (k ? k : 1)) : NULL;
        failed = packs && !room;
        long held = -1; /* the panel in `room` */
#pragma omp for schedule(static)
        for (long task = 0; task < batch * panels * blocks; task++) {
            if (failed) continue;
            long block = task % blocks, which = task / blocks, first = which % panels * WIDE, t = which / panels;
            long columns = n - first < WIDE ? n - first : WIDE, start = block * rows;
            long height = m - start < rows ? m - start : rows;
            const float *of_a = a.at + t * a.batch + start * a.row;
            const float *of_b = b.at + t * b.batch + first * b.column;
            float *of_c = (float *)c.at + t * c.batch + start * c.row + first;
            long b_row = b.row;
            if (packs) {
                if (held != which) panel(of_b, b.row, b.column, k, columns, room);
                held = which, of_b = room, b_row = WIDE;
            }
            switch ((columns + LANES - 1) / LANES) {
            case 1: strip(1, 0, height, k, of_a, a.row, a.column, of_b, b_row, of_c, c.row, columns); break;
            case 2: strip(2, 0, height, k, of_a, a.row, a.column, of_b, b_row, of_c, c.row, columns); break;
#ifdef __AVX512F__
            case 3: strip(3, 0, height, k, of_a, a.row, a.column, of_b, b_row, of_c, c.row, columns); break;
            case 4: strip(4, 0, height, k, of_a, a.row, a.column, of_b, b_row, of_c, c.row, columns); break;
#endif
            }
        }
        free(room);
    }
    return failed;
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
    float *at;
    long n, h, w; /* steps */
} map;
typedef struct {
    long n, h, w, channels;
} size;
typedef struct {
    long hidden;                     /* C/r, filled up to vectors */
    const float *w1, *b1, *w2, *b2; /* w1 [C, hidden], w2 [hidden, C] */
} mlp;

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
enum { BLOCK = 48 }; /* rows */

/* gated = x sigmoid(w2 relu(w1 x + b1) + b2); hidden [rows, hidden] is what relu gives. x is rows one after the other.
   Where `gradient` is, of_spatial = gradient gated sigmoid'(spatial) too, and gated may be missing. */
int channel_gate(size s, const float *x, mlp w, map gated, float *hidden, map gradient, map spatial, map of_spatial) {
    long rows = s.n * s.h * s.w, c = s.channels, h = w.hidden;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *logits = aligned_alloc(64, 4 * BLOCK * c);
        failed = !logits;
#pragma omp for schedule(static)
        for (long start = 0; start < rows; start += BLOCK) {
            if (failed) continue;
            long m = rows - start < BLOCK ? rows - start : BLOCK;
            const float *of_x = x + start * c;
            float *of_h = hidden + start * h;
            product(0, m, h, c, of_x, c, 1, w.w1, h, of_h, h);
            for (long i = 0; i < m; i++)
                for (long j = 0; j < h; j++) {
                    float y = of_h[i * h + j] + w.b1[j];
                    of_h[i * h + j] = y < 0 ? 0 : y; /* NaN stays */
                }
            product(0, m, c, h, of_h, h, 1, w.w2, c, logits, c);
            place at = find(s, start);
            for (long i = 0; i < m; i++, advance(s, &at)) {
                float *out = gated.at ? row(gated, at) : NULL, *g = NULL, *t = NULL, *of_t = NULL;
                if (gradient.at) g = row(gradient, at), t = row(spatial, at), of_t = row(of_spatial, at);
                for (long j = 0; j < c; j += LANES) {
                    vector y = VECTOR(of_x + i * c + j) * sigmoid(VECTOR(logits + i * c + j) + VECTOR(w.b2 + j));
                    if (out) VECTOR(out + j) = y;
                    if (!g) continue;
                    vector gate = sigmoid(VECTOR(t + j));
                    VECTOR(of_t + j) = VECTOR(g + j) * y * gate * (1 - gate);
                }
            }
        }
        free(logits);
    }
    return failed;
}

/* The gradients of `channel_gate`. That of gated is `gradient`, and, where `further` is, gradient + further sigmoid(spatial).
   w1t [hidden, C] and w2t [C, hidden] are the transposed weights; of_x is rows one after the other, `sums` [threads,
   2 hidden C + C + hidden] of zeros, become each thread's part of the gradients of w1t, w2, b2, b1. */
int channel_gate_gradients(size s, const float *x, mlp w, const float *w1t, const float *w2t, const float *hidden,
                           map gradient, map further, map spatial, float *of_x, float *sums, int threads) {
    long rows = s.n * s.h * s.w, c = s.channels, h = w.hidden;
    int failed = 0;
#pragma omp parallel reduction(| : failed) num_threads(threads)
    {
        float *logits = aligned_alloc(64, 4 * (BLOCK + 3) * (c + h)), *of_hidden = logits + BLOCK * c;
        float *part = of_hidden + BLOCK * h; /* of the gradients of both biases: of a block, then of all of them */
        double *total = (double *)(part + c + h);
        float *of_w1 = sums + omp_get_thread_num() * (2 * h * c + c + h), *of_w2 = of_w1 + h * c;
        float *of_b2 = of_w2 + h * c;
        failed = !logits;
        if (logits) memset(total, 0, 8 * (c + h));
#pragma omp for schedule(static)
        for (long start = 0; start < rows; start += BLOCK) {
            if (failed) continue;
            long m = rows - start < BLOCK ? rows - start : BLOCK;
            const float *of_h = hidden + start * h, *from_x = x + start * c;
            float *to_x = of_x + start * c;
            product(0, m, c, h, of_h, h, 1, w.w2, c, logits, c);
            memset(part, 0, 4 * (c + h));
            place at = find(s, start);
            for (long i = 0; i < m; i++, advance(s, &at)) {
                const float *g = row(gradient, at), *f = NULL, *t = NULL;
                if (further.at) f = row(further, at), t = row(spatial, at);
                for (long j = 0; j < c; j += LANES) {
                    vector gate = sigmoid(VECTOR(logits + i * c + j) + VECTOR(w.b2 + j)), of_gated = VECTOR(g + j);
                    if (f) of_gated += VECTOR(f + j) * sigmoid(VECTOR(t + j));
                    VECTOR(to_x + i * c + j) = of_gated * gate;
                    vector of_logit = of_gated * VECTOR(from_x + i * c + j) * gate * (1 - gate);
                    VECTOR(logits + i * c + j) = of_logit;
                    VECTOR(part + j) += of_logit;
                }
            }
            product(0, m, h, c, logits, c, 1, w2t, h, of_hidden, h);
            for (long i = 0; i < m; i++)
                for (long j = 0; j < h; j++) {
                    float y = of_h[i * h + j] > 0 ? of_hidden[i * h + j] : 0;
                    of_hidden[i * h + j] = y, part[c + j] += y;
                }
            for (long j = 0; j < c + h; j++) total[j] += part[j];
            product(1, m, c, h, of_hidden, h, 1, w1t, c, to_x, c);
            product(1, h, c, m, of_h, 1, h, logits, c, of_w2, c);
            product(1, h, c, m, of_hidden, 1, h, from_x, c, of_w1, c);
        }
        for (long j = 0; logits && j < c + h; j++) of_b2[j] = total[j]; /* and of_b1, behind it */
        free(logits);
    }
    return failed;
}

/* out = x sigmoid(logits) */
void gate(size s, map x, map logits, map out) {
    long rows = s.n * s.h * s.w;
#pragma omp parallel for schedule(static)
    for (long start = 0; start < rows; start += BLOCK) {
        place at = find(s, start);
        for (long i = start; i < rows && i < start + BLOCK; i++, advance(s, &at)) {
            float *of_x = row(x, at), *of_logits = row(logits, at), *of_out = row(out, at);
            for (long j = 0; j < s.channels; j += LANES)
                VECTOR(of_out + j) = VECTOR(of_x + j) * sigmoid(VECTOR(of_logits + j));
        }
    }
}

/* The gradient of `gate` by its logits. */
void gate_gradient(size s, map gradient, map x, map logits, map out) {
    long rows = s.n * s.h * s.w;
#pragma omp parallel for schedule(static)
    for (long start = 0; start < rows; start += BLOCK) {
        place at = find(s, start);
        for (long i = start; i < rows && i < start + BLOCK; i++, advance(s, &at)) {
            float *g = row(gradient, at), *of_x = row(x, at), *of_logits = row(logits, at), *of_out = row(out, at);
            for (long j = 0; j < s.channels; j += LANES) {
                vector y = sigmoid(VECTOR(of_logits + j));
                VECTOR(of_out + j) = VECTOR(g + j) * VECTOR(of_x + j) * y * (1 - y);
            }
        }
    }
}
