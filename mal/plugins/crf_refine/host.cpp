/*
mal::CRFRefine on the CPU.  What it means: reference.py.  The arithmetic: crf_refine.cuh.

Data      logits, refined (B,h,w) f32; guide (B,3,h,w) f32; inside (1 or B,h,w) f32; contiguous, no aliasing.
Mapping   a thread takes whole crops; the compiler vectorises along the line of pixels.
Layout    one column right of the crop and one row above and below are zero, so all pixels form one line on which
          a neighbour is a fixed distance away, and what lies outside the crop counts nothing.
              step  1: right    W-1: below left    W: below    W+1: below right       W = w + 1
          k(p,q) = k(q,p): four weights a pixel serve all eight neighbours.
Cost      a pixel and iteration: 8 FMA, 14 loads, 1 store, all from the L2 cache (28 B a pixel).
Build     g++ -O3 -march=native -shared -fPIC host.cpp      (compiled.py does it)
*/
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <new>
#include <thread>
#include <vector>

#include "crf_refine.cuh"

namespace {

struct Plane {  // a line of pixels with a margin of zeros before and behind
    std::vector<float> values;
    std::ptrdiff_t margin;
    Plane(std::ptrdiff_t pixels, std::ptrdiff_t margin) : values(pixels + 2 * margin, 0.0f), margin(margin) {}
    float* line() { return values.data() + margin; }
};

// A function of its own: inlined, the compiler forgets that nothing overlaps, and does not vectorise.
__attribute__((noinline)) void step(const float* __restrict__ state, const float* __restrict__ constant,
                                    const float* __restrict__ w0, const float* __restrict__ w1,
                                    const float* __restrict__ w2, const float* __restrict__ w3,
                                    float* __restrict__ next, std::ptrdiff_t pixels, std::ptrdiff_t down) {
    for (std::ptrdiff_t p = 0; p < pixels; ++p) {
        float sum = state[p] + constant[p];
        sum += w0[p] * state[p + 1] + w0[p - 1] * state[p - 1];
        sum += w1[p] * state[p + down - 1] + w1[p - down + 1] * state[p - down + 1];
        sum += w2[p] * state[p + down] + w2[p - down] * state[p - down];
        sum += w3[p] * state[p + down + 1] + w3[p - down - 1] * state[p - down - 1];
        next[p] = mal::clamp_state(sum);
    }
}

class Refiner {
public:
    Refiner(int height, int width, int iterations, float zeta)
        : height_(height), width_(width), stride_(width + 1), pixels_(std::ptrdiff_t(height) * stride_),
          iterations_(iterations), scale_(-0.5f / (zeta * zeta)), state_(pixels_, stride_ + 1),
          next_(pixels_, stride_ + 1), constant_(pixels_, 0),
          weights_{{pixels_, stride_ + 1}, {pixels_, stride_ + 1}, {pixels_, stride_ + 1}, {pixels_, stride_ + 1}} {}

    void refine(const float* logits, const float* guide, const float* inside, float* refined) {
        start(logits, inside);
        weigh(guide);
        for (int i = 0; i < iterations_; ++i) {
            step(state_.line(), constant_.line(), weights_[0].line(), weights_[1].line(), weights_[2].line(),
                 weights_[3].line(), next_.line(), pixels_, stride_);
            state_.values.swap(next_.values);
        }
        for (int y = 0; y < height_; ++y)
            std::copy_n(state_.line() + y * stride_, width_, refined + std::ptrdiff_t(y) * width_);
    }

private:
    void start(const float* logits, const float* inside) {
        for (int y = 0; y < height_; ++y) {
            float* state = state_.line() + y * stride_;
            float* constant = constant_.line() + y * stride_;
            for (int x = 0; x < width_; ++x) {
                const std::ptrdiff_t at = std::ptrdiff_t(y) * width_ + x;
                const float covered = mal::coverage(inside[at]);
                state[x] = mal::start_state(logits[at], covered);
                constant[x] = mal::log_coverage(covered);
            }
            state[width_] = 0.0f;  // outside the crop; its weights are 0, so it stays 0
        }
    }

    void weigh(const float* guide) {
        const std::ptrdiff_t channel = std::ptrdiff_t(height_) * width_;
        for (int k = 0; k < 4; ++k) {
            const int down = k > 0, right = k == 0 ? 1 : k - 2;  // the order of `step`
            const int first = right < 0 ? 1 : 0, last = right > 0 ? width_ - 1 : width_;
            for (int y = 0; y + down < height_; ++y) {
                const float* here = guide + std::ptrdiff_t(y) * width_;
                const float* there = here + down * width_ + right;
                float* weight = weights_[k].line() + y * stride_;
                for (int x = first; x < last; ++x) {
                    const float r = there[x] - here[x];
                    const float g = there[x + channel] - here[x + channel];
                    const float b = there[x + 2 * channel] - here[x + 2 * channel];
                    weight[x] = mal::weight(r * r + g * g + b * b, scale_);
                }
            }
        }
    }

    const int height_, width_;
    const std::ptrdiff_t stride_, pixels_;
    const int iterations_;
    const float scale_;
    Plane state_, next_, constant_;
    Plane weights_[4];
};

}  // namespace

// Refine a batch. Returns 0, 1 for arguments out of range, or 2 when memory ran out.
extern "C" __attribute__((visibility("default"))) int mal_crf_refine_host(
    const float* logits, const float* guide, const float* inside, float* refined, int64_t batch, int64_t inside_batch,
    int32_t height, int32_t width, int32_t iterations, float zeta, int32_t threads) {
    if (batch < 0 || height < 1 || width < 1 || iterations < 0 || !(zeta > 0) || threads < 1) return 1;
    if (inside_batch != 1 && inside_batch != batch) return 1;
    const std::ptrdiff_t pixels = std::ptrdiff_t(height) * width;
    std::atomic<int64_t> next{0};
    std::atomic<int> result{0};
    const auto work = [&] {
        try {
            Refiner refiner(height, width, iterations, zeta);
            for (int64_t crop; (crop = next++) < batch;)
                refiner.refine(logits + crop * pixels, guide + crop * 3 * pixels,
                               inside + (inside_batch == 1 ? 0 : crop) * pixels, refined + crop * pixels);
        } catch (const std::bad_alloc&) {
            result = 2;
        }
    };
    std::vector<std::thread> helpers;
    try {
        for (int64_t i = 1; i < std::min<int64_t>(threads, batch); ++i) helpers.emplace_back(work);
    } catch (...) {  // no more threads to be had: those that run do the work
    }
    if (batch) work();
    for (auto& helper : helpers) helper.join();
    return result;
}
