/* Transforms of `fourier.py` along H and along W in one go: what lies between stays in the cache.

   A map is [H][W] positions of `runs` times `run` columns: a run's lie one after the other. Some of a run's columns go
   through both products at once; what is known of a map is [F][P][runs run], a matrix [P, Q] along W for each f. */

#include "common.h"

enum { CACHED = 1 << 17 /* numbers between both products */ };

typedef struct {
    float *at;
    long h, w, run; /* steps */
} positions;
typedef struct {
    long h, w, runs, run; /* of a map */
    long rows, f, p;      /* along H [rows, H], rows = 2 F; along W F times [P, 2 W] */
    const float *along_h, *along_w;
} waves;

static long width(waves s) {
    long most = CACHED / (s.rows * s.w) / FILL * FILL;
    return most < FILL ? FILL : most < 4 * FILL ? most : 4 * FILL;
}

/* known[f] = along_w[f] (along_h x)[2 f, 2 f + 1]; 0, or 1 where there is no memory; run is a multiple of FILL */
int transform(waves s, positions x, float *known) {
    long columns = width(s), chunks = (s.run + columns - 1) / columns, all = s.runs * s.run, q = 2 * s.w;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *first = aligned_alloc(64, 4 * s.rows * s.w * columns);
        failed = !first;
#pragma omp for schedule(static)
        for (long task = 0; task < s.runs * chunks; task++) {
            if (failed) continue;
            long start = task % chunks * columns, n = s.run - start < columns ? s.run - start : columns;
            const float *from = x.at + task / chunks * x.run + start;
            float *to = known + task / chunks * s.run + start;
            for (long w = 0; w < s.w; w++)
                product(0, s.rows, n, s.h, s.along_h, s.h, 1, from + w * x.w, x.h, first + w * n, s.w * n);
            for (long f = 0; f < s.f; f++)
                product(0, s.p, n, q, s.along_w + f * s.p * q, q, 1, first + f * q * n, n, to + f * s.p * all, all);
        }
        free(first);
    }
    return failed;
}

/* The transpose of `transform`: x from known. */
int restore(waves s, const float *known, positions x) {
    long columns = width(s), chunks = (s.run + columns - 1) / columns, all = s.runs * s.run, q = 2 * s.w;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *first = aligned_alloc(64, 4 * (s.rows * s.w + s.p) * columns), *panel = first + s.rows * s.w * columns;
        failed = !first;
#pragma omp for schedule(static)
        for (long task = 0; task < s.runs * chunks; task++) {
            if (failed) continue;
            long start = task % chunks * columns, n = s.run - start < columns ? s.run - start : columns;
            const float *from = known + task / chunks * s.run + start;
            float *to = x.at + task / chunks * x.run + start;
            for (long f = 0; f < s.f; f++) {
                for (long p = 0; p < s.p; p++) memcpy(panel + p * n, from + (f * s.p + p) * all, 4 * n);
                product(0, q, n, s.p, s.along_w + f * s.p * q, 1, q, panel, n, first + f * q * n, n);
            }
            for (long w = 0; w < s.w; w++)
                product(0, s.h, n, s.rows, s.along_h, 1, s.h, first + w * n, s.w * n, to + w * x.w, x.h);
        }
        free(first);
    }
    return failed;
}
