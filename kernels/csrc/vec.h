// Vectors of one instruction set, and the two functions the scan needs: a power of two, and softplus.
// Included once per translation unit, after MM_WIDTH (4, 8 or 16 channels) is defined; everything is static.
#pragma once
#include <stdint.h>
#include <string.h>

#include <utility>

#if MM_WIDTH > 4
#include <immintrin.h>
#endif

typedef float vf __attribute__((vector_size(MM_WIDTH * 4), may_alias));
typedef int32_t vi __attribute__((vector_size(MM_WIDTH * 4), may_alias));
typedef float vf_unaligned __attribute__((vector_size(MM_WIDTH * 4), may_alias, aligned(4)));

#define MM_INLINE static inline __attribute__((always_inline))

MM_INLINE vf all(float value) { return value - vf{}; }
MM_INLINE vf load(const float* from) { return *(const vf_unaligned*)from; }
MM_INLINE void store(float* to, vf value) { *(vf_unaligned*)to = value; }

// The first `count` channels; the others are zero.
MM_INLINE vf load(const float* from, int count) {
    if (__builtin_expect(count >= MM_WIDTH, 1)) return load(from);
#if MM_WIDTH == 16
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1u), from);
#else
    vf value = {};
    for (int lane = 0; lane < count; ++lane) value[lane] = from[lane];
    return value;
#endif
}

MM_INLINE void store(float* to, vf value, int count) {
    if (__builtin_expect(count >= MM_WIDTH, 1)) {
        store(to, value);
        return;
    }
#if MM_WIDTH == 16
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1u), (__m512)value);
#else
    for (int lane = 0; lane < count; ++lane) to[lane] = value[lane];
#endif
}

// max and min keep a NaN that stands in `value`.
MM_INLINE vf at_least(vf value, vf low) {
#if MM_WIDTH == 16
    return (vf)_mm512_max_ps((__m512)low, (__m512)value);
#elif MM_WIDTH == 8
    return (vf)_mm256_max_ps((__m256)low, (__m256)value);
#else
    return value < low ? low : value;
#endif
}

MM_INLINE vf at_most(vf value, vf high) {
#if MM_WIDTH == 16
    return (vf)_mm512_min_ps((__m512)high, (__m512)value);
#elif MM_WIDTH == 8
    return (vf)_mm256_min_ps((__m256)high, (__m256)value);
#else
    return value > high ? high : value;
#endif
}

// 2^t is returned as scale * factor, because the scan multiplies by both and one rounding is saved.
//
// t = k/J + r with k an integer and |r| <= 1/(2J). Adding 1.5 * 2^23 / J rounds t to a multiple of 1/J and leaves k in
// the low bits of the sum; k mod J selects 2^(j/J) from a table held in one register (vpermps), k / J goes into the
// exponent by an integer addition, and factor = 2^r is a polynomial whose first two coefficients are exact, so that
// weak decay (t close to 0) keeps its accuracy. J = 16 (AVX-512) or 8 (AVX2), degree 3, relative error 2e-9 and 3e-8;
// without a permutation instruction J = 1 and degree 6, 3e-9.
struct Power {
    vf scale, factor;
};

// The bits of 2^(j/J) minus j shifted to where k's low bits will stand, for j = 0..J-1.
#if MM_WIDTH == 16
enum { kTableBits = 4 };
MM_INLINE vi power_table() {
    const vf powers = {1.0f, 1.0442737824f, 1.0905077327f, 1.1387886348f, 1.1892071150f, 1.2418578121f, 1.2968395547f,
                       1.3542555469f, 1.4142135624f, 1.4768261459f, 1.5422108254f, 1.6104903319f, 1.6817928305f,
                       1.7562521604f, 1.8340080864f, 1.9152065614f};
    return (vi)powers - (vi{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} << (23 - kTableBits));
}
#elif MM_WIDTH == 8
enum { kTableBits = 3 };
MM_INLINE vi power_table() {
    const vf powers = {1.0f,          1.0905077327f, 1.1892071150f, 1.2968395547f,
                       1.4142135624f, 1.5422108254f, 1.6817928305f, 1.8340080864f};
    return (vi)powers - (vi{0, 1, 2, 3, 4, 5, 6, 7} << (23 - kTableBits));
}
#else
enum { kTableBits = 0 };
MM_INLINE vi power_table() { return (vi)all(1.0f); }
#endif

