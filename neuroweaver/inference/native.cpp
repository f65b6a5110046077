// The engine's own kernels for CPUs: what a step of the Llama family does between two matrix products, and products
// with 8-bit weights. Plain C functions, compiled once per machine by native.py, which says what the arguments are.
//
// Rows lie end to end. T tokens, I inputs, O outputs, H query heads, K key heads, D channels of a head.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int GROUP = 32;  // inputs that share a scale
#if defined(__AVX512F__)
constexpr int TILE = 16;  // outputs that are computed together
#else
constexpr int TILE = 8;
#endif
constexpr int QUADS = GROUP / 4;

typedef float Floats __attribute__((vector_size(4 * TILE)));
typedef int32_t Ints __attribute__((vector_size(4 * TILE)));

// A group of a tile: weight = least + scale * level. Four inputs of an output lie together, as the dot products want.
struct Weights {
    uint8_t levels[QUADS][TILE][4];
    float scale[TILE], least[TILE];
};

#if defined(__AVX512VNNI__)
constexpr int LEVELS = 255;
constexpr int ROWS = 8;  // rows that are computed together
inline Ints dot(Ints sum, const uint8_t* levels, int32_t four) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(levels), _mm512_set1_epi32(four));
}
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
constexpr int LEVELS = 255;
constexpr int ROWS = 4;
inline Ints dot(Ints sum, const uint8_t* levels, int32_t four) {
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_loadu_si256((const __m256i*)levels), _mm256_set1_epi32(four));
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
// Two products are added in 16 bits, which 120 * 127 * 2 does not overflow. 120 levels hold 16 exactly, as 255 do.
constexpr int LEVELS = 120;
constexpr int ROWS = 4;
inline Ints dot(Ints sum, const uint8_t* levels, int32_t four) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_loadu_si256((const __m256i*)levels), _mm256_set1_epi32(four));
    return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#else
constexpr int LEVELS = 255;
constexpr int ROWS = 4;
inline Ints dot(Ints sum, const uint8_t* levels, int32_t four) {
    int8_t x[4];
    std::memcpy(x, &four, 4);
    for (int o = 0; o < TILE; o++)
        for (int j = 0; j < 4; j++) sum[o] += levels[4 * o + j] * x[j];
    return sum;
}
#endif

inline int32_t four(const int8_t* from) {
    int32_t found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

inline Floats load(const float* from) {
    Floats found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

// A row in 16 bits, one scale per group: x = scale * (256 * high + low). 8 bits would lose the small channels beside
// the few that are far larger than the rest. `sum` is of a group's x.
struct Row {
    const int8_t *high, *low;
    const float *scale, *sum;
};

void quantise(const float* x_I, int inputs, int8_t* high, int8_t* low, float* scale, float* sum) {
    for (int g = 0; g < inputs / GROUP; g++) {
        const float* x = x_I + g * GROUP;
        float largest = 0;
#pragma omp simd reduction(max : largest)
        for (int i = 0; i < GROUP; i++) largest = std::fmax(largest, std::fabs(x[i]));
        const float times = largest > 0 ? 127 / largest : 0;
        int total = 0;
#pragma omp simd reduction(+ : total)
        for (int i = 0; i < GROUP; i++) {
            const float level = x[i] * times, whole = std::nearbyint(level);
            const int rest = std::min(127, (int)std::nearbyint((level - whole) * 256));
            high[g * GROUP + i] = (int8_t)(int)whole;
            low[g * GROUP + i] = (int8_t)rest;
            total += 256 * (int)whole + rest;
        }
        scale[g] = largest / (127 * 256);
        sum[g] = scale[g] * total;
    }
}

template <int N>
inline void multiply(const Weights* tile, int groups, const Row* rows, float* y, int outputs, int width) {
    Floats found[N] = {};
    for (int g = 0; g < groups; g++) {
        const Weights& weights = tile[g];
        Ints high[N] = {}, low[N] = {};
        for (int q = 0; q < QUADS; q++)
            for (int n = 0; n < N; n++) {
                high[n] = dot(high[n], weights.levels[q][0], four(rows[n].high + g * GROUP + 4 * q));
                low[n] = dot(low[n], weights.levels[q][0], four(rows[n].low + g * GROUP + 4 * q));
            }
        const Floats scale = load(weights.scale), least = load(weights.least);
        for (int n = 0; n < N; n++) {
            const Floats levels = __builtin_convertvector((high[n] << 8) + low[n], Floats);
            found[n] += levels * (scale * rows[n].scale[g]) + least * rows[n].sum[g];
        }
    }
    for (int n = 0; n < N; n++) std::memcpy(y + (size_t)n * outputs, &found[n], sizeof(float) * width);
}

inline float to_float(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
    uint32_t bits = (rest + (112u << 10)) << 13;
    if (rest >= 0x7c00u) bits = (rest << 13) | 0x7f800000u;
    float found;
    if (rest < 0x0400u) found = std::ldexp((float)rest, -24), std::memcpy(&bits, &found, 4);
    bits |= sign;
    std::memcpy(&found, &bits, 4);
    return found;
#endif
}
inline float to_float(float x) { return x; }

template <typename Number>
inline Floats widen(const Number* from) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Number) == 2) return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
    if constexpr (sizeof(Number) == 2) return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#endif
    Floats found = {};
    for (int o = 0; o < TILE; o++) found[o] = to_float(from[o]);
    return found;
}

}  // namespace

