/* The critic's small products and element-wise passes on a CPU with AVX2, in float32.
 *
 * PyTorch's operations go through memory once each; here a head's scores (43 x 43) are made, used
 * and dropped in a core's first-level cache. Compiled by cpu_kernels.py if gcc is available; tests
 * compare it with the plain expressions of attention.py and kernels.py.
 *
 * Names: B batch, L tokens, H heads, K width of one head. Widths are whole vectors. No sum depends
 * on the number of threads.
 */

#include <math.h>
#include <string.h>

#define LANES 8
#define MOST_TOKENS 128
#define MOST_WIDTH 64
#define ROOM (MOST_TOKENS * MOST_WIDTH)

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef unsigned uvec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec x) { *(vec *)to = x; }
INLINE vec all(float x) { return x - (vec){0}; }

/* The larger of both, and x if x is NaN. */
INLINE vec at_least(vec x, vec low) {
    ivec below = x < low;
    return (vec)((below & (ivec)low) | (~below & (ivec)x));
}

/* e^x to within one or two units in the last place, for x of at most 88; from -87 down, e^-87. For
 * NaN with unusual bits the result may be a number.
 * x = n ln 2 + r: adding 1.5 * 2^23 rounds to the integer n and leaves it in the low bits; e^r by
 * its polynomial on |r| <= ln 2 / 2 (Cephes, expf). */
INLINE vec exp_of(vec x) {
    const float round = 12582912.0f;
    x = at_least(x, all(-87.0f));
    vec shifted = x * 1.44269504088896341f + round;
    vec n = shifted - round;
    vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return (vec)((uvec)p + ((uvec)shifted << 23));
}

/* Matrix products C = A B of a few dozen rows and columns.
 *
 * A's element (m, k) is a[m * a_row + k * a_depth], so that a transposed A needs no copy; B's rows
 * and C's are contiguous. Sums of `rows` x `vecs` vectors stay in registers. */
INLINE void tile(const int rows, const int vecs, long depth, const float *a, long a_row,
                 long a_depth, const float *b, long b_row, float *c, long c_row) {
    vec sum[4][4];
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < vecs; n++) sum[m][n] = (vec){0};
    for (long k = 0; k < depth; k++) {
        vec row[4];
        for (int n = 0; n < vecs; n++) row[n] = load(b + k * b_row + n * LANES);
        for (int m = 0; m < rows; m++) {
            vec x = all(a[m * a_row + k * a_depth]);
            for (int n = 0; n < vecs; n++) sum[m][n] += x * row[n];
        }
    }
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < vecs; n++) store(c + m * c_row + n * LANES, sum[m][n]);
}

/* All rows of one panel of columns; the last tile overlaps the one before it. */
INLINE void panel(const int rows, const int vecs, long count, long depth, const float *a,
                  long a_row, long a_depth, const float *b, long b_row, float *c, long c_row) {
    if (count < rows) {
        for (long m = 0; m < count; m++)
            tile(1, vecs, depth, a + m * a_row, a_row, a_depth, b, b_row, c + m * c_row, c_row);
        return;
    }
    for (long start = 0; start < count; start += rows) {
        long m = start < count - rows ? start : count - rows;
        tile(rows, vecs, depth, a + m * a_row, a_row, a_depth, b, b_row, c + m * c_row, c_row);
    }
}

static void multiply(long rows, long columns, long depth, const float *a, long a_row, long a_depth,
                     const float *b, long b_row, float *c, long c_row) {
    for (long left = columns / LANES; left > 0;) {
        if (left % 3 == 0) {
            panel(4, 3, rows, depth, a, a_row, a_depth, b, b_row, c, c_row);
            left -= 3, b += 3 * LANES, c += 3 * LANES;
        } else if (left >= 4) {
            panel(3, 4, rows, depth, a, a_row, a_depth, b, b_row, c, c_row);
            left -= 4, b += 4 * LANES, c += 4 * LANES;
        } else if (left == 2) {
            panel(4, 2, rows, depth, a, a_row, a_depth, b, b_row, c, c_row);
            left -= 2, b += 2 * LANES, c += 2 * LANES;
        } else {
            panel(4, 1, rows, depth, a, a_row, a_depth, b, b_row, c, c_row);
            left -= 1, b += LANES, c += LANES;
        }
    }
}

/* x (count, K) times `scale`, transposed to (K, padded), zeros beyond. */
static void transpose(long count, long width, const float *x, float scale, float *out,
                      long padded) {
    for (long k = 0; k < width; k++) {
        for (long i = 0; i < count; i++) out[k * padded + i] = x[i * width + k] * scale;
        for (long i = count; i < padded; i++) out[k * padded + i] = 0;
    }
}

/* Copy the rows of one head, `row` apart, next to each other: apart, they would map to the same few
 * sets of a cache. */
