// What takes the time on a CPU, a second time, in C++: one step of the decoder, and the layers of the codec.
//
// A step, decoder.Decoder.forward() for one column, reads every weight once for a row or a few, so the memory's speed is
// the limit, if nothing else takes time: here all of it is one call, in which every product reads its weights in the
// order in which they lie, as they are saved: none are packed. Weights of fp32, bf16, fp16 or int8 become fp32 in
// registers, and so do keys and values of the cache; everything between them is fp32.
//
// The codec's limit is how fast the processor multiplies: a weight serves thousands of positions, so they are packed
// once, and its sums stay in registers. Its LSTM is the decoder's step again, but out of the last cache.
//
// native.py compiles this file; step.py and seanet.py call it.
//
// B rows, R rows that read text (the first ones), E width, H heads, D head width, F width of the feed-forward, L text
// tokens, K codebooks, V codes a codebook, O outputs and I inputs of a product, P steps in the cache before this one.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX__
#include <immintrin.h>
#endif

namespace native __attribute__((visibility("hidden"))) {

#if defined(__AVX512F__)
constexpr int N = 16;  // numbers of a vector
#elif defined(__AVX__)
constexpr int N = 8;
#else
constexpr int N = 4;
#endif
// Vectors of GCC and Clang, which have the operators of numbers.
typedef float Floats __attribute__((vector_size(4 * N)));
typedef int32_t Ints __attribute__((vector_size(4 * N)));
typedef uint32_t Words __attribute__((vector_size(4 * N)));
typedef uint16_t Halves __attribute__((vector_size(2 * N)));
typedef int8_t Bytes __attribute__((vector_size(N)));

struct Bf16 {
    uint16_t bits;  // the upper half of a float's
};

struct Fp16 {
    uint16_t bits;  // IEEE's half precision
};

template <class To, class From>
inline To as(const From& value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &value, sizeof to);
    return to;
}

template <class Vector>
inline Vector read(const void* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

inline float number(float value) { return value; }
inline float number(Bf16 value) { return as<float>(uint32_t(value.bits) << 16); }
inline float number(Fp16 value) {
    uint32_t size = uint32_t(value.bits & 0x7fff) << 13, sign = uint32_t(value.bits & 0x8000) << 16;
    // A multiplication makes the exponent fp32's, that of the least numbers as well; infinity and NaN have the largest.
    uint32_t bits = size >= 0x0f800000 ? size | 0x7f800000 : as<uint32_t>(as<float>(size) * 0x1p112f);
    return as<float>(bits | sign);
}
inline float number(int8_t value) { return value; }

inline Floats load(const float* from) { return read<Floats>(from); }
// On x86 with intrinsics: GCC does not find these instructions for the portable form, which is further below.
#if defined(__AVX512F__)
inline Floats load(const Bf16* from) {
    return Floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(read<__m256i>(from)), 16));
}
inline Floats load(const Fp16* from) { return Floats(_mm512_cvtph_ps(read<__m256i>(from))); }
inline Floats load(const int8_t* from) {
    return Floats(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
}
#elif defined(__AVX2__) && defined(__F16C__)
inline Floats load(const Bf16* from) {
    return Floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(read<__m128i>(from)), 16));
}
inline Floats load(const Fp16* from) { return Floats(_mm256_cvtph_ps(read<__m128i>(from))); }
inline Floats load(const int8_t* from) {
    return Floats(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))));
}
#else
inline Floats load(const Bf16* from) { return as<Floats>(__builtin_convertvector(read<Halves>(from), Words) << 16); }
inline Floats load(const Fp16* from) {
    float some[N];
    for (int i = 0; i < N; ++i) some[i] = number(from[i]);
    return load(some);
}
inline Floats load(const int8_t* from) { return __builtin_convertvector(read<Bytes>(from), Floats); }
#endif

inline void store(float* to, Floats vector) { std::memcpy(to, &vector, sizeof vector); }

inline float sum(Floats vector) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(vector);
#else
    float part[N];
    store(part, vector);
    for (int n = N / 2; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) part[i] += part[i + n];
    return part[0];
#endif
}

// The sums of four vectors, in order.
inline void sum_four(const Floats four[4], float out[4]) {
#if defined(__AVX__)
    __m256 half[4];
    for (int i = 0; i < 4; ++i) {
#if defined(__AVX512F__)
        __m256d upper = _mm512_extractf64x4_pd(_mm512_castps_pd(four[i]), 1);
        half[i] = _mm256_add_ps(_mm512_castps512_ps256(four[i]), _mm256_castpd_ps(upper));
#else
        half[i] = four[i];
#endif
    }
    __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
    for (int i = 0; i < 4; ++i) out[i] = sum(four[i]);
#endif
}

// e ** x to 2e-7 of it, for x <= 0; any number for others. Below -87 it is that of -87, 1.6e-38: what follows would not
// be normal numbers.
inline Floats exp(Floats x) {
    x = x < -87.0f ? Floats{} - 87.0f : x;
    // 2 ** whole * e ** rest. A number of this size has no bits for a fraction, and in the last ones its whole part: here
    // 127 more than that of x / ln 2, which is the exponent of 2 ** whole as a float has it.
    constexpr float SIZE = 1.5f * (1 << 23) + 127;
    Floats sized = x * 1.44269504f + SIZE, whole = sized - SIZE;
    Floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts, the first one exact
    Floats y = Floats{} + 0.00138145406f;  // of all polynomials with 1 + rest the nearest: off by 4e-9
    y = y * rest + 0.00836874545f;
    y = y * rest + 0.041668389f;
    y = y * rest + 0.166665211f;
    y = y * rest + 0.49999994f;
    y = y * rest + 1.0f;
    y = y * rest + 1.0f;
    return y * as<Floats>(as<Words>(sized) << 23);
}

