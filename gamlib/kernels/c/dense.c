/* The whole block on maps smaller than the kernels, where calls would take longer than arithmetic.

   On a map of H x W only the middle (2H - 1) x (2W - 1) taps of a kernel ever meet it, one for each pair of an output
   and an input position. Maps are [N, H W, C] here, taps [T, C, h] or [T, h, C], T of them, with the hidden channels
   filled up to vectors. Every pair is one product with one tap's matrix, over all images. */

#include "common.h"

enum { SIDE = 7, CHUNK = 128 /* columns of a gradient that one thread sums */ };

/* A kernel of 7 x 7 taps, one after the other (`tap` is 1) or behind all channels: its memory, and steps in it. */
typedef struct {
    float *at;
    long hidden, channel, tap, numbers;
} kernel;

typedef struct {
    long hidden;
    kernel first, second; /* C -> hidden, hidden -> C */
} kernels;

/* What the backward pass needs, in one piece of memory: see `keep`. */
typedef struct {
    float *gated, *hidden, *squeezed, *logits; /* [N, H W, C or h] */
    float *k1_by_hidden, *k1_by_channel;       /* [T, C, h] and [T, h, C] */
    float *k2_by_hidden, *k2_by_channel;
} kept;

/* Whether its taps lie in its memory, and no further number does. */
static int is_kernel(kernel k, long hidden, long c) {
    long last = (hidden - 1) * k.hidden + (c - 1) * k.channel + (SIDE * SIDE - 1) * k.tap;
    int forward = k.hidden > 0 && k.channel > 0 && k.tap > 0;
    return k.at && forward && k.numbers == hidden * c * SIDE * SIDE && last == k.numbers - 1;
}

static int fit(size s, kernels k) {
    int small = 2 * s.h - 1 <= SIDE && 2 * s.w - 1 <= SIDE && k.hidden > 0;
    return fills(s) && small && is_kernel(k.first, k.hidden, s.channels) && is_kernel(k.second, k.hidden, s.channels);
}

static long taps_of(size s) { return (2 * s.h - 1) * (2 * s.w - 1); }

/* The tap of output position q for input position p, among the middle ones. */
static inline long tap(size s, long q, long p) {
    return (p / s.w - q / s.w + s.h - 1) * (2 * s.w - 1) + p % s.w - q % s.w + s.w - 1;
}

/* Where that tap is in a kernel of 7 x 7. */
static inline long in_kernel(size s, long t) {
    long row = t / (2 * s.w - 1) - s.h + 1, column = t % (2 * s.w - 1) - s.w + 1;
    return (row + SIDE / 2) * SIDE + column + SIDE / 2;
}

static kept keep(size s, long hidden, float *at, long *numbers) {
    long map = s.n * s.h * s.w, h = filled(hidden), matrix = s.channels * h, all = taps_of(s) * matrix;
    kept found = {.gated = at};
    found.logits = found.gated + map * s.channels, found.hidden = found.logits + map * s.channels;
    found.squeezed = found.hidden + map * h, found.k1_by_hidden = found.squeezed + map * h;
    found.k1_by_channel = found.k1_by_hidden + all, found.k2_by_hidden = found.k1_by_channel + all;
    found.k2_by_channel = found.k2_by_hidden + all;
    if (numbers) *numbers = 2 * map * (s.channels + h) + 4 * all;
    return found;
}

/* How many numbers `dense` keeps. */
long dense_keeps(size s, long hidden) {
    long numbers;
    keep(s, hidden, NULL, &numbers);
    return numbers;
}

/* Pairs of FILL channels and up to FILL hidden ones; those of a run follow each other in the kernel's memory. */
typedef struct {
    kernel of;
    long channels, hidden, channel, first, number, by_hidden; /* whether a run is of one channel's hidden ones */
} pairs;

static pairs pair(size s, kernels k, int second, long channel, long first) {
    long number = k.hidden - first < FILL ? k.hidden - first : FILL;
    return (pairs){second ? k.second : k.first, s.channels, k.hidden, channel, first, number, second};
}

static long runs(pairs r) { return r.by_hidden ? FILL : r.number; }
static long length(pairs r) { return r.by_hidden ? r.number : FILL; }
static long step(pairs r) { return r.by_hidden ? r.of.hidden : r.of.channel; }
static long begin(pairs r, long run) {
    long channel = r.channel + (r.by_hidden ? run : 0), hidden = r.first + (r.by_hidden ? 0 : run);
    return channel * r.of.channel + hidden * r.of.hidden;
}

