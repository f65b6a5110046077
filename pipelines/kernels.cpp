// What a training step of the Llama family does between two matrix products, forward and backward, in one pass over
// memory each. Plain C functions in fp32, compiled once per machine; kernels.py says what the arguments are.
//
// N tokens lie end to end. D channels of a head, I inputs, O outputs.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int TILE = 16, ACROSS = 4;  // floats of a register, and registers of a row that are computed together
#else
constexpr int TILE = 8, ACROSS = 2;
#endif
constexpr int ROWS = 6;      // rows that are computed together
constexpr int QUERIES = 48;  // queries whose scores are held at once, a multiple of ROWS

typedef float Floats __attribute__((vector_size(4 * TILE)));
typedef int32_t Ints __attribute__((vector_size(4 * TILE)));

inline Floats load(const float* from) {
    Floats found;
    std::memcpy(&found, from, sizeof found);
    return found;
}
inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

inline float total(Floats x) {
    float sum = 0;
    for (int i = 0; i < TILE; i++) sum += x[i];
    return sum;
}
inline float largest(Floats x) {
    float found = x[0];
    for (int i = 1; i < TILE; i++) found = std::max(found, x[i]);
    return found;
}

// 2^n e^r with |r| <= ln 2 / 2, e^r by its series: off by less than three units in the last place.
inline Floats exponential(Floats x) {
    x = x < -87.0f ? Floats{} - 87.0f : x;
    x = x > 88.0f ? Floats{} + 88.0f : x;
    const float shift = 12582912.0f;  // beyond it, floats are whole numbers
    const Floats shifted = x * 1.44269504f + shift, n = shifted - shift;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats series = r * (1 / 5040.0f) + 1 / 720.0f;
    series = series * r + 1 / 120.0f;
    series = series * r + 1 / 24.0f;
    series = series * r + 1 / 6.0f;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
    return series * (Floats)exponent;
}

inline int64_t whole_tiles(int64_t floats) { return (floats + TILE - 1) / TILE * TILE; }

// A matrix that is read by element: (r, i) lies at `at[r * row + i * step]`, so a transposed one costs nothing.
struct Left {
    const float* at;
    int64_t row, step;
};