extern "C" {

// What an adapter adds to some outputs, from `column` on: y += (x A) B, then y *= gain where there is one. The rank is a
// multiple of TILE; rows of B and `gain` are `padded` long, a multiple of TILE too.
struct LoraPiece {
    const void *a_IR, *b_RO;
    const float* gain_O;
    int32_t rank, inputs, column, width, padded;
};

int64_t nw_packed_bytes(int64_t outputs, int64_t inputs) {
    return (outputs + TILE - 1) / TILE * (inputs / GROUP) * (int64_t)sizeof(Weights);
}

void nw_pack(const float* w_OI, int64_t outputs, int64_t inputs, Weights* packed) {
    const int64_t tiles = (outputs + TILE - 1) / TILE, groups = inputs / GROUP;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tiles; t++)
        for (int64_t g = 0; g < groups; g++) {
            Weights& into = packed[t * groups + g];
            std::memset(&into, 0, sizeof into);
            for (int o = 0; o < TILE && t * TILE + o < outputs; o++) {
                const float* w = w_OI + (t * TILE + o) * inputs + g * GROUP;
                float low = w[0], high = w[0];
                for (int i = 1; i < GROUP; i++) low = std::fmin(low, w[i]), high = std::fmax(high, w[i]);
                const float step = (high - low) / LEVELS;
                for (int i = 0; i < GROUP; i++)
                    into.levels[i / 4][o][i % 4] = step > 0 ? (uint8_t)std::nearbyint((w[i] - low) / step) : 0;
                into.scale[o] = step;
                into.least[o] = low;
            }
        }
}

void nw_product(const float* x_TI, int64_t tokens, int64_t inputs, const Weights* packed, int64_t outputs, float* y_TO) {
    static thread_local std::vector<int8_t> levels;
    static thread_local std::vector<float> scales;
    const int64_t groups = inputs / GROUP, tiles = (outputs + TILE - 1) / TILE;
    levels.resize(2 * tokens * inputs);
    scales.resize(2 * tokens * groups);
    int8_t *high = levels.data(), *low = high + tokens * inputs;
    float *scale = scales.data(), *sum = scale + tokens * groups;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++)
            quantise(x_TI + t * inputs, inputs, high + t * inputs, low + t * inputs, scale + t * groups,
                     sum + t * groups);
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles; tile++) {
            const Weights* weights = packed + tile * groups;
            const int width = (int)std::min<int64_t>(TILE, outputs - tile * TILE);
            for (int64_t t = 0; t < tokens;) {
                Row rows[ROWS];
                const int n = (int)std::min<int64_t>(ROWS, tokens - t);
                for (int r = 0; r < n; r++)
                    rows[r] = {high + (t + r) * inputs, low + (t + r) * inputs, scale + (t + r) * groups,
                               sum + (t + r) * groups};
                float* y = y_TO + t * outputs + tile * TILE;
                if (n == ROWS) {
                    multiply<ROWS>(weights, groups, rows, y, outputs, width);
                    t += ROWS;
                } else if (n >= 4) {
                    multiply<4>(weights, groups, rows, y, outputs, width);
                    t += 4;
                } else if (n >= 2) {
                    multiply<2>(weights, groups, rows, y, outputs, width);
                    t += 2;
                } else {
                    multiply<1>(weights, groups, rows, y, outputs, width);
                    t += 1;
                }
            }
        }
    }
}

void nw_rms_norm(const float* x_TI, int64_t tokens, int64_t inputs, const float* weight_I, float epsilon, float* y_TI) {
#pragma omp parallel for schedule(static) if (tokens > 4)
    for (int64_t t = 0; t < tokens; t++) {
        const float* x = x_TI + t * inputs;
        float* y = y_TI + t * inputs;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < inputs; i++) squares += x[i] * x[i];
        const float times = 1 / std::sqrt(squares / inputs + epsilon);
#pragma omp simd
        for (int64_t i = 0; i < inputs; i++) y[i] = x[i] * times * weight_I[i];
    }
}

