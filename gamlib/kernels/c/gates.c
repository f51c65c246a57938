/* Both gates and their gradients.

   Maps are rows of C channels, one for each position, which lie where strides of N, H and W say. A block of rows goes
   through the whole MLP and its gate, forward or backward, before the next one is read: what lies between never leaves
   the cache, sigmoids are computed anew in the backward pass, and each map is read or written once. */

#include "common.h"

/* w [rows, columns] into [rows or more, `wide`], filled up with zeros */
static void copied(const float *w, long rows, long columns, float *found, long high, long wide) {
    memset(found, 0, 4 * high * wide);
    for (long i = 0; i < rows; i++) memcpy(found + i * wide, w + i * columns, 4 * columns);
}

/* w [rows, columns] into [columns or more, `wide`], turned, filled up with zeros */
static void transposed(const float *w, long rows, long columns, float *found, long high, long wide) {
    memset(found, 0, 4 * high * wide);
    long i = 0;
    for (; i + 4 <= rows; i += 4) {
        long j = 0;
        for (; j + 4 <= columns; j += 4) turned(w + i * columns + j, columns, found + j * wide + i, wide);
        for (; j < columns; j++)
            for (long p = i; p < i + 4; p++) found[j * wide + p] = w[p * columns + j];
    }
    for (; i < rows; i++)
        for (long j = 0; j < columns; j++) found[j * wide + i] = w[i * columns + j];
}

/* gated = x sigmoid(w2 relu(w1 x + b1) + b2); hidden [rows, hidden] is what relu gives. x is rows one after the other.
   Where `gradient` is, of_spatial = gradient gated sigmoid'(spatial) too, and gated may be missing. */
int channel_gate(size s, array x, mlp w, map gated, array hidden, map gradient, map spatial, map of_spatial) {
    long rows = rows_of(s), c = s.channels, h = filled(w.hidden), block = block_of(rows);
    if (!fills(s) || !is_mlp(c, w) || !holds(x, rows * c) || !holds(hidden, rows * h)) return UNFIT;
    if (gated.at ? !is_map(s, gated) : !gradient.at) return UNFIT;
    if (gradient.at && !(is_map(s, gradient) && is_map(s, spatial) && is_map(s, of_spatial))) return UNFIT;
    float *w1t = aligned_alloc(64, 4 * (2 * c + 1) * h), *w2t = w1t + c * h, *b1 = w2t + h * c;
    if (!w1t) return FULL;
    transposed(w.w1.at, w.hidden, c, w1t, c, h);
    transposed(w.w2.at, c, w.hidden, w2t, h, c);
    copied(w.b1.at, 1, w.hidden, b1, 1, h);
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *logits = aligned_alloc(64, 4 * BLOCK * c);
        failed = !logits;
#pragma omp for schedule(static)
        for (long start = 0; start < rows; start += block) {
            if (failed) continue;
            long m = rows - start < block ? rows - start : block;
            const float *of_x = x.at + start * c;
            float *of_h = hidden.at + start * h;
            product(0, m, h, c, of_x, c, 1, w1t, h, of_h, h);
            for (long i = 0; i < m; i++)
                for (long j = 0; j < h; j++) {
                    float y = of_h[i * h + j] + b1[j];
                    of_h[i * h + j] = y < 0 ? 0 : y; /* NaN stays */
                }
            product(0, m, c, h, of_h, h, 1, w2t, c, logits, c);
            place at = find(s, start);
            for (long i = 0; i < m; i++, advance(s, &at)) {
                float *out = gated.at ? row(gated, at) : NULL, *g = NULL, *t = NULL, *of_t = NULL;
                if (gradient.at) g = row(gradient, at), t = row(spatial, at), of_t = row(of_spatial, at);
                for (long j = 0; j < c; j += LANES) {
                    vector y = VECTOR(of_x + i * c + j) * sigmoid(VECTOR(logits + i * c + j) + VECTOR(w.b2.at + j));
                    if (out) VECTOR(out + j) = y;
                    if (!g) continue;
                    vector gate = sigmoid(VECTOR(t + j));
                    VECTOR(of_t + j) = VECTOR(g + j) * y * gate * (1 - gate);
                }
            }
        }
        free(logits);
    }
    free(w1t);
    return failed;
}

/* The gradients of `channel_gate`. That of gated is `gradient`, and, where `further` is, gradient + further
   sigmoid(spatial). of_x is rows one after the other; those of the weights lie as these do. */