/* Their taps into [T, C, h] and [T, h, C], where these are wanted. */
static void gather(size s, pairs r, float *by_hidden, float *by_channel) {
    long c = r.channels, h = filled(r.hidden);
    for (long t = 0; t < taps_of(s); t++) {
        float *wide = by_hidden + (t * c + r.channel) * h + r.first;
        float *narrow = by_channel + (t * h + r.first) * c + r.channel;
        for (long run = 0; run < runs(r); run++) {
            const float *from = r.of.at + begin(r, run) + in_kernel(s, t) * r.of.tap;
            for (long i = 0; i < length(r); i++) {
                long j = r.by_hidden ? run : i, o = r.by_hidden ? i : run;
                if (by_hidden) wide[j * h + o] = from[i * step(r)];
                if (by_channel) narrow[o * c + j] = from[i * step(r)];
            }
        }
        for (long o = r.number; o < FILL; o++)
            for (long j = 0; j < FILL; j++) {
                if (by_hidden) wide[j * h + o] = 0;
                if (by_channel) narrow[o * c + j] = 0;
            }
    }
}

/* The gradients of their taps, [T, h, C], into memory of zeros. */
static void scatter(size s, pairs r, const float *by_channel) {
    long c = r.channels, h = filled(r.hidden);
    for (long run = 0; run < runs(r); run++) {
        for (long t = 0; t < taps_of(s); t++) {
            const float *of_taps = by_channel + (t * h + r.first) * c + r.channel + run * (r.by_hidden ? 1 : c);
            float *at = r.of.at + begin(r, run) + in_kernel(s, t) * r.of.tap;
            for (long i = 0; i < length(r); i++) at[i * step(r)] = of_taps[i * (r.by_hidden ? c : 1)];
        }
    }
}

/* out[q] = sum over p of x[p] taps[q, p], or of x[p] taps[p, q] where it goes `back`; m images of [H W, from or to] */
static void meet(size s, int back, long m, long from, long to, const float *x, const float *taps, float *out) {
    long positions = s.h * s.w;
    for (long q = 0; q < positions; q++)
        for (long p = 0; p < positions; p++) {
            const float *matrix = taps + (back ? tap(s, p, q) : tap(s, q, p)) * from * to;
            if (p)
                product(1, m, to, from, x + p * from, positions * from, 1, matrix, to, out + q * to, positions * to);
            else
                product(0, m, to, from, x, positions * from, 1, matrix, to, out + q * to, positions * to);
        }
}

static map flat(size s, float *at) { return (map){at, s.h * s.w * s.channels, 1, s.w * s.channels, s.channels, s}; }

/* out = the block's map; all maps are [N, H W, C]. Without w.hidden there is no channel gate. */
int dense(size s, array x, mlp w, kernels k, int differentiates, array memory, array out) {
    long positions = s.h * s.w, c = s.channels, h = filled(k.hidden), block = block_of(s.n), map_of = rows_of(s) * c;
    if (!fit(s, k) || !holds(x, map_of) || !holds(out, map_of) || !holds(memory, dense_keeps(s, k.hidden))) return UNFIT;
    if (w.hidden && w.hidden != k.hidden) return UNFIT;
    kept y = keep(s, k.hidden, memory.at, NULL);
    if (!w.hidden)
        memcpy(y.gated, x.at, 4 * map_of);
    else {
        array hidden = {y.hidden, rows_of(s) * h};
        map none = {0};
        int failed = channel_gate(s, x, w, flat(s, y.gated), hidden, none, none, none);
        if (failed) return failed;
    }
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (long first = 0; first < c; first += FILL)
            for (long o = 0; o < h; o += FILL) {
                gather(s, pair(s, k, 0, first, o), y.k1_by_hidden, differentiates ? y.k1_by_channel : NULL);
                gather(s, pair(s, k, 1, first, o), differentiates ? y.k2_by_hidden : NULL, y.k2_by_channel);
            }
#pragma omp for schedule(static)
        for (long n = 0; n < s.n; n += block) {
            long m = s.n - n < block ? s.n - n : block, at = n * positions * c;
            float *squeezed = y.squeezed + n * positions * h;
            meet(s, 0, m, c, h, y.gated + at, y.k1_by_hidden, squeezed);
            for (long i = 0; i < m * positions * h; i++) squeezed[i] = squeezed[i] < 0 ? 0 : squeezed[i];
            meet(s, 0, m, h, c, squeezed, y.k2_by_channel, y.logits + at);
            for (long i = at; i < at + m * positions * c; i += LANES)
                VECTOR(out.at + i) = VECTOR(y.gated + i) * sigmoid(VECTOR(y.logits + i));
        }
    }
    return 0;
}