template <int R, int C>
inline void block(Left a, const float* b, int64_t b_row, int inner, float* y, int64_t y_row, bool add) {
    Floats sums[R][C] = {};
    for (int i = 0; i < inner; i++) {
        Floats across[C];
        for (int c = 0; c < C; c++) across[c] = load(b + i * b_row + c * TILE);
        for (int r = 0; r < R; r++) {
            const float x = a.at[r * a.row + i * a.step];
            for (int c = 0; c < C; c++) sums[r][c] += across[c] * x;
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) {
            float* to = y + r * y_row + c * TILE;
            store(to, add ? load(to) + sums[r][c] : sums[r][c]);
        }
}

template <int R>
inline void strip(Left a, const float* b, int64_t b_row, int columns, int inner, float* y, int64_t y_row, bool add) {
    int c = 0;
    for (; c + ACROSS * TILE <= columns; c += ACROSS * TILE)
        block<R, ACROSS>(a, b + c, b_row, inner, y + c, y_row, add);
    for (; c < columns; c += TILE) block<R, 1>(a, b + c, b_row, inner, y + c, y_row, add);
}

// y = a b, or y += a b: `rows` by `columns`, a multiple of TILE, over `inner`.
void multiply(Left a, const float* b, int64_t b_row, int rows, int columns, int inner, float* y, int64_t y_row,
              bool add) {
    for (; rows >= ROWS; rows -= ROWS, a.at += ROWS * a.row, y += ROWS * y_row)
        strip<ROWS>(a, b, b_row, columns, inner, y, y_row, add);
    switch (rows) {
        case 5: return strip<5>(a, b, b_row, columns, inner, y, y_row, add);
        case 4: return strip<4>(a, b, b_row, columns, inner, y, y_row, add);
        case 3: return strip<3>(a, b, b_row, columns, inner, y, y_row, add);
        case 2: return strip<2>(a, b, b_row, columns, inner, y, y_row, add);
        case 1: return strip<1>(a, b, b_row, columns, inner, y, y_row, add);
    }
}

// Pairs (i, i + D/2) turned by their token's angles, times `scale`; `back` turns them the other way.
inline void turn(const float* x, const float* cos_D, const float* sin_D, int channels, float scale, bool back,
                 float* y) {
    const int half = channels / 2;
    const float sign = back ? -scale : scale;
#pragma omp simd
    for (int i = 0; i < half; i++) {
        const float first = x[i], second = x[i + half];
        y[i] = first * cos_D[i] * scale - second * sin_D[i] * sign;
        y[i + half] = second * cos_D[i + half] * scale + first * sin_D[i + half] * sign;
    }
}

// A token's queries, keys and values lie side by side in `qkv`: all heads' queries, then the keys, then the values.
struct Heads {
    int queries, keys, channels;
    int64_t width() const { return (int64_t)(queries + 2 * keys) * channels; }
    int64_t query(int head) const { return (int64_t)head * channels; }
    int64_t key(int head) const { return (int64_t)(queries + head) * channels; }
    int64_t value(int head) const { return (int64_t)(queries + keys + head) * channels; }
};

// The queries of one head for `many` tokens from `token` on, turned and times `scale`.
inline void turn_queries(const Heads& heads, int head, int64_t token, int many, const float* qkv, const float* cos_ND,
                         const float* sin_ND, float scale, float* queries_TD) {
    const int channels = heads.channels;
    for (int t = 0; t < many; t++) {
        const float* from = qkv + (token + t) * heads.width() + heads.query(head);
        const int64_t angle = (token + t) * channels;
        turn(from, cos_ND + angle, sin_ND + angle, channels, scale, false, queries_TD + t * channels);
    }
}

// What a row's own tokens look at: the first `prefix` tokens of all, then from `start` on up to themselves.
struct Row {
    int64_t start;
    int prefix, own;
    int seen() const { return prefix + own; }
    int64_t token(int place) const { return place < prefix ? place : start + place - prefix; }
};

// Row 0 is the prefix by itself.
std::vector<Row> rows_of(const int64_t* lengths_B, int64_t rows, int64_t prefix) {
    std::vector<Row> found{{0, 0, (int)prefix}};
    int64_t start = prefix;
    for (int64_t b = 0; b < rows; start += lengths_B[b++]) found.push_back({start, (int)prefix, (int)lengths_B[b]});
    return found;
}

// The keys and values that a row sees, for one key head. `keys_SD` are turned; transposed ones have `width` columns.
struct Seen {
    int64_t width;
    std::vector<float> keys_SD, keys_DS, values_SD, values_DS;

    void fill(const Row& row, const Heads& heads, int head, const float* qkv, const float* cos_ND,
              const float* sin_ND) {
        const int channels = heads.channels;
        width = whole_tiles(row.seen());
        keys_SD.resize((size_t)row.seen() * channels);
        values_SD.resize(keys_SD.size());
        keys_DS.assign((size_t)channels * width, 0);
        values_DS.assign(keys_DS.size(), 0);
        for (int s = 0; s < row.seen(); s++) {
            const int64_t token = row.token(s);
            const float* from = qkv + token * heads.width();
            float *key = &keys_SD[(size_t)s * channels], *value = &values_SD[(size_t)s * channels];
            turn(from + heads.key(head), cos_ND + token * channels, sin_ND + token * channels, channels, 1, false, key);
            std::memcpy(value, from + heads.value(head), sizeof(float) * channels);
            for (int d = 0; d < channels; d++) {
                keys_DS[d * width + s] = key[d];
                values_DS[d * width + s] = value[d];
            }
        }
    }
};

}  // namespace