// 2^r for |r| <= 1/(2J)
MM_INLINE vf power_of_rest(vf r) {
#if MM_WIDTH == 16
    return ((5.550429e-02f * r + 2.4023427e-01f) * r + 6.9314718e-01f) * r + 1.0f;
#elif MM_WIDTH == 8
    return ((5.5504753e-02f * r + 2.4025748e-01f) * r + 6.9314718e-01f) * r + 1.0f;
#else
    return (((((1.53211544e-04f * r + 1.33901615e-03f) * r + 9.61852631e-03f) * r + 5.55036225e-02f) * r +
             2.40226475e-01f) * r + 6.9314718e-01f) * r + 1.0f;
#endif
}

// Arguments below -126 count as -126 (a decay of 1e-38). With `bounded` the caller promises that t <= 0.
template <bool bounded>
MM_INLINE Power power_of_two(vf t) {
    t = at_least(t, all(-126.0f));
    if (!bounded) t = at_most(t, all(128.0f));
    const float magic = 12582912.0f / (float)(1 << kTableBits);
    const vf sum = t + magic;
    const vf r = t - (sum - magic);
    Power result;
    result.factor = power_of_rest(r);
#if MM_WIDTH == 16
    const vi fraction = (vi)_mm512_permutexvar_ps((__m512i)sum, (__m512)power_table());
#elif MM_WIDTH == 8
    const vi fraction = (vi)_mm256_permutevar8x32_ps((__m256)power_table(), (__m256i)sum);
#else
    const vi fraction = power_table();
#endif
    result.scale = (vf)(fraction + ((vi)sum << (23 - kTableBits)));
    return result;
}

// e^v for v <= 0. The multiple of ln 2 is subtracted in two parts (the first has 10 bits, so its product with k is
// exact), which keeps the result right to rounding for large |v| too; steps of 1e-4 come from v = -9.
MM_INLINE vf exp_of_nonpositive(vf v) {
    v = at_least(v, all(-87.0f));
    const float magic = 12582912.0f / (float)(1 << kTableBits);
    const vf k = (v * 1.44269504f + magic) - magic;
    const vf r = ((v - k * 0.693359375f) + k * 2.12194440e-4f) * 1.44269504f;
    const Power whole = power_of_two<true>(k);
    return whole.scale * power_of_rest(r);
}

// softplus(v) = max(v, 0) + log(1 + e), e = exp(-|v|), and its derivative, the logistic function.
// log(1 + e) = e * q(e): the polynomial q has relative error 3e-8 on [0, 1], so small steps are exact too.
struct Step {
    vf value, slope;
};

MM_INLINE Step softplus(vf v) {
    const vf e = exp_of_nonpositive(at_most(v, -v));
    vf q = 5.364818371e-03f * e - 3.006576847e-02f;
    q = q * e + 7.920449691e-02f;
    q = q * e - 1.375379908e-01f;
    q = q * e + 1.915365342e-01f;
    q = q * e - 2.485716329e-01f;
    q = q * e + 3.332132257e-01f;
    q = q * e - 4.999964796e-01f;
    return {at_least(v, all(0.0f)) + (q * e + 1.0f) * e, (v < 0.0f ? e : all(1.0f)) / (1.0f + e)};
}

// silu(v) = v * logistic(v) and its derivative.
MM_INLINE Step silu(vf v) {
    const vf e = exp_of_nonpositive(at_most(v, -v));
    const vf logistic = (v < 0.0f ? e : all(1.0f)) / (1.0f + e);
    return {v * logistic, logistic * (1.0f + v * (1.0f - logistic))};
}

// Sums over the channels. fold_pair(a, b) adds the halves of a into the first half of the result and those of b into the
// second; finish_pairs takes MM_WIDTH / 2 such results and returns the sums of all a (first half) and all b (second half).
// Each step halves the number of vectors, so no sum is ever computed lane by lane.
#if defined(__clang__) || __GNUC__ >= 12
#define MM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

// Of every two runs of `run` lanes the first is the sum of both runs of a, the second that of both runs of b.
template <int run, int... lane>
MM_INLINE vf fold(vf a, vf b, std::integer_sequence<int, lane...>) {
    return MM_SHUFFLE(a, b, (lane / run % 2 == 0 ? lane : lane - run + MM_WIDTH)...) +
           MM_SHUFFLE(a, b, (lane / run % 2 == 0 ? lane + run : lane + MM_WIDTH)...);
}

using Lanes = std::make_integer_sequence<int, MM_WIDTH>;

MM_INLINE vf fold_pair(vf a, vf b) { return fold<MM_WIDTH / 2>(a, b, Lanes{}); }

template <int count = MM_WIDTH / 2>
MM_INLINE vf finish_pairs(vf* r) {
    if constexpr (count > 1) {
        constexpr int half = count / 2;
#pragma GCC unroll 4
        for (int i = 0; i < half; ++i) r[i] = fold<half>(r[i], r[i + half], Lanes{});
        return finish_pairs<half>(r);
    }
    return r[0];
}