static void gather(long count, long width, const float *x, long row, float *out) {
    for (long i = 0; i < count; i++)
        for (long n = 0; n < width; n += LANES) store(out + i * width + n, load(x + i * row + n));
}

/* Attention of one head. Matrices of keys by queries, (L, padded), so that a vector holds one key's
 * weights for several queries and no sum runs across a vector. */

/* Softmax over the keys in place; the logarithm of its sum and, unless NULL, the entropy. */
static void softmax(long length, long padded, float *s, float *lse, float *entropy) {
    for (long i = 0; i < padded; i += LANES) {
        vec most = load(s + i), sum = {0}, weighted = {0};
        for (long j = 1; j < length; j++) most = at_least(load(s + j * padded + i), most);
        for (long j = 0; j < length; j++) {
            vec t = at_least(load(s + j * padded + i) - most, all(-87.0f));
            vec p = exp_of(t);
            sum += p;
            weighted += p * t;
            store(s + j * padded + i, p);
        }
        sum += 0 * weighted;  /* NaN if a score is */
        vec part = 1 / sum;
        for (long j = 0; j < length; j++)
            store(s + j * padded + i, load(s + j * padded + i) * part);
        for (long n = 0; n < LANES && i + n < length; n++) {
            float log_sum = logf(sum[n]);
            lse[i + n] = most[n] + log_sum;
            if (entropy) entropy[i + n] = log_sum - weighted[n] * part[n];
        }
    }
}

/* A thread's scratch memory for one head; not on its stack, which may be small. */
static _Thread_local float q[ROOM], k[ROOM], v[ROOM], dmixed[ROOM], packed[ROOM];
static _Thread_local float p[MOST_TOKENS * MOST_TOKENS], ds[MOST_TOKENS * MOST_TOKENS];

/* Attention of qkv (B, L, parts, H, K).
 *
 * parts 3: mixed values, out (B, L, H, K). parts 2, without values: the first query's weights, out
 * (B, H, L). Always the log-sum-exp and, unless NULL, the entropy of each query, (B, H, L). */
void attention_forward(long batch, long length, long heads, long width, long parts,
                       const float *qkv, float *out, float *lse, float *entropy, int threads) {
    long padded = (length + LANES - 1) / LANES * LANES;
    long row = parts * heads * width;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long task = 0; task < batch * heads; task++) {
        const float *from = qkv + task / heads * length * row + task % heads * width;
        gather(length, width, from, row, q);
        gather(length, width, from + heads * width, row, k);
        transpose(length, width, q, 1 / sqrtf(width), packed, padded);
        multiply(length, padded, width, k, width, 1, packed, padded, p, padded);
        softmax(length, padded, p, lse + task * length, entropy ? entropy + task * length : NULL);
        if (parts == 2) {
            for (long j = 0; j < length; j++) out[task * length + j] = p[j * padded];
            continue;
        }
        gather(length, width, from + 2 * heads * width, row, v);
        float *mixed = out + (task / heads * length * heads + task % heads) * width;
        multiply(length, width, length, p, 1, padded, v, width, mixed, heads * width);
    }
}

/* s: scores, then weights p. dp: their gradients, then those of the scores before 1 / sqrt(K):
 * ds = p (dp - sum over keys of p dp - de (log p + e)) / sqrt(K). */
static void score_gradient(long length, long padded, float *s, float *dp, const float *lse,
                           const float *entropy, const float *dentropy, float scale) {
    for (long i = 0; i < padded; i += LANES) {
        vec shift = {0}, e = {0}, de = {0}, delta = {0};
        for (long n = 0; n < LANES && i + n < length; n++) {
            shift[n] = lse[i + n];
            if (dentropy) e[n] = entropy[i + n], de[n] = dentropy[i + n];
        }
        for (long j = 0; j < length; j++) {
            vec log_p = load(s + j * padded + i) - shift;
            vec p = exp_of(log_p), g = load(dp + j * padded + i);
            delta += p * g;
            store(dp + j * padded + i, g - de * (log_p + e));
            store(s + j * padded + i, p);
        }
        for (long j = 0; j < length; j++) {
            vec p = load(s + j * padded + i);
            store(dp + j * padded + i, p * (load(dp + j * padded + i) - delta) * scale);
        }
    }
}