/* The gradients of `dense`, from what it kept; `workspace` is for as many numbers. */
int dense_gradients(size s, array x, mlp w, kernels k, array memory, array gradient, array workspace, array of_x, mlp of_w,
                    kernels of_k) {
    long positions = s.h * s.w, c = s.channels, h = filled(k.hidden), block = block_of(s.n), taps = taps_of(s);
    long numbers = k.hidden * SIDE * SIDE; /* of a kernel, for each of the C channels */
    long map_of = rows_of(s) * c, kept_of = dense_keeps(s, k.hidden);
    if (!fit(s, k) || !holds(x, map_of) || !holds(gradient, map_of) || !holds(of_x, map_of)) return UNFIT;
    if (!holds(memory, kept_of) || !holds(workspace, kept_of) || of_k.hidden != k.hidden || !fit(s, of_k)) return UNFIT;
    if (w.hidden && (w.hidden != k.hidden || of_w.hidden != w.hidden || !is_mlp(c, w) || !is_mlp(c, of_w))) return UNFIT;
    kept y = keep(s, k.hidden, memory.at, NULL);
    float *of_logits = workspace.at, *of_gated = of_logits + s.n * positions * c, *of_squeezed = of_gated + s.n * positions * c;
    float *of_taps[2] = {of_squeezed + s.n * positions * h, of_squeezed + s.n * positions * h + taps * c * h};
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (long n = 0; n < s.n; n += block) {
            long m = s.n - n < block ? s.n - n : block, at = n * positions * c, narrow = n * positions * h;
            for (long i = at; i < at + m * positions * c; i += LANES) {
                vector gate = sigmoid(VECTOR(y.logits + i));
                VECTOR(of_logits + i) = VECTOR(gradient.at + i) * VECTOR(y.gated + i) * gate * (1 - gate);
            }
            meet(s, 1, m, c, h, of_logits + at, y.k2_by_hidden, of_squeezed + narrow);
            for (long i = narrow; i < narrow + m * positions * h; i++)
                of_squeezed[i] = y.squeezed[i] <= 0 ? 0 : of_squeezed[i];
            meet(s, 1, m, h, c, of_squeezed + narrow, y.k1_by_channel, of_gated + at);
        }
#pragma omp for collapse(3) schedule(dynamic)
        for (int which = 0; which < 2; which++)
            for (long t = 0; t < taps; t++)
                for (long first = 0; first < c; first += CHUNK) {
                    long columns = c - first < CHUNK ? c - first : CHUNK, adds = 0;
                    const float *narrow = which ? y.squeezed : of_squeezed, *wide = which ? of_logits : y.gated;
                    float *found = of_taps[which] + t * h * c + first;
                    for (long q = 0; q < positions; q++)
                        for (long p = 0; p < positions; p++) {
                            if (tap(s, q, p) != t) continue;
                            const float *a = narrow + (which ? p : q) * h, *b = wide + (which ? q : p) * c + first;
                            if (adds++)
                                product(1, h, columns, s.n, a, 1, positions * h, b, positions * c, found, c);
                            else
                                product(0, h, columns, s.n, a, 1, positions * h, b, positions * c, found, c);
                        }
                }
        if (taps < SIDE * SIDE) {
#pragma omp for schedule(static)
            for (long i = 0; i < c; i++) {
                memset(of_k.first.at + i * numbers, 0, 4 * numbers);
                memset(of_k.second.at + i * numbers, 0, 4 * numbers);
            }
        }
#pragma omp for schedule(static)
        for (long first = 0; first < c; first += FILL)
            for (long o = 0; o < h; o += FILL) {
                scatter(s, pair(s, of_k, 0, first, o), of_taps[0]);
                scatter(s, pair(s, of_k, 1, first, o), of_taps[1]);
            }
    }
    array hidden = {y.hidden, rows_of(s) * h};
    if (w.hidden)
        return channel_gate_gradients(s, x, w, hidden, flat(s, of_gated), flat(s, gradient.at), flat(s, y.logits), of_x,
                                      of_w);
    for (long i = 0; i < map_of; i += LANES)
        VECTOR(of_x.at + i) = VECTOR(of_gated + i) + VECTOR(gradient.at + i) * sigmoid(VECTOR(y.logits + i));
    return 0;
}