extern "C" {

// y = x / rms(x) * weight; `inverse_N` keeps 1 / rms(x).
void nw_norm(const float* x_NI, const float* weight_I, float epsilon, int64_t tokens, int64_t inputs, float* y_NI,
             float* inverse_N) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < tokens; n++) {
        const float* x = x_NI + n * inputs;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < inputs; i++) squares += x[i] * x[i];
        const float inverse = inverse_N[n] = 1 / std::sqrt(squares / inputs + epsilon);
#pragma omp simd
        for (int64_t i = 0; i < inputs; i++) y_NI[n * inputs + i] = x[i] * inverse * weight_I[i];
    }
}

void nw_norm_back(const float* dy_NI, const float* x_NI, const float* weight_I, const float* inverse_N, int64_t tokens,
                  int64_t inputs, float* dx_NI) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < tokens; n++) {
        const float *x = x_NI + n * inputs, *dy = dy_NI + n * inputs;
        const float inverse = inverse_N[n];
        float along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t i = 0; i < inputs; i++) along += dy[i] * weight_I[i] * x[i];
        along *= inverse * inverse / inputs;
#pragma omp simd
        for (int64_t i = 0; i < inputs; i++) dx_NI[n * inputs + i] = inverse * (dy[i] * weight_I[i] - x[i] * along);
    }
}

// y = silu(gate) value; a token's gates lie before its values. O is a multiple of 16.
void nw_gate(const float* x_N2O, int64_t tokens, int64_t outputs, float* y_NO) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < tokens; n++) {
        const float* x = x_N2O + 2 * n * outputs;
        for (int64_t i = 0; i < outputs; i += TILE) {
            const Floats gate = load(x + i);
            store(y_NO + n * outputs + i, gate / (1.0f + exponential(-gate)) * load(x + outputs + i));
        }
    }
}

void nw_gate_back(const float* dy_NO, const float* x_N2O, int64_t tokens, int64_t outputs, float* dx_N2O) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < tokens; n++) {
        const float* x = x_N2O + 2 * n * outputs;
        float* dx = dx_N2O + 2 * n * outputs;
        for (int64_t i = 0; i < outputs; i += TILE) {
            const Floats gate = load(x + i), dy = load(dy_NO + n * outputs + i);
            const Floats open = 1.0f / (1.0f + exponential(-gate));
            store(dx + i, dy * load(x + outputs + i) * open * (1.0f + gate * (1.0f - open)));
            store(dx + outputs + i, dy * gate * open);
        }
    }
}

// Attention of packed rows, with rotary positions. `lse_NH` keeps the logarithm of each softmax's denominator.
void nw_attend(const float* qkv, const float* cos_ND, const float* sin_ND, const int64_t* lengths_B, int64_t count,
               int64_t prefix, int64_t query_heads, int64_t key_heads, int64_t channels, float scale, float* y_NHD,
               float* lse_NH) {
    const Heads heads{(int)query_heads, (int)key_heads, (int)channels};
    const std::vector<Row> rows = rows_of(lengths_B, count, prefix);
    const int group = heads.queries / heads.keys, D = heads.channels;
    const int64_t tasks = (int64_t)rows.size() * heads.keys, y_width = query_heads * channels;
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = tasks - 1; task >= 0; task--) {
        const Row& row = rows[task / heads.keys];
        const int head = task % heads.keys;
        static thread_local Seen seen;
        static thread_local std::vector<float> queries, scores;
        if (!row.own) continue;
        seen.fill(row, heads, head, qkv, cos_ND, sin_ND);
        queries.resize(QUERIES * D);
        scores.resize(QUERIES * seen.width);
        for (int h = head * group; h < (head + 1) * group; h++)
            for (int first = 0; first < row.own; first += QUERIES) {
                const int many = std::min(QUERIES, row.own - first), visible = row.prefix + first + many;
                const int64_t token = row.start + first, columns = whole_tiles(visible);
                turn_queries(heads, h, token, many, qkv, cos_ND, sin_ND, scale, queries.data());
                multiply({queries.data(), D, 1}, seen.keys_DS.data(), seen.width, many, columns, D, scores.data(),
                         seen.width, false);
                for (int t = 0; t < many; t++) {
                    float* score = &scores[t * seen.width];
                    const int own = row.prefix + first + t + 1;  // of them; the rest is hidden
                    std::fill(score + own, score + columns, -INFINITY);
                    Floats most = load(score);
                    for (int s = TILE; s < columns; s += TILE) most = most > load(score + s) ? most : load(score + s);
                    const float top = largest(most);
                    Floats sums = {};
                    for (int s = 0; s < columns; s += TILE) {
                        const Floats found = exponential(load(score + s) - top);
                        store(score + s, found);
                        sums += found;
                    }
                    std::fill(score + own, score + columns, 0.0f);
                    const float sum = total(sums);
                    lse_NH[(token + t) * query_heads + h] = top + std::log(sum);
                    for (int s = 0; s < columns; s += TILE) store(score + s, load(score + s) * (1 / sum));
                }
                multiply({scores.data(), seen.width, 1}, seen.values_SD.data(), D, many, D, visible,
                         y_NHD + token * y_width + h * D, y_width, false);
            }
    }
}