// x Phi(x) with erf of Abramowitz and Stegun, 7.1.26, off by 1.5e-7 at most.
inline Floats gelu(Floats x) {
    Floats at = x * 0.70710678f, size = at < 0 ? -at : at;
    Floats t = 1.0f / (1.0f + 0.3275911f * size);
    Floats poly = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    Floats tail = poly * exp(-at * at);  // 1 - erf(|at|)
    return x * 0.5f * (at < 0 ? tail : 2.0f - tail);
}

inline Floats sigmoid(Floats x) {
    Floats e = exp(x < 0 ? x : -x);
    return (x < 0 ? e : Floats{} + 1.0f) / (1.0f + e);
}

inline Floats silu(Floats x) { return x * sigmoid(x); }

inline Floats tanh(Floats x) {
    Floats size = x < 0 ? -x : x, e = exp(-2.0f * size), square = x * x;
    Floats large = (1.0f - e) / (1.0f + e);
    // Near 0 nearly all of 1 - e would cancel out: there it is Taylor's.
    Floats small = x * (1.0f - square * (1.0f / 3 - square * (2.0f / 15 - square * (17.0f / 315))));
    return size < 0.2f ? small : x < 0 ? -large : large;
}

inline Floats activate(int kind, Floats x) { return kind == 0 ? gelu(x) : kind == 1 ? (x < 0 ? Floats{} : x) : silu(x); }

}  // namespace native

extern "C" {

struct Weight {  // (O, I)
    const void* numbers;
    const float* scales;  // of int8 alone: a factor for each output
};

struct Norm {
    const float *weight, *bias;
    float eps;
};

struct Layer {
    Norm self_norm, cross_norm, ffn_norm;
    Weight q, k, v, out, cross_q, cross_out, fc1, fc2;
    void *keys, *values;              // (B, H, capacity, D)
    float *key_scales, *value_scales;  // of int8 alone: (B, H, capacity)
    const float *text_keys, *text_values;  // (R, H, L, D)
};

struct Step {
    int64_t B, R, E, H, D, F, L, K, V, layers, capacity, P, threads;
    int64_t weights, cache;  // 0: fp32, 1: bf16, 2: int8, 3: fp16
    int64_t activation;      // 0: gelu, 1: relu, 2: silu
    float scale;             // of the scores
    const Layer* layer;
    Norm norm;
    const Weight* heads;
    const uint8_t* mask;  // (R, L), 0: may not be read; null: all may
    float* x;             // (B, E), the embeddings; they are overwritten
    float* logits;        // (B, K, V)
    float* scratch;       // scratch_size() numbers
};

// What a convolution makes of its rows, see native.py, and below where they are multiplied.
struct Convolution {
    const float* x;
    const float* other;   // what is added to x, number by number, `sign` times; null: nothing
    const float* weight;  // (ceil(O / PANEL), I, PANEL); if it is narrow, (O, I)
    const float* bias;    // (ceil(O / PANEL) * PANEL), or null: none
    const float* before;  // what the products are added to, rows `width` apart; null: nothing
    float* out;           // rows `width` apart; may be `before`
    float* minus;         // as out, where the products are subtracted from `before`; null: nowhere
    int64_t stride, I, O, width;
    float sign, alpha, minus_alpha;  // alphas of the ELU that follows; NaN: none does
    bool narrow;
};

}  // extern "C"