/* Gradient of attention_forward's qkv, from its results and the gradients of out and entropy. */
void attention_backward(long batch, long length, long heads, long width, long parts,
                        const float *qkv, const float *lse, const float *entropy,
                        const float *dout, const float *dentropy, float *dqkv, int threads) {
    long padded = (length + LANES - 1) / LANES * LANES;
    long row = parts * heads * width, out_row = heads * width;
    float scale = 1 / sqrtf(width);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long task = 0; task < batch * heads; task++) {
        long first = task / heads * length * row + task % heads * width, at = task * length;
        const float *from = qkv + first;
        float *dq = dqkv + first, *dk = dq + heads * width, *dv = dk + heads * width;
        gather(length, width, from, row, q);
        gather(length, width, from + heads * width, row, k);
        transpose(length, width, q, scale, packed, padded);
        multiply(length, padded, width, k, width, 1, packed, padded, p, padded);
        if (parts == 3) {
            const float *given = dout + (task / heads * length * heads + task % heads) * width;
            gather(length, width, from + 2 * heads * width, row, v);
            gather(length, width, given, out_row, dmixed);
            transpose(length, width, dmixed, 1, packed, padded);
            multiply(length, padded, width, v, width, 1, packed, padded, ds, padded);
        } else {
            memset(ds, 0, length * padded * sizeof(float));
            for (long j = 0; j < length; j++) ds[j * padded] = dout[at + j];
        }
        score_gradient(length, padded, p, ds, lse + at, dentropy ? entropy + at : NULL,
                       dentropy ? dentropy + at : NULL, scale);
        multiply(length, width, length, ds, 1, padded, k, width, dq, row);
        multiply(length, width, length, ds, padded, 1, q, width, dk, row);
        if (parts == 3) multiply(length, width, length, p, padded, 1, dmixed, width, dv, row);
    }
}

/* gelu(x) = x / (1 + e^-w), w = x (LINEAR + CUBIC x^2), its tanh form; x is without its bias. */
#define LINEAR 1.5957691216057308f
#define CUBIC 0.07135481627260025f

INLINE vec gate_of(vec x) {
    vec w = x * (LINEAR + CUBIC * x * x);
    vec gate = 1.0f / (1.0f + exp_of(-at_least(w, all(-87.0f))));
    return (vec)(~(w < -87.0f) & (ivec)gate);  /* 0 there: x may be -1e38: x * 1e-38 is not small */
}

/* out = gelu(x + bias) for x (rows, columns). */
void gelu_forward(long rows, long columns, const float *x, const float *bias, float *out,
                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j += LANES) {
            vec y = load(x + i * columns + j) + load(bias + j);
            store(out + i * columns + j, y * gate_of(y));
        }
}

/* dx *= gelu'(x + bias), and out = gelu(x + bias) again. */
void gelu_backward(long rows, long columns, const float *x, const float *bias, float *dx,
                   float *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j += LANES) {
            vec y = load(x + i * columns + j) + load(bias + j);
            vec gate = gate_of(y), activated = y * gate;
            vec slope = gate + activated * (1 - gate) * (LINEAR + 3 * CUBIC * y * y);
            store(out + i * columns + j, activated);
            store(dx + i * columns + j, load(dx + i * columns + j) * slope);
        }
}

/* out_bl = a_bl P_l + r_bl R_l + shift for a, r (B, L), P, R (L, C), shift (C): (B, L, C). */
void affine_forward(long batch, long length, long columns, const float *a, const float *r,
                    const float *p, const float *q, const float *shift, float *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < batch * length; row++) {
        const float *p_l = p + row % length * columns, *q_l = q + row % length * columns;
        for (long c = 0; c < columns; c += LANES)
            store(out + row * columns + c,
                  load(shift + c) + r[row] * load(q_l + c) + a[row] * load(p_l + c));
    }
}

/* Gradients of a and r: sums over C of the gradient dy times P_l and R_l. */
void affine_backward(long batch, long length, long columns, const float *dy, const float *p,
                     const float *q, float *da, float *dr, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < batch * length; row++) {
        const float *p_l = p + row % length * columns, *q_l = q + row % length * columns;
        vec sum_p = {0}, sum_q = {0};
        for (long c = 0; c < columns; c += LANES) {
            vec g = load(dy + row * columns + c);
            sum_p += g * load(p_l + c);
            sum_q += g * load(q_l + c);
        }
        da[row] = dr[row] = 0;
        for (int n = 0; n < LANES; n++) da[row] += sum_p[n], dr[row] += sum_q[n];
    }
}

/* Gradients of P, R (L, C), and of shift, split by token, (L, C): sums over the batch. */
void affine_tables_backward(long batch, long length, long columns, const float *dy, const float *a,
                            const float *r, float *dp, float *dq, float *dshift, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long l = 0; l < length; l++) {
        float *p = dp + l * columns, *q = dq + l * columns, *s = dshift + l * columns;
        memset(p, 0, columns * sizeof(float));
        memset(q, 0, columns * sizeof(float));
        memset(s, 0, columns * sizeof(float));
        for (long row = l; row < batch * length; row += length)
            for (long c = 0; c < columns; c += LANES) {
                vec g = load(dy + row * columns + c);
                store(p + c, load(p + c) + a[row] * g);
                store(q + c, load(q + c) + r[row] * g);
                store(s + c, load(s + c) + g);
            }
    }
}