int channel_gate_gradients(size s, array x, mlp w, array hidden, map gradient, map further, map spatial, array of_x,
                           mlp of_w) {
    long rows = rows_of(s), c = s.channels, h = filled(w.hidden), block = block_of(rows);
    long numbers = (2 * h + 1) * c + h;
    if (!fills(s) || !is_mlp(c, w) || of_w.hidden != w.hidden || !is_mlp(c, of_w)) return UNFIT;
    if (!holds(x, rows * c) || !holds(of_x, rows * c) || !holds(hidden, rows * h)) return UNFIT;
    if (!is_map(s, gradient) || (further.at && !(is_map(s, further) && is_map(s, spatial)))) return UNFIT;
    int threads = omp_get_max_threads(), failed = 0;
    float *w1 = aligned_alloc(64, 4 * (3 * h * c + threads * numbers)), *w2 = w1 + h * c, *w2t = w2 + c * h;
    float *sums = w2t + h * c; /* of a thread: of_w1 [h, c], of_w2 [h, c], of_b2, of_b1 */
    if (!w1) return FULL;
    copied(w.w1.at, w.hidden, c, w1, h, c);
    copied(w.w2.at, c, w.hidden, w2, c, h);
    transposed(w.w2.at, c, w.hidden, w2t, h, c);
    memset(sums, 0, 4 * threads * numbers);
#pragma omp parallel reduction(| : failed) num_threads(threads)
    {
        float *logits = aligned_alloc(64, 4 * (BLOCK + 3) * (c + h)), *of_hidden = logits + BLOCK * c;
        float *part = of_hidden + BLOCK * h; /* of the gradients of both biases: of a block, then of all of them */
        double *total = (double *)(part + c + h);
        float *part_w1 = sums + omp_get_thread_num() * numbers, *part_w2 = part_w1 + h * c, *biases = part_w2 + h * c;
        failed = !logits;
        if (logits) memset(total, 0, 8 * (c + h));
#pragma omp for schedule(static)
        for (long start = 0; start < rows; start += block) {
            if (failed) continue;
            long m = rows - start < block ? rows - start : block;
            const float *of_h = hidden.at + start * h, *from_x = x.at + start * c;
            float *to_x = of_x.at + start * c;
            product(0, m, c, h, of_h, h, 1, w2t, c, logits, c);
            memset(part, 0, 4 * (c + h));
            place at = find(s, start);
            for (long i = 0; i < m; i++, advance(s, &at)) {
                const float *g = row(gradient, at), *f = NULL, *t = NULL;
                if (further.at) f = row(further, at), t = row(spatial, at);
                for (long j = 0; j < c; j += LANES) {
                    vector gate = sigmoid(VECTOR(logits + i * c + j) + VECTOR(w.b2.at + j)), of_gated = VECTOR(g + j);
                    if (f) of_gated += VECTOR(f + j) * sigmoid(VECTOR(t + j));
                    VECTOR(to_x + i * c + j) = of_gated * gate;
                    vector of_logit = of_gated * VECTOR(from_x + i * c + j) * gate * (1 - gate);
                    VECTOR(logits + i * c + j) = of_logit;
                    VECTOR(part + j) += of_logit;
                }
            }
            product(0, m, h, c, logits, c, 1, w2, h, of_hidden, h);
            for (long i = 0; i < m; i++)
                for (long j = 0; j < h; j++) {
                    float y = of_h[i * h + j] > 0 ? of_hidden[i * h + j] : 0;
                    of_hidden[i * h + j] = y, part[c + j] += y;
                }
            for (long j = 0; j < c + h; j++) total[j] += part[j];
            product(1, m, c, h, of_hidden, h, 1, w1, c, to_x, c);
            product(1, h, c, m, of_h, 1, h, logits, c, part_w2, c);
            product(1, h, c, m, of_hidden, 1, h, from_x, c, part_w1, c);
        }
        for (long j = 0; logits && j < c + h; j++) biases[j] = total[j];
        free(logits);
    }
    for (int t = 1; t < threads; t++)
        for (long j = 0; j < numbers; j++) sums[j] += sums[t * numbers + j];
    float *sum_w2 = sums + h * c, *sum_b2 = sum_w2 + h * c;
    memcpy(of_w.w1.at, sums, 4 * w.hidden * c);
    for (long i = 0; i < c; i++)
        for (long j = 0; j < w.hidden; j++) of_w.w2.at[i * w.hidden + j] = sum_w2[j * c + i];
    memcpy(of_w.b2.at, sum_b2, 4 * c);
    memcpy(of_w.b1.at, sum_b2 + c, 4 * w.hidden);
    free(w1);
    return failed;
}

/* out = x sigmoid(logits); where `gradient` is, that of this by the logits instead: gradient x sigmoid'(logits). */
int gate(size s, map x, map logits, map gradient, map out) {
    long rows = rows_of(s);
    if (!fills(s) || !is_map(s, x) || !is_map(s, logits) || !is_map(s, out)) return UNFIT;
    if (gradient.at && !is_map(s, gradient)) return UNFIT;
#pragma omp parallel for schedule(static)
    for (long start = 0; start < rows; start += BLOCK) {
        place at = find(s, start);
        for (long i = start; i < rows && i < start + BLOCK; i++, advance(s, &at)) {
            const float *of_x = row(x, at), *of_logits = row(logits, at), *g = gradient.at ? row(gradient, at) : NULL;
            float *to = row(out, at);
            for (long j = 0; j < s.channels; j += LANES) {
                vector y = sigmoid(VECTOR(of_logits + j));
                VECTOR(to + j) = g ? VECTOR(g + j) * VECTOR(of_x + j) * y * (1 - y) : VECTOR(of_x + j) * y;
            }
        }
    }
    return 0;
}