// `x` holds a gate and a value for each output.
void nw_silu_times(const float* x_T2O, int64_t tokens, int64_t outputs, float* y_TO) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        const float *gate = x_T2O + 2 * t * outputs, *value = gate + outputs;
        float* y = y_TO + t * outputs;
#pragma omp simd
        for (int64_t i = 0; i < outputs; i++) y[i] = gate[i] / (1 + expf(-gate[i])) * value[i];
    }
}
}

namespace {

constexpr int TOGETHER = 4;  // rows that an adapter's weights are read for at once

// h = x A for N rows, TILE ranks from `r` on.
template <int N, typename Number>
inline void into_rank(const LoraPiece& piece, const float* x, int r, float* h) {
    const Number* a = (const Number*)piece.a_IR + r;
    Floats sums[N][2] = {};
    for (int i = 0; i < piece.inputs; i++) {
        const Floats column = widen(a + (int64_t)i * piece.rank);
        for (int n = 0; n < N; n++) sums[n][i % 2] += column * x[(int64_t)n * piece.inputs + i];
    }
    for (int n = 0; n < N; n++) {
        const Floats found = sums[n][0] + sums[n][1];
        std::memcpy(h + (int64_t)n * piece.rank + r, &found, sizeof found);
    }
}

// y = (y + h B) gain for N rows, TILE outputs from `o` on.
template <int N, typename Number>
inline void out_of_rank(const LoraPiece& piece, const float* h, int o, float* y, int64_t outputs) {
    const Number* b = (const Number*)piece.b_RO + o;
    const size_t bytes = sizeof(float) * std::max(0, std::min(TILE, piece.width - o));
    Floats found[N] = {};
    for (int n = 0; n < N; n++) std::memcpy(&found[n], y + n * outputs, bytes);
    for (int r = 0; r < piece.rank; r++) {
        const Floats row = widen(b + (int64_t)r * piece.padded);
        for (int n = 0; n < N; n++) found[n] += row * h[(int64_t)n * piece.rank + r];
    }
    for (int n = 0; n < N; n++) {
        if (piece.gain_O) found[n] *= load(piece.gain_O + o);
        std::memcpy(y + n * outputs, &found[n], bytes);
    }
}

template <typename Number>
void lora(const LoraPiece* const* pieces, const int32_t* counts, const int32_t* starts, const int32_t* sizes,
          int64_t adapters, const float* x_TI, float* y_TO, int64_t outputs) {
    static thread_local std::vector<float> inner;
    int64_t room = 0;
    for (int64_t n = 0; n < adapters; n++)
        for (int p = 0; p < counts[n]; p++) room += (int64_t)sizes[n] * pieces[n][p].rank;
    inner.resize(room);
    float* all = inner.data();
#pragma omp parallel
    {
        float* h_TR = all;
        for (int64_t n = 0; n < adapters; n++)
            for (int p = 0; p < counts[n]; p++) {
                const LoraPiece& piece = pieces[n][p];
                const int blocks = piece.rank / TILE, whole = sizes[n] / TOGETHER, parts = whole + sizes[n] % TOGETHER;
#pragma omp for schedule(static) nowait
                for (int64_t task = 0; task < (int64_t)parts * blocks; task++) {
                    const int part = task / blocks, r = task % blocks * TILE;
                    const int64_t t = part < whole ? part * TOGETHER : whole * TOGETHER + part - whole;
                    const float* x = x_TI + (starts[n] + t) * piece.inputs;
                    if (part < whole)
                        into_rank<TOGETHER, Number>(piece, x, r, h_TR + t * piece.rank);
                    else
                        into_rank<1, Number>(piece, x, r, h_TR + t * piece.rank);
                }
                h_TR += (int64_t)sizes[n] * piece.rank;
            }
#pragma omp barrier
        h_TR = all;
        for (int64_t n = 0; n < adapters; n++)
            for (int p = 0; p < counts[n]; p++) {
                const LoraPiece& piece = pieces[n][p];
#pragma omp for schedule(static) nowait
                for (int o = 0; o < piece.padded; o += TILE) {
                    float* y = y_TO + starts[n] * outputs + piece.column + o;
                    int64_t t = 0;
                    for (; t + TOGETHER <= sizes[n]; t += TOGETHER)
                        out_of_rank<TOGETHER, Number>(piece, h_TR + t * piece.rank, o, y + t * outputs, outputs);
                    for (; t < sizes[n]; t++)
                        out_of_rank<1, Number>(piece, h_TR + t * piece.rank, o, y + t * outputs, outputs);
                }
                h_TR += (int64_t)sizes[n] * piece.rank;
            }
    }
}

// One token's queries of one key head, on the keys and values of its row up to itself.
template <int D, int G>
void attend(const float* q_GD, const float* keys, const float* values, int64_t length, float* score_GS, float* out_GD,
            int channels, int group) {
    const int d_count = D ? D : channels, g_count = G ? G : group;
    const float times = 1 / std::sqrt((float)d_count);
    for (int64_t s = 0; s < length; s++)
        for (int g = 0; g < g_count; g++) {
            const float *key = keys + s * d_count, *q = q_GD + g * d_count;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int d = 0; d < d_count; d++) sum += q[d] * key[d];
            score_GS[g * length + s] = sum * times;
        }
    for (int g = 0; g < g_count; g++) {
        float* score = score_GS + g * length;
        float largest = score[0], total = 0;
#pragma omp simd reduction(max : largest)
        for (int64_t s = 0; s < length; s++) largest = std::fmax(largest, score[s]);
#pragma omp simd reduction(+ : total)
        for (int64_t s = 0; s < length; s++) {
            score[s] = expf(score[s] - largest);
            total += score[s];
        }
        float* out = out_GD + g * d_count;
        const float share = 1 / total;
        for (int d = 0; d < d_count; d++) out[d] = 0;
        for (int64_t s = 0; s < length; s++) {
            const float weight = score[s] * share;
            const float* value = values + s * d_count;
#pragma omp simd
            for (int d = 0; d < d_count; d++) out[d] += weight * value[d];
        }
    }
}

