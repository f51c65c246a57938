/* Transforms of `fourier.py` along H and along W in one go: what lies between stays in the cache.

   A map is [H][W] positions of `runs` times `run` columns: a run's lie one after the other. Some of a run's columns go
   through both products at once; what is known of a map is [F][P][runs run], a matrix [P, Q] along W for each f. */

#include "common.h"

enum { CACHED = 1 << 17 /* numbers between both products */ };

typedef struct {
    float *at;
    long h, w, run, column; /* steps */
    long height, width, runs, columns; /* of a run */
} positions;
typedef struct {
    long rows, f, p; /* along H [rows, H], rows = 2 F; along W F times [P, 2 W] */
    array along_h, along_w;
} transforms;

static int fit(transforms s, positions x, array known) {
    int fills = x.height > 0 && x.width > 0 && x.runs > 0 && x.columns > 0 && x.columns % FILL == 0 && x.column == 1;
    if (!fills || !x.at || s.rows != 2 * s.f || s.p <= 0 || !holds(s.along_h, s.rows * x.height)) return 0;
    return holds(s.along_w, s.f * s.p * 2 * x.width) && holds(known, s.f * s.p * x.runs * x.columns);
}

static long chunk(transforms s, positions x) {
    long most = CACHED / (s.rows * x.width) / FILL * FILL;
    return most < FILL ? FILL : most < 4 * FILL ? most : 4 * FILL;
}

/* known[f] = along_w[f] (along_h x)[2 f, 2 f + 1]; or `back`, the transpose of it: x from known. */
int transform(transforms s, positions x, array known, int back) {
    if (!fit(s, x, known)) return UNFIT;
    long columns = chunk(s, x), chunks = (x.columns + columns - 1) / columns, all = x.runs * x.columns, q = 2 * x.width;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *first = aligned_alloc(64, 4 * (s.rows * x.width + s.p) * columns), *panel = first + s.rows * x.width * columns;
        failed = !first;
#pragma omp for schedule(static)
        for (long task = 0; task < x.runs * chunks; task++) {
            if (failed) continue;
            long start = task % chunks * columns, n = x.columns - start < columns ? x.columns - start : columns;
            float *of_x = x.at + task / chunks * x.run + start, *of_known = known.at + task / chunks * x.columns + start;
            if (!back) {
                for (long w = 0; w < x.width; w++)
                    product(0, s.rows, n, x.height, s.along_h.at, x.height, 1, of_x + w * x.w, x.h, first + w * n, x.width * n);
                for (long f = 0, of = s.p; f < s.f; f++)
                    product(0, of, n, q, s.along_w.at + f * of * q, q, 1, first + f * q * n, n, of_known + f * of * all, all);
                continue;
            }
            for (long f = 0; f < s.f; f++) {
                for (long p = 0; p < s.p; p++) memcpy(panel + p * n, of_known + (f * s.p + p) * all, 4 * n);
                product(0, q, n, s.p, s.along_w.at + f * s.p * q, 1, q, panel, n, first + f * q * n, n);
            }
            for (long w = 0; w < x.width; w++)
                product(0, x.height, n, s.rows, s.along_h.at, 1, x.height, first + w * n, x.width * n, of_x + w * x.w, x.h);
        }
        free(first);
    }
    return failed;
}