namespace native __attribute__((visibility("hidden"))) {

constexpr int64_t SIZES[] = {4, 2, 1, 2};  // bytes of a number, by kind
constexpr int OUTPUTS = 4;              // of a tile over many rows
constexpr int ROWS = N == 8 ? 2 : 4;    // of such a tile: as many sums as there are registers
constexpr int FEW = 4;                  // rows for which the weights are read in one stream
constexpr int64_t CHUNK = 48;           // rows of a product for which the weights are read once
constexpr int64_t BLOCK = 1024;         // inputs whose numbers stay in the first cache, over many rows
constexpr int64_t FIRST_CACHE = 16384;  // bytes of it for the numbers of x
constexpr int64_t LINE = 64;            // bytes of a line of the caches
// Where a stream is asked for before it is needed, in bytes: the processor itself stops at each page, and its own
// guesses reach two thirds of this.
constexpr int64_t AHEAD = 4096;

// Let memory bring a line into the second cache: the first one has the numbers of x.
inline void ask_for(const char* line) { __builtin_prefetch(line, 0, 1); }

// How weights of a kind are multiplied: numbers of x, numbers of a vector, and what sums are kept in.
template <class T>
struct Kind {
    using Weight = T;
    using Input = float;
    using Sums = Floats;
    static constexpr int WIDTH = N;
    static Floats input(const float* from) { return load(from); }
    static Floats weight(const T* from) { return load(from); }
    static void add(Floats& sums, Floats w, Floats x) { sums += w * x; }
    static Floats floats(Floats sums) { return sums; }
};

// Eight bits of the weight times sixteen of the input, where the processor adds such products in pairs: they are whole
// numbers, and twice as many to a vector as fp32 has. What rounding the input to sixteen bits changes is a hundredth
// of what rounding the weights to eight has.
#if defined(__AVX512BW__) || defined(__AVX2__)
#define HAS_WHOLE_NUMBERS 1
struct WholeKind {
    using Weight = int8_t;
    using Input = int16_t;
#if defined(__AVX512BW__)
    using Sums = __m512i;
    static Sums input(const int16_t* from) { return _mm512_loadu_si512(from); }
    static Sums weight(const int8_t* from) { return _mm512_cvtepi8_epi16(read<__m256i>(from)); }
#if defined(__AVX512VNNI__)
    static void add(Sums& sums, Sums w, Sums x) { sums = _mm512_dpwssd_epi32(sums, w, x); }
#else
    static void add(Sums& sums, Sums w, Sums x) { sums = _mm512_add_epi32(sums, _mm512_madd_epi16(w, x)); }
#endif
#else
    using Sums = __m256i;
    static Sums input(const int16_t* from) { return read<__m256i>(from); }
    static Sums weight(const int8_t* from) { return _mm256_cvtepi8_epi16(read<__m128i>(from)); }
    static void add(Sums& sums, Sums w, Sums x) { sums = _mm256_add_epi32(sums, _mm256_madd_epi16(w, x)); }
#endif
    static constexpr int WIDTH = sizeof(Sums) / 2, LANES = sizeof(Sums) / 4;
    // Each lane's sum is below 2 ** 31, that of all may not be.
    static Floats floats(Sums sums) { return __builtin_convertvector(as<Ints>(sums), Floats); }
    // The largest level of the input for which no sum of I products overflows.
    static int64_t levels(int64_t I) { return std::min<int64_t>(32767, INT32_MAX / (127 * ((I + LANES - 1) / LANES + 1))); }
};
#endif

// GCC would read the vector from memory again for each of its uses.
template <class Vector>
inline void keep_in_register(Vector& vector) {
#if defined(__AVX512F__)
    asm("" : "+v"(vector));
#elif defined(__AVX__)
    asm("" : "+x"(vector));
#endif
}

// The products of a tile: O outputs for each of R rows, over `I` of `stride` inputs. Each has U sums, as an addition
// must wait for the one before it. ahead: bytes from a weight to the one that will be needed next; 0: none is asked for.
template <class K, int O, int R, int U>
inline void tile(
    const typename K::Weight* w, const typename K::Input* x, int64_t I, int64_t stride, int64_t ahead,
    float out[OUTPUTS][FEW]) {
    typename K::Sums sums[O][R][U] = {};
    constexpr int64_t W = K::WIDTH;
    int64_t i = 0;
    for (; i + W * U <= I; i += W * U) {
        if (ahead)
            for (int o = 0; o < O; ++o)
                for (int64_t byte = 0; byte < W * U * int64_t(sizeof *w); byte += LINE)
                    ask_for(reinterpret_cast<const char*>(w + o * stride + i) + ahead + byte);
        for (int u = 0; u < U; ++u) {
            typename K::Sums of_x[R];
            for (int r = 0; r < R; ++r) {
                of_x[r] = K::input(x + r * stride + i + u * W);
                if (O > 1) keep_in_register(of_x[r]);
            }
            for (int o = 0; o < O; ++o) {
                typename K::Sums of_w = K::weight(w + o * stride + i + u * W);
                if (R > 1) keep_in_register(of_w);
                for (int r = 0; r < R; ++r) K::add(sums[o][r][u], of_w, of_x[r]);
            }
        }
    }
    for (; i + W <= I; i += W)  // what is left of the unrolled loop's numbers
        for (int r = 0; r < R; ++r)
            for (int o = 0; o < O; ++o) K::add(sums[o][r][0], K::weight(w + o * stride + i), K::input(x + r * stride + i));
    for (int r = 0; r < R; ++r) {
        Floats of_row[O];
        float total[O];
        for (int o = 0; o < O; ++o) {
            of_row[o] = K::floats(sums[o][r][0]);
            for (int u = 1; u < U; ++u) of_row[o] += K::floats(sums[o][r][u]);
        }
        if constexpr (O == 4)
            sum_four(of_row, total);
        else
            for (int o = 0; o < O; ++o) total[o] = sum(of_row[o]);
        for (int o = 0; o < O; ++o) {
            for (int64_t j = i; j < I; ++j) total[o] += number(w[o * stride + j]) * x[r * stride + j];
            out[o][r] = total[o];
        }
    }
}

// How many of the rows that are left have a tile: 3 have none, which is a tenth of the time that compiling takes.
inline int64_t rows_of_tile(int64_t left, int64_t most = FEW) { return left == 3 ? 2 : std::min(left, most); }

// One or two outputs for 1, 2 or 4 rows.
template <class K, int O>
inline void tile_of(
    int64_t rows, const typename K::Weight* w, const typename K::Input* x, int64_t I, int64_t stride, int64_t ahead,
    float out[OUTPUTS][FEW]) {
    if constexpr (O == 1)
        if (rows == 1) tile<K, 1, 1, 4>(w, x, I, stride, ahead, out);
    if (rows == 2) tile<K, O, 2, 2>(w, x, I, stride, ahead, out);
    if (rows == 4) tile<K, O, 4, 3 - O>(w, x, I, stride, ahead, out);
}

// Where the products of row r and output o go: to[r * stride + o], in place of what is there or added to it.
struct Target {
    float* to;
    int64_t stride;
    bool add;
};

// Outputs `begin` to `end` of x (rows, I) times W', for rows that a chunk may have; factors: of the rows of x.
template <class K>
void multiply_chunk(
    const Weight& weight, const typename K::Input* x, const float* factors, int64_t rows, int64_t I, int64_t begin,
    int64_t end, Target target) {
    auto numbers = static_cast<const typename K::Weight*>(weight.numbers);
    bool few = rows <= FEW, fits = rows * I * int64_t(sizeof *x) <= FIRST_CACHE;
    int64_t block = few ? I : BLOCK, outputs = !few ? OUTPUTS : fits ? 1 : 2, most = few ? FEW : ROWS;
    // Of one output after another the weights are one stream, of two at a time two.
    int64_t row = I * sizeof *numbers, ahead = few ? AHEAD + (outputs - 1) * row : outputs * row;
    for (int64_t i = 0; i < I; i += block)
        for (int64_t o = begin; o < end; o += outputs) {
            const typename K::Weight* w = numbers + o * I + i;
            int64_t many = std::min(outputs, end - o), inputs = std::min(block, I - i);
            for (int64_t r = 0, of_rows; r < rows; r += of_rows) {
                float out[OUTPUTS][FEW];
                of_rows = rows_of_tile(rows - r, most);
                int64_t from = r == 0 ? ahead : 0;
                const typename K::Input* of_x = x + r * I + i;
                if (many == OUTPUTS && of_rows == ROWS)
                    tile<K, OUTPUTS, ROWS, 1>(w, of_x, inputs, I, from, out);
                else if (few && many == 2 && of_rows > 1)
                    tile_of<K, 2>(of_rows, w, of_x, inputs, I, from, out);
                else
                    for (int64_t one = 0; one < many; ++one)
                        tile_of<K, 1>(of_rows, w + one * I, of_x, inputs, I, from, out + one);
                for (int64_t one = 0; one < many; ++one)
                    for (int64_t b = 0; b < of_rows; ++b) {
                        float value = out[one][b] * (weight.scales ? weight.scales[o + one] : 1.0f);
                        float* to = target.to + (r + b) * target.stride + o + one;
                        value *= factors ? factors[r + b] : 1.0f;
                        *to = value + (target.add || i > 0 ? *to : 0.0f);
                    }
            }
        }
}

// Round x (D) to whole numbers up to `levels`; returns the factor that makes them x again, NaN if one is not finite.
template <class Whole>
inline float round_to(int64_t levels, const float* x, int64_t D, Whole* to) {
    float largest = 1e-30f, nothing = 0;
    for (int64_t d = 0; d < D; ++d) {
        largest = std::max(largest, std::fabs(x[d]));
        nothing += x[d] * 0.0f;
    }
    if (nothing != 0) {
        std::fill(to, to + D, Whole(0));
        return NAN;
    }
    float factor = levels / largest;
    for (int64_t d = 0; d < D; ++d) to[d] = static_cast<Whole>(std::nearbyint(x[d] * factor));
    return largest / levels;
}

#ifdef HAS_WHOLE_NUMBERS
inline void multiply_whole_numbers(
    const Weight& weight, const float* x, int64_t rows, int64_t I, int64_t begin, int64_t end, Target target) {
    thread_local std::vector<int16_t> rounded;
    float factors[CHUNK];
    rounded.resize(std::max<size_t>(rounded.size(), std::min(CHUNK, rows) * I));
    for (int64_t first = 0; first < rows; first += CHUNK, x += CHUNK * I, target.to += CHUNK * target.stride) {
        int64_t many = std::min(CHUNK, rows - first);
        for (int64_t r = 0; r < many; ++r)
            factors[r] = round_to(WholeKind::levels(I), x + r * I, I, rounded.data() + r * I);
        multiply_chunk<WholeKind>(weight, rounded.data(), factors, many, I, begin, end, target);
    }
}
#endif

template <class T>
void multiply(const Weight& weight, const float* x, int64_t rows, int64_t I, int64_t begin, int64_t end, Target target) {
#ifdef HAS_WHOLE_NUMBERS
    if constexpr (std::is_same_v<T, int8_t>)
        multiply_whole_numbers(weight, x, rows, I, begin, end, target);
    else
#endif
        for (int64_t first = 0; first < rows; first += CHUNK, x += CHUNK * I, target.to += CHUNK * target.stride)
            multiply_chunk<Kind<T>>(weight, x, nullptr, std::min(CHUNK, rows - first), I, begin, end, target);
}

// native.py compiles this file twice at the same time, as two parts, which takes half as long: the second has these
// products, the first all else.
#if OBJECT == 2
#define IN_OBJECT_2 template
#else
#define IN_OBJECT_2 extern template
#endif
using Multiply = void(const Weight&, const float*, int64_t, int64_t, int64_t, int64_t, Target);
IN_OBJECT_2 Multiply multiply<float>;
IN_OBJECT_2 Multiply multiply<Bf16>;
IN_OBJECT_2 Multiply multiply<Fp16>;
IN_OBJECT_2 Multiply multiply<int8_t>;

}  // namespace native

