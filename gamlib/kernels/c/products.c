/* Products of many small matrices: c[t] = a[t] b[t], t = 0..batch-1.

   The columns of b and c lie one after the other; where those of b do not, or do not fill vectors, they are copied into
   a panel of k rows first. */

#include "common.h"

enum { TASKS = 4 /* of a thread, at least */ };

typedef struct {
    float *at;
    long batch, rows, columns;
    long next, row, column; /* steps */
} matrices;

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

/* c = a b */
int products(matrices a, matrices b, matrices c) {
    long batch = c.batch, m = c.rows, n = c.columns, k = a.columns;
    if (a.batch != batch || b.batch != batch || a.rows != m || b.rows != k || b.columns != n) return UNFIT;
    if (!c.at || (k && (!a.at || !b.at)) || (c.column != 1 && n > 1)) return UNFIT;
    long panels = (n + WIDE - 1) / WIDE, wanted = TASKS * omp_get_max_threads();
    long blocks = batch * panels >= wanted ? 1 : (wanted + batch * panels - 1) / (batch * panels);
    long rows = ((m + blocks - 1) / blocks + ROWS - 1) / ROWS * ROWS;
    int failed = 0, packs = b.column != 1 || n % LANES;
    blocks = (m + rows - 1) / rows;
#pragma omp parallel reduction(| : failed)
    {
        float *packed = packs ? aligned_alloc(64, 4 * WIDE * (k ? k : 1)) : NULL;
        failed = packs && !packed;
        long held = -1; /* the panel in `packed` */
#pragma omp for schedule(static)
        for (long task = 0; task < batch * panels * blocks; task++) {
            if (failed) continue;
            long block = task % blocks, which = task / blocks, first = which % panels * WIDE, t = which / panels;
            long columns = n - first < WIDE ? n - first : WIDE, start = block * rows;
            long height = m - start < rows ? m - start : rows;
            const float *of_a = a.at + t * a.next + start * a.row;
            const float *of_b = b.at + t * b.next + first * b.column;
            float *of_c = c.at + t * c.next + start * c.row + first;
            long b_row = b.row;
            if (packs) {
                if (held != which) panel(of_b, b.row, b.column, k, columns, packed);
                held = which, of_b = packed, b_row = WIDE;
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
        free(packed);
    }
    return failed;
}