using Attend = void (*)(const float*, const float*, const float*, int64_t, float*, float*, int, int);

Attend pick(int64_t channels, int64_t group) {
    if (channels == 64 && group == 3) return attend<64, 3>;
    if (channels == 64) return attend<64, 0>;
    if (channels == 128) return attend<128, 0>;
    return attend<0, 0>;
}

}  // namespace

extern "C" {

// `sizes[n]` rows from `starts[n]` on, by the `counts[n]` pieces of adapter n. `halves` tells that A and B are fp16.
void nw_lora(const LoraPiece* const* pieces, const int32_t* counts, const int32_t* starts, const int32_t* sizes,
             int64_t adapters, int32_t halves, const float* x_TI, float* y_TO, int64_t outputs) {
    const auto add = halves ? lora<uint16_t> : lora<float>;
    add(pieces, counts, starts, sizes, adapters, x_TI, y_TO, outputs);
}

// Turn queries and keys by their positions, keep keys and values in their row's slot, and attend.
void nw_attend(float* qkv_TXD, int64_t tokens, int64_t heads, int64_t key_heads, int64_t channels, const float* cos_PD,
               const float* sin_PD, const int64_t* slots_T, const int64_t* positions_T, float* keys_SKCD,
               float* values_SKCD, int64_t capacity, float* out_THD) {
    const int64_t all = heads + 2 * key_heads, group = heads / key_heads, half = channels / 2;
    const Attend attend_one = pick(channels, group);
#pragma omp parallel
    {
        static thread_local std::vector<float> scores;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) {
            const float *cos = cos_PD + positions_T[t] * channels, *sin = sin_PD + positions_T[t] * channels;
            float* row = qkv_TXD + t * all * channels;
            for (int64_t h = 0; h < heads + key_heads; h++) {
                float* x = row + h * channels;
#pragma omp simd
                for (int64_t d = 0; d < half; d++) {
                    const float one = x[d], other = x[d + half];
                    x[d] = one * cos[d] - other * sin[d];
                    x[d + half] = other * cos[d + half] + one * sin[d + half];
                }
            }
            for (int64_t k = 0; k < key_heads; k++) {
                const int64_t at = ((slots_T[t] * key_heads + k) * capacity + positions_T[t]) * channels;
                std::memcpy(keys_SKCD + at, row + (heads + k) * channels, 4 * channels);
                std::memcpy(values_SKCD + at, row + (heads + key_heads + k) * channels, 4 * channels);
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tokens * key_heads; task++) {
            const int64_t t = task / key_heads, k = task % key_heads, length = positions_T[t] + 1;
            const int64_t at = (slots_T[t] * key_heads + k) * capacity * channels;
            if ((int64_t)scores.size() < group * length) scores.resize(group * length);
            attend_one(qkv_TXD + (t * all + k * group) * channels, keys_SKCD + at, values_SKCD + at, length,
                       scores.data(), out_THD + (t * heads + k * group) * channels, channels, group);
        }
    }
}
}
