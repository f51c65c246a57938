/* Products of many small matrices of float32: c[t] = a[t] b[t], t = 0..batch-1, for `products.py`.

   A tile of c, ROWS rows and up to VECTORS vectors wide, stays in registers while a and b are read along k: each vector
   of b serves all rows, each number of a all vectors. The columns of b and c lie one after the other; where those of b
   do not, or do not fill vectors, they are copied into a panel of k rows first. */

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16, ROWS = 6, VECTORS = 4 }; /* 24 of 32 registers hold the tile */
#else
enum { LANES = 8, ROWS = 6, VECTORS = 2 }; /* 12 of 16 */
#endif
enum { WIDE = LANES * VECTORS, TASKS = 4 /* of a thread, at least */ };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float four __attribute__((vector_size(16), aligned(4)));
#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (__typeof__(int __attribute__((vector_size(16))))){__VA_ARGS__})
#endif

typedef struct {
    const float *at;
    long batch, row, column; /* steps */
} matrices;

static inline __attribute__((always_inline)) void tile(int rows, int vectors, long k, const float *a, long a_row,
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
            if (columns - j * LANES >= LANES)
                *(vector *)(c + j * LANES) = sum[i][j];
            else
                memcpy(c + j * LANES, &sum[i][j], 4 * (columns - j * LANES));
        }
}

static inline __attribute__((always_inline)) void strip(int vectors, long m, long k, const float *a, long a_row,
                                                        long a_column, const float *b, long b_row, float *c,
                                                        long c_row, long columns) {
    for (; m >= ROWS; m -= ROWS, a += ROWS * a_row, c += ROWS * c_row)
        tile(ROWS, vectors, k, a, a_row, a_column, b, b_row, c, c_row, columns);
    for (; m >= 2; m -= 2, a += 2 * a_row, c += 2 * c_row)
        tile(2, vectors, k, a, a_row, a_column, b, b_row, c, c_row, columns);
    if (m) tile(1, vectors, k, a, a_row, a_column, b, b_row, c, c_row, columns);
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
            case 1: strip(1, height, k, of_a, a.row, a.column, of_b, b_row, of_c, c.row, columns); break;
            case 2: strip(2, height, k, of_a, a.row, a.column, of_b, b_row, of_c, c.row, columns); break;
#ifdef __AVX512F__
            case 3: strip(3, height, k, of_a, a.row, a.column, of_b, b_row, of_c, c.row, columns); break;
            case 4: strip(4, height, k, of_a, a.row, a.column, of_b, b_row, of_c, c.row, columns); break;
#endif
            }
        }
        free(room);
    }
    return failed;
}
