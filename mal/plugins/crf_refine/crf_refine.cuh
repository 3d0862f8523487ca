/*
The arithmetic of mal::CRFRefine, one pixel at a time, for the CPU and the GPU.  What it means: reference.py.

    k(p,q)  = exp(-|guide_p - guide_q|^2 / (2 zeta^2))                          q in the 3x3 window of p
    L       = logit(clamp(inside * sigmoid(logit), 0.1, 0.9))                   start
    L(p)   <- clamp(L(p) + sum_q k(p,q) L(q) + ln inside(p), -ln 9, ln 9)       step, all pixels at once

Only this file knows how a number is made; host.cpp and cuda.cu only know where numbers lie.
Odd values (NaN, infinities, inside beyond 0..1): contract.py.
*/
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define MAL_BOTH __host__ __device__ __forceinline__
#else
#define MAL_BOTH inline __attribute__((always_inline))
#endif

namespace mal {

constexpr float kLimit = 2.1972245773362196f;  // ln 9: log-odds of 0.9
// ln of a coverage too small to matter: any sum of nine clamped neighbours stays below -kLimit.
constexpr float kNever = -69.0f;

// By comparisons, which compilers turn into one vector instruction each; fminf and fmaxf they would call.
MAL_BOTH float clamp_state(float x) {
    x = x > -kLimit ? x : -kLimit;
    return x < kLimit ? x : kLimit;
}

// e^x for x <= 0, within 2 units in the last place; 0 below -87 (no denormals: they cost 100 x the time).
// A polynomial, because the compiler vectorises it; a call of expf it would not.
MAL_BOTH float exp_negative(float x) {
#ifdef __CUDA_ARCH__
    return x < -87.0f ? 0.0f : __expf(x);
#else
    const float y = x < -87.0f ? -87.0f : x;
    const float n = std::nearbyint(y * 1.44269504f);
    // y - n ln 2 in two parts: the first is exact in float.
    const float r = (y - n * 0.693145752f) - n * 1.42860677e-6f;
    float e = 1.0f / 5040;
    e = e * r + 1.0f / 720;
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;  // 2^n
    float power;
    std::memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : e * power;
#endif
}

// Weight of two neighbours by their squared colour distance; `scale` = -1 / (2 zeta^2).
// The comparison is false for NaN, which comes from colours that are not finite.
MAL_BOTH float weight(float squared_distance, float scale) {
    const float x = squared_distance * scale;
    return x >= -87.0f ? exp_negative(x) : 0.0f;
}

// Coverage of a pixel by the box, clamped to 0..1; NaN is 0.
MAL_BOTH float coverage(float inside) { return inside > 0.0f ? fminf(inside, 1.0f) : 0.0f; }

MAL_BOTH float log_coverage(float covered) {
    return covered >= 1.0f ? 0.0f : covered > 1e-30f ? logf(covered) : kNever;
}

// The start state. Where the box covers all, logit(sigmoid(x)) is x itself.
MAL_BOTH float start_state(float logit, float covered) {
    const float opinion = logit != logit ? 0.0f : logit;
    if (covered >= 1.0f) return clamp_state(opinion);
    if (covered <= 0.1f) return -kLimit;
    const float probability = covered / (1.0f + expf(-opinion));
    const float p = fminf(fmaxf(probability, 0.1f), 0.9f);
    return logf(p / (1.0f - p));
}

}  // namespace mal