#if OBJECT == 1

namespace native __attribute__((visibility("hidden"))) {

// By the numbers of Step: weights, and below append_and_attend() the cache.
constexpr Multiply* MULTIPLY[] = {multiply<float>, multiply<Bf16>, multiply<int8_t>, multiply<Fp16>};

struct Team {  // one thread's place among those of a parallel region
    int64_t own, all;
    void share(int64_t tasks, int64_t& begin, int64_t& end, int64_t unit = 1) const {
        int64_t units = (tasks + unit - 1) / unit;
        begin = std::min(tasks, units * own / all * unit);
        end = std::min(tasks, units * (own + 1) / all * unit);
    }
};

inline void wait_for_all() {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

// Every thread for itself: B rows cost less than waiting for others.
void normalise(const Norm& norm, const float* x, int64_t B, int64_t E, float* to) {
    for (int64_t b = 0; b < B; ++b, x += E, to += E) {
        double mean = 0, square = 0;
        for (int64_t e = 0; e < E; ++e) mean += x[e];
        mean /= E;
        for (int64_t e = 0; e < E; ++e) square += (x[e] - mean) * (x[e] - mean);
        float middle = mean, factor = 1 / std::sqrt(square / E + norm.eps);
        for (int64_t e = 0; e < E; ++e) to[e] = (x[e] - middle) * factor * norm.weight[e] + norm.bias[e];
    }
}

// Write what a head has made (D) into a cache; of int8 alone its scale as well.
inline void keep(const float* from, int64_t D, float* to, float*) { std::copy(from, from + D, to); }

inline void keep(const float* from, int64_t D, Bf16* to, float*) {
    for (int64_t d = 0; d < D; ++d) {
        uint32_t bits = as<uint32_t>(from[d]);
        bits += 0x7fff + (bits >> 16 & 1);  // to the nearest, ties to even
        to[d].bits = std::isnan(from[d]) ? 0x7fc0 : bits >> 16;
    }
}

inline void keep(const float* from, int64_t D, Fp16* to, float*) {
    int64_t first = 0;
#if defined(__AVX512F__)
    for (; first + N <= D; first += N) {
        __m256i halves = _mm512_cvtps_ph(__m512(load(from + first)), _MM_FROUND_TO_NEAREST_INT);
        std::memcpy(to + first, &halves, sizeof halves);
    }
#elif defined(__AVX2__) && defined(__F16C__)
    for (; first + N <= D; first += N) {
        __m128i halves = _mm256_cvtps_ph(__m256(load(from + first)), _MM_FROUND_TO_NEAREST_INT);
        std::memcpy(to + first, &halves, sizeof halves);
    }
#endif
    for (int64_t d = first; d < D; ++d) {
        float size = std::fabs(from[d]);
        uint32_t bits = as<uint32_t>(size);
        if (!(size < 65520.0f))  // which would be rounded to infinity
            bits = std::isnan(size) ? 0x7e00 : 0x7c00;
        else if (size < 0x1p-14f)  // below the normal numbers they are steps of one size
            bits = uint32_t(std::nearbyint(size * 0x1p24f));
        else
            bits = ((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10);
        to[d].bits = bits | (std::signbit(from[d]) ? 0x8000 : 0);
    }
}

inline void keep(const float* from, int64_t D, int8_t* to, float* scale) { *scale = round_to(127, from, D, to); }

constexpr int64_t PART = 4096;  // weights that are rounded and compared at a time

inline bool are_equal(const Fp16* halves, const float* numbers, int64_t D) {
    Ints different = {};
    int64_t d = 0;
    for (; d + N <= D; d += N) different |= load(halves + d) != load(numbers + d);
    bool equal = true;
    for (; d < D; ++d) equal &= number(halves[d]) == numbers[d];
    for (int i = 0; i < N; ++i) equal &= different[i] == 0;
    return equal;
}

// Scores of one query against M keys, `factor` and the keys' scales included. SIZE: D, where the compiler may know it.
template <class K, int64_t SIZE>
void score(
    const typename K::Input* q, const typename K::Weight* keys, const float* scales, int64_t M, int64_t width,
    float factor, float* to) {
    const int64_t D = SIZE ? SIZE : width, whole = D / K::WIDTH * K::WIDTH;
    for (int64_t m = 0; m < M; m += 4) {
        typename K::Sums sums[4] = {};
        const typename K::Weight* key[4];
        float rest[4] = {};
        for (int k = 0; k < 4; ++k) {
            key[k] = keys + std::min(m + k, M - 1) * D;  // after the last one nothing lies
            for (int64_t byte = 0; byte < D * int64_t(sizeof *keys); byte += LINE)
                ask_for(reinterpret_cast<const char*>(key[k]) + AHEAD + byte);
        }
        for (int64_t i = 0; i < whole; i += K::WIDTH)
            for (int k = 0; k < 4; ++k) K::add(sums[k], K::weight(key[k] + i), K::input(q + i));
        for (int64_t i = whole; i < D; ++i)
            for (int k = 0; k < 4; ++k) rest[k] += number(key[k][i]) * q[i];
        Floats floats[4];
        for (int k = 0; k < 4; ++k) floats[k] = K::floats(sums[k]);
        float four[4];
        sum_four(floats, four);
        for (int k = 0; k < 4; ++k) to[m + k] = four[k] + rest[k];
    }
    for (int64_t m = 0; m < M; ++m) to[m] *= scales ? factor * scales[m] : factor;
}

template <class K>
void score(
    const typename K::Input* q, const typename K::Weight* keys, const float* scales, int64_t M, int64_t D, float factor,
    float* to) {
    if (D == 64) return score<K, 64>(q, keys, scales, M, D, factor, to);
    score<K, 0>(q, keys, scales, M, D, factor, to);
}

template <class T>
void score_all(const float* q, const T* keys, const float* scales, int64_t M, int64_t D, float factor, float* to) {
    score<Kind<T>>(q, keys, scales, M, D, factor, to);
}

#ifdef HAS_WHOLE_NUMBERS
template <>
void score_all<int8_t>(
    const float* q, const int8_t* keys, const float* scales, int64_t M, int64_t D, float factor, float* to) {
    thread_local std::vector<int16_t> rounded;
    rounded.resize(D);
    factor *= round_to(WholeKind::levels(D), q, D, rounded.data());
    score<WholeKind>(rounded.data(), keys, scales, M, D, factor, to);
}
#endif

// The mean of values (M, D), D numbers of them from `values` on, weighted by w (M).
template <int VECTORS, class T>
inline void mean_of(const float* w, const T* values, int64_t M, int64_t D, float* to) {
    Floats sums[VECTORS] = {};
    for (int64_t m = 0; m < M; ++m) {
        for (int64_t byte = 0; byte < VECTORS * N * int64_t(sizeof *values); byte += LINE)
            ask_for(reinterpret_cast<const char*>(values + m * D) + AHEAD + byte);
        for (int i = 0; i < VECTORS; ++i) sums[i] += w[m] * load(values + m * D + i * N);
    }
    for (int i = 0; i < VECTORS; ++i) store(to + i * N, sums[i]);
}

template <class T>
void mean(const float* w, const T* values, int64_t M, int64_t D, float* to) {
    int64_t d = 0;
    for (; d + 64 <= D; d += 64) mean_of<64 / N>(w, values + d, M, D, to + d);
    for (; d + N <= D; d += N) mean_of<1>(w, values + d, M, D, to + d);
    for (; d < D; ++d) {
        to[d] = 0;
        for (int64_t m = 0; m < M; ++m) to[d] += w[m] * number(values[m * D + d]);
    }
}

// A function of a vector of numbers, of which there may be fewer.
template <class Function>
inline void each(const float* from, float* to, int64_t numbers, Function function) {
    if (numbers >= N) return store(to, function(load(from)));
    float some[N] = {};
    std::copy(from, from + numbers, some);
    store(some, function(load(some)));
    std::copy(some, some + numbers, to);
}

// One head of one row.
struct Head {
    const float* q;
    const void *keys, *values;  // (M, D)
    const float *key_scales, *value_scales;
    const uint8_t* mask;
    int64_t M, D;
    float scale;
    float* scores;  // room for M numbers and a vector more
    float* to;
};

template <class T>
void attend(const Head& h) {
    score_all(h.q, static_cast<const T*>(h.keys), h.key_scales, h.M, h.D, h.scale, h.scores);
    float largest = -INFINITY;
    for (int64_t m = 0; m < h.M; ++m) {
        if (h.mask && !h.mask[m]) h.scores[m] = -INFINITY;
        largest = std::max(largest, h.scores[m]);
    }
    if (largest == -INFINITY) {  // nothing may be read
        std::fill(h.to, h.to + h.D, 0.0f);
        return;
    }
    Floats total = {};
    std::fill(h.scores + h.M, h.scores + h.M + N, -INFINITY);
    for (int64_t m = 0; m < h.M; m += N) {
        Floats score = load(h.scores + m), e = exp(score - largest);
        e = score == -INFINITY ? Floats{} : e;
        total += e;
        store(h.scores + m, e);
    }
    float factor = 1 / sum(total);
    for (int64_t m = 0; m < h.M; ++m) h.scores[m] *= h.value_scales ? factor * h.value_scales[m] : factor;
    mean(h.scores, static_cast<const T*>(h.values), h.M, h.D, h.to);
}

// Write what a head has made (D) into the cache, and let it read that as it lies there.
template <class T>
void append_and_attend(Head h, const float* k, const float* v) {
    int64_t last = h.M - 1;
    auto keep_at = [&](const float* from, const void* numbers, const float* scales) {
        T* to = static_cast<T*>(const_cast<void*>(numbers)) + last * h.D;
        keep(from, h.D, to, scales ? const_cast<float*>(scales) + last : nullptr);
    };
    keep_at(k, h.keys, h.key_scales);
    keep_at(v, h.values, h.value_scales);
    attend<T>(h);
}

constexpr decltype(&append_and_attend<float>) ATTEND[] = {
    append_and_attend<float>, append_and_attend<Bf16>, append_and_attend<int8_t>,
    append_and_attend<Fp16>};

// A thread's part of a step.
void run(const Step& s, Team team) {
    const int64_t B = s.B, R = s.R, E = s.E, H = s.H, D = s.D, F = s.F;
    float *q = s.scratch, *k = q + B * E, *v = k + B * E, *seen = v + B * E, *inner = seen + B * E;
    float* h = inner + B * F + team.own * (B * E + std::max(s.capacity, s.L) + N);
    float* scores = h + B * E;
    int64_t begin, end;
    auto product = [&](const Weight& w, const float* x, int64_t rows, int64_t I, int64_t O, Target target) {
        team.share(O, begin, end, OUTPUTS);
        MULTIPLY[s.weights](w, x, rows, I, begin, end, target);
    };
    for (int64_t l = 0; l < s.layers; ++l) {
        const Layer& layer = s.layer[l];
        normalise(layer.self_norm, s.x, B, E, h);
        product(layer.q, h, B, E, E, {q, E, false});
        product(layer.k, h, B, E, E, {k, E, false});
        product(layer.v, h, B, E, E, {v, E, false});
        wait_for_all();
        team.share(B * H, begin, end);
        for (int64_t task = begin; task < end; ++task) {
            int64_t from = task / H * E + task % H * D, first = task * s.capacity, bytes = first * D * SIZES[s.cache];
            Head head{
                q + from, static_cast<char*>(layer.keys) + bytes, static_cast<char*>(layer.values) + bytes,
                layer.key_scales ? layer.key_scales + first : nullptr,
                layer.value_scales ? layer.value_scales + first : nullptr, nullptr, s.P + 1, D, s.scale, scores,
                seen + from};
            ATTEND[s.cache](head, k + from, v + from);
        }
        wait_for_all();
        product(layer.out, seen, B, E, E, {s.x, E, true});
        wait_for_all();
        if (R > 0) {
            normalise(layer.cross_norm, s.x, R, E, h);
            product(layer.cross_q, h, R, E, E, {q, E, false});
            wait_for_all();
            team.share(R * H, begin, end);
            for (int64_t task = begin; task < end; ++task) {
                int64_t row = task / H, from = row * E + task % H * D, first = task * s.L * D;
                attend<float>({
                    q + from, layer.text_keys + first, layer.text_values + first, nullptr, nullptr,
                    s.mask ? s.mask + row * s.L : nullptr, s.L, D, s.scale, scores, seen + from});
            }
            wait_for_all();
            product(layer.cross_out, seen, R, E, E, {s.x, E, true});
            wait_for_all();
        }
        normalise(layer.ffn_norm, s.x, B, E, h);
        product(layer.fc1, h, B, E, F, {inner, F, false});
        wait_for_all();
        team.share(B * F, begin, end, N);
        for (int64_t i = begin; i < end; i += N)
            each(inner + i, inner + i, end - i, [&](Floats y) { return activate(s.activation, y); });
        wait_for_all();
        product(layer.fc2, inner, B, F, E, {s.x, E, true});
        wait_for_all();
    }
    normalise(s.norm, s.x, B, E, h);
    for (int64_t head = 0; head < s.K; ++head)
        product(s.heads[head], h, B, E, s.V, {s.logits + head * s.V, s.K * s.V, false});
}

// A convolution over positions whose channels lie side by side: the numbers that a filter reads lie behind one another,
// those of the next position `stride` further, so all of it is one product of matrices, of which the left one's rows
// overlap. The right one lies in panels, all inputs of some outputs, which makes it one stream.
constexpr int PANEL = 2 * N;                         // outputs of a panel
constexpr int TILE = N == 16 ? 12 : N == 8 ? 6 : 4;  // rows of a tile: as many sums as there are registers
constexpr int64_t DEPTH = 512, HEIGHT = 192;         // inputs and rows that stay in the second cache

inline Floats elu(Floats x, float alpha) { return x < 0 ? alpha * exp(x) - alpha : x; }

// Up to TILE rows of out from `row` on, and the panel of output o. Their inputs `begin` to `end`, which are added up
// here, begin at x, `stride` apart: those of TILE rows can be read.
void convolve_tile(
    const Convolution& c, const float* x, int64_t stride, int64_t row, int64_t rows, int64_t o, int64_t begin,
    int64_t end) {
    Floats sums[TILE][2] = {};
    const float* panel = c.weight + o * c.I + begin * PANEL;
    for (int64_t i = 0; i < end - begin; ++i, panel += PANEL) {
        Floats left = load(panel), right = load(panel + N);
        for (int r = 0; r < TILE; ++r) {
            sums[r][0] += x[r * stride + i] * left;
            sums[r][1] += x[r * stride + i] * right;
        }
    }
    int64_t many = std::min<int64_t>(PANEL, c.O - o), at = row * c.width + o;
    bool whole = many == PANEL && rows == TILE;
    // What is not there to be read or written in whole vectors is so in `some`.
    auto add = [&](float* out, float sign, float alpha) {
        float some[TILE * PANEL], *to = out;
        const float *before = begin > 0 ? out : c.before ? c.before + at : nullptr, *from = before;
        int64_t width = c.width;
        if (!whole) {
            std::fill(some, some + TILE * PANEL, 0.0f);
            for (int64_t r = 0; r < rows && before; ++r)
                std::copy(before + r * width, before + r * width + many, some + r * PANEL);
            to = some, from = before ? some : nullptr, width = PANEL;
        }
        bool activated = end == c.I && !std::isnan(alpha);
        for (int half = 0; half < 2; ++half) {
            Floats bias = begin > 0 || !c.bias ? Floats{} : load(c.bias + o + half * N);
            for (int r = 0; r < TILE; ++r) {
                Floats value = bias + sign * sums[r][half];
                if (from) value += load(from + r * width + half * N);
                store(to + r * width + half * N, activated ? elu(value, alpha) : value);
            }
        }
        for (int64_t r = 0; r < rows && !whole; ++r)
            std::copy(some + r * PANEL, some + r * PANEL + many, out + r * c.width);
    };
    add(c.out + at, 1, c.alpha);
    if (c.minus) add(c.minus + at, -1, c.minus_alpha);  // last, as it may be what is added to
}

// Rows `top` to `end` of few outputs: each is a sum over numbers that lie behind one another.
void convolve_narrow(const Convolution& c, int64_t top, int64_t end) {
    for (int64_t row = top; row < end; ++row)
        for (int64_t o = 0; o < c.O; ++o) {
            float made[OUTPUTS][FEW], *to = c.out + row * c.width + o;
            tile<Kind<float>, 1, 1, 4>(c.weight + o * c.I, c.x + row * c.stride, c.I, 0, 0, made);
            float value = made[0][0] + (c.bias ? c.bias[o] : 0) + (c.before ? c.before[row * c.width + o] : 0);
            *to = std::isnan(c.alpha) ? value : elu(Floats{} + value, c.alpha)[0];
        }
}

// Rows `top` to `end`, HEIGHT at most.
void convolve_block(const Convolution& c, int64_t top, int64_t end) {
    if (c.narrow) return convolve_narrow(c, top, end);
    thread_local std::vector<float> block;  // rows that do not lie in memory as they are multiplied
    // Those of a tile that has fewer are followed by any numbers.
    int64_t rows = end - top, as_they_lie = c.other ? 0 : rows / TILE * TILE;
    for (int64_t begin = 0; begin < c.I; begin += DEPTH) {
        int64_t I = std::min(DEPTH, c.I - begin);
        block.resize(std::max<size_t>(block.size(), (rows + TILE) * I));
        for (int64_t row = as_they_lie; row < rows; ++row) {
            const float *x = c.x + (top + row) * c.stride + begin, *other = c.other ? c.other + (x - c.x) : nullptr;
            float* to = block.data() + (row - as_they_lie) * I;
            for (int64_t i = 0; i < I; ++i) to[i] = other ? x[i] + c.sign * other[i] : x[i];
        }
        for (int64_t o = 0; o < c.O; o += PANEL)
            for (int64_t row = 0; row < rows; row += TILE) {
                bool lies = row < as_they_lie;
                const float* x = lies ? c.x + (top + row) * c.stride + begin : block.data() + (row - as_they_lie) * I;
                int64_t many = std::min<int64_t>(TILE, rows - row);
                convolve_tile(c, x, lies ? c.stride : I, top + row, many, o, begin, begin + I);
            }
    }
}

// Runs a function once for each thread, all at the same time.
template <class Run>
void in_parallel(int64_t threads, Run run) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    run(Team{omp_get_thread_num(), omp_get_num_threads()});
#else
    run(Team{0, 1});
#endif
}

}  // namespace native

using namespace native;

extern "C" {

int64_t scratch_size(const Step* s) {
    return s->B * (4 * s->E + s->F) + s->threads * (s->B * s->E + std::max(s->capacity, s->L) + N);
}

void step(const Step* s) {
    in_parallel(s->threads, [&](Team team) { run(*s, team); });
}

// x (rows, I) times W' (I, O), all in fp32 but the weights, whose kind is that of a Step's.
void product(
    const void* numbers, const float* scales, int64_t kind, const float* x, int64_t rows, int64_t I, int64_t O,
    float* out, int64_t threads) {
    in_parallel(threads, [&](Team team) {
        int64_t begin, end;
        team.share(O, begin, end, OUTPUTS);
        MULTIPLY[kind]({numbers, scales}, x, rows, I, begin, end, {out, O, false});
    });
}

// Weights of fp32 in fp16; returns whether those stand for the same numbers.
bool halve(const float* from, int64_t numbers, uint16_t* to, int64_t threads) {
    std::atomic<bool> exact{true};
    in_parallel(threads, [&](Team team) {
        int64_t begin, end;
        team.share(numbers, begin, end, N);
        for (int64_t i = begin; i < end && exact.load(std::memory_order_relaxed); i += PART) {
            int64_t many = std::min(PART, end - i);
            keep(from + i, many, reinterpret_cast<Fp16*>(to + i), nullptr);
            if (!are_equal(reinterpret_cast<const Fp16*>(to + i), from + i, many)) exact = false;
        }
    });
    return exact;
}

int64_t panel() { return PANEL; }

// Convolutions of equally many rows, one after the other: each may read what those before it made of that row.
void convolve(const Convolution* all, int64_t many, int64_t rows, int64_t threads) {
    in_parallel(threads, [&](Team team) {
        int64_t begin, end;
        team.share(rows, begin, end, TILE);
        for (int64_t top = begin; top < end; top += HEIGHT)
            for (int64_t i = 0; i < many; ++i) convolve_block(all[i], top, std::min(end, top + HEIGHT));
    });
}

// An LSTM of H units, a multiple of N, over T steps of B rows. gates (T, B, 4 H): what the inputs and the biases make of
// the input, forget, cell and output gates, which are overwritten; weight (4 H, H) of the outputs before; cell (B, H):
// zeros; out (T, B, H).
void lstm(
    const float* weight, float* gates, float* cell, float* out, int64_t T, int64_t B, int64_t H, int64_t threads) {
    in_parallel(threads, [&](Team team) {
        int64_t begin, end;
        team.share(H, begin, end, N);
        for (int64_t t = 0; t < T; ++t) {
            float *now = gates + t * B * 4 * H, *to = out + t * B * H;
            if (t > 0) {  // the weights are in the last cache: they are not asked for ahead of time
                float sums[OUTPUTS][FEW];
                for (int64_t h = begin; B == 1 && h < end; ++h) {  // read as four streams, which is fastest
                    tile<Kind<float>, 4, 1, 2>(weight + h * H, to - H, H, H * H, 0, sums);
                    for (int64_t gate = 0; gate < 4; ++gate) now[gate * H + h] += sums[gate][0];
                }
                for (int64_t gate = 0; B > 1 && gate < 4; ++gate)
                    for (int64_t h = begin; h < end; ++h)
                        for (int64_t b = 0, many; b < B; b += many) {
                            many = rows_of_tile(B - b);
                            tile_of<Kind<float>, 1>(many, weight + (gate * H + h) * H, to + (b - B) * H, H, H, 0, sums);
                            for (int64_t i = 0; i < many; ++i) now[((b + i) * 4 + gate) * H + h] += sums[0][i];
                        }
            }
            for (int64_t b = 0; b < B; ++b)
                for (int64_t h = begin; h < end; h += N) {
                    const float* of = now + b * 4 * H + h;
                    Floats in = sigmoid(load(of)), forget = sigmoid(load(of + H)), next = tanh(load(of + 2 * H));
                    Floats kept = forget * load(cell + b * H + h) + in * next;
                    store(cell + b * H + h, kept);
                    store(to + b * H + h, sigmoid(load(of + 3 * H)) * tanh(kept));
                }
            wait_for_all();  // the next step reads what every thread has made
        }
    });
}

void elu(const float* x, int64_t numbers, float alpha, float* out, int64_t threads) {
    in_parallel(threads, [&](Team team) {
        int64_t begin, end;
        team.share(numbers, begin, end, N);
        for (int64_t i = begin; i < end; i += N)
            each(x + i, out + i, end - i, [&](Floats y) { return elu(y, alpha); });
    });
}

}  // extern "C"

#endif