void nw_attend_back(const float* dy_NHD, const float* y_NHD, const float* lse_NH, const float* qkv,
                    const float* cos_ND, const float* sin_ND, const int64_t* lengths_B, int64_t count, int64_t prefix,
                    int64_t query_heads, int64_t key_heads, int64_t channels, float scale, float* dqkv) {
    const Heads heads{(int)query_heads, (int)key_heads, (int)channels};
    const std::vector<Row> rows = rows_of(lengths_B, count, prefix);
    const int group = heads.queries / heads.keys, D = heads.channels;
    const int64_t tasks = (int64_t)rows.size() * heads.keys, y_width = query_heads * channels;
    std::vector<float> of_prefix(2 * (size_t)tasks * prefix * D);  // by task: the prefix's keys, then its values
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = tasks - 1; task >= 0; task--) {
        const Row& row = rows[task / heads.keys];
        const int head = task % heads.keys;
        static thread_local Seen seen;
        static thread_local std::vector<float> queries, weights, gradients, dqueries, dkeys, dvalues;
        if (!row.own) continue;
        seen.fill(row, heads, head, qkv, cos_ND, sin_ND);
        queries.resize(QUERIES * D);
        dqueries.resize(queries.size());
        weights.resize(QUERIES * seen.width);
        gradients.resize(weights.size());
        dkeys.assign((size_t)row.seen() * D, 0);
        dvalues.assign(dkeys.size(), 0);
        for (int h = head * group; h < (head + 1) * group; h++)
            for (int first = 0; first < row.own; first += QUERIES) {
                const int many = std::min(QUERIES, row.own - first), visible = row.prefix + first + many;
                const int64_t token = row.start + first, columns = whole_tiles(visible);
                const float *dy = dy_NHD + token * y_width + h * D, *y = y_NHD + token * y_width + h * D;
                turn_queries(heads, h, token, many, qkv, cos_ND, sin_ND, scale, queries.data());
                multiply({queries.data(), D, 1}, seen.keys_DS.data(), seen.width, many, columns, D, weights.data(),
                         seen.width, false);
                multiply({dy, y_width, 1}, seen.values_DS.data(), seen.width, many, columns, D, gradients.data(),
                         seen.width, false);
                for (int t = 0; t < many; t++) {
                    float *weight = &weights[t * seen.width], *gradient = &gradients[t * seen.width];
                    const int own = row.prefix + first + t + 1;
                    std::fill(weight + own, weight + columns, -INFINITY);
                    const float lse = lse_NH[(token + t) * query_heads + h];
                    Floats products = {};
                    for (int d = 0; d < D; d += TILE) products += load(dy + t * y_width + d) * load(y + t * y_width + d);
                    const float mean = total(products);
                    for (int s = 0; s < columns; s += TILE) store(weight + s, exponential(load(weight + s) - lse));
                    std::fill(weight + own, weight + columns, 0.0f);
                    for (int s = 0; s < columns; s += TILE)
                        store(gradient + s, load(weight + s) * (load(gradient + s) - mean));
                }
                multiply({weights.data(), 1, seen.width}, dy, y_width, visible, D, many, dvalues.data(), D, true);
                multiply({gradients.data(), 1, seen.width}, queries.data(), D, visible, D, many, dkeys.data(), D, true);
                multiply({gradients.data(), seen.width, 1}, seen.keys_SD.data(), D, many, D, visible, dqueries.data(),
                         D, false);
                for (int t = 0; t < many; t++) {
                    const int64_t angle = (token + t) * D;
                    float* to = dqkv + (token + t) * heads.width() + heads.query(h);
                    turn(&dqueries[t * D], cos_ND + angle, sin_ND + angle, D, scale, true, to);
                }
            }
        const size_t shared = (size_t)row.prefix * D;
        float* of_mine = &of_prefix[2 * (size_t)task * prefix * D];
        std::copy_n(dkeys.data(), shared, of_mine);
        std::copy_n(dvalues.data(), shared, of_mine + shared);
        for (int t = 0; t < row.own; t++) {
            const int64_t token = row.start + t, angle = token * D;
            float* to = dqkv + token * heads.width();
            turn(&dkeys[shared + t * D], cos_ND + angle, sin_ND + angle, D, 1, true, to + heads.key(head));
            std::memcpy(to + heads.value(head), &dvalues[shared + t * D], sizeof(float) * D);
        }
    }
    // What all rows want of the prefix, always in the same order.
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < prefix; p++)
        for (int head = 0; head < heads.keys; head++) {
            std::vector<float> sum(D), turned(D);
            float *dkey = dqkv + p * heads.width() + heads.key(head), *dvalue = dkey + (heads.value(0) - heads.key(0));
            for (int64_t b = 1; b < (int64_t)rows.size(); b++) {
                const float* keys = &of_prefix[2 * (size_t)(b * heads.keys + head) * prefix * D];
                for (int d = 0; d < D; d++) sum[d] += keys[p * D + d];
                for (int d = 0; d < D; d++) dvalue[d] += keys[(prefix + p) * D + d];
            }
            turn(sum.data(), cos_ND + p * D, sin_ND + p * D, D, 1, true, turned.data());
            for (int d = 0; d < D; d++) dkey[d] += turned[d];
        }
}

// The loss of each row of logits against its label, in nats; the logits become the loss's gradient.
void nw_cross_entropy(float* logits_LV, const int64_t* labels_L, int64_t rows, int64_t words, float* loss_L) {
#pragma omp parallel for schedule(static)
    for (int64_t l = 0; l < rows; l++) {
        float* logits = logits_LV + l * words;
        float top = logits[0];
#pragma omp simd reduction(max : top)
        for (int64_t v = 0; v < words; v++) top = std::max(top, logits[v]);
        const float wanted = logits[labels_L[l]];
        const int64_t tiled = words / TILE * TILE;
        Floats sums = {};
        for (int64_t v = 0; v < tiled; v += TILE) {
            const Floats found = exponential(load(logits + v) - top);
            store(logits + v, found);
            sums += found;
        }
        float sum = total(sums);
        for (int64_t v = tiled; v < words; v++) sum += logits[v] = std::exp(logits[v] - top);
        loss_L[l] = top + std::log(sum) - wanted;
        const float inverse = 1 / sum;
#pragma omp simd
        for (int64_t v = 0; v < words; v++) logits[v] *= inverse;
        logits[labels_L[l]] -= 1;
    }
}
}
