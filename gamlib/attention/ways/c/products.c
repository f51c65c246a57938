/* Products of many small matrices: c[t] = a[t] b[t], t = 0..batch-1.

   The columns of b and c lie one after the other; where those of b do not, or do not fill vectors, they are copied into
   a panel of k rows first. */

#include "common.h"

enum { TASKS = 4 /* of a thread, at least */ };

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

static void strips(int vectors, int adds, long m, long k, const float *a, long a_row, long a_column, const float *b,
                   long b_row, float *c, long c_row, long columns) {
    switch (vectors) {
    case 1: strip(1, adds, m, k, a, a_row, a_column, b, b_row, c, c_row, columns); break;
    case 2: strip(2, adds, m, k, a, a_row, a_column, b, b_row, c, c_row, columns); break;
#ifdef __AVX512F__
    case 3: strip(3, adds, m, k, a, a_row, a_column, b, b_row, c, c_row, columns); break;
    case 4: strip(4, adds, m, k, a, a_row, a_column, b, b_row, c, c_row, columns); break;
#endif
    }
}

void product(int adds, long m, long n, long k, const float *a, long a_row, long a_column, const float *b, long b_row,
             float *c, long c_row) {
    for (long j = 0; j < n; j += WIDE) {
        long columns = n - j < WIDE ? n - j : WIDE;
        strips(columns / LANES, adds, m, k, a, a_row, a_column, b + j, b_row, c + j, c_row, columns);
    }
}

static void panel(const float *b, long row, long column, long k, long columns, float *found) {
    for (; columns > 0; columns -= LANES, b += LANES * column, found += LANES) { /* few lines of cache at once */
        long p = 0;
        if (row == 1 && columns >= LANES)
            for (; p + 4 <= k; p += 4)
                for (long j = 0; j < LANES; j += 4) turned(b + p + j * column, column, found + p * WIDE + j, WIDE);
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
            strips((columns + LANES - 1) / LANES, 0, height, k, of_a, a.row, a.column, of_b, b_row, of_c, c.row, columns);
        }
        free(room);
    }
    return failed;
}

