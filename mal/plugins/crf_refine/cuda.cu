/*
mal::CRFRefine on the GPU.  What it means: reference.py.  The arithmetic: crf_refine.cuh.

Data      logits, out (B,h,w) f32; guide (B,3,h,w) f32 or f16; inside (1 or B,h,w) f32; contiguous; out overlaps nothing.
Mapping   one CTA a crop, for all iterations. A thread owns a strip of up to 16 pixels of one column.
On chip   state f32 and four weights a pixel in shared memory, ln inside in registers. A thread keeps its new states in
          registers until everyone has read the old ones: two barriers an iteration, one copy of the state.
              weights f32   20 B a pixel: where the whole crop fits (48 x 48 fits every chip)
              weights u16   12 B a pixel: fixed point, k = u / 65535. Not fp16: that has the same size and flips 5 to 15
                            times as many cells (2 and 1 against 15 and 15, at 100 iterations on crops of coco-val)
Bands     A crop that does not fit (128 x 128 needs 201 KB: sm_90 and sm_100 have 227, sm_75 64, sm_86, 89 and 120 99,
          sm_80 163) goes through in bands of rows, some iterations at a time, with a halo as deep as these. The state
          rests in `out` between passes; the old rows that the next band's halo needs are saved before they are
          overwritten. So no scratch memory, and any h.
Bounds    w <= 1024, else cudaErrorInvalidValue. Stream-ordered, no allocation, no synchronisation.
Checked   tests/parity/test_crf_cuda.py: these lines on the CPU, a thread for a thread (emulated_gpu.h). Not yet on a GPU.
Build     nvcc -O3 -std=c++17 -shared -Xcompiler -fPIC cuda.cu
*/
#ifdef MAL_EMULATED_GPU
#include "emulated_gpu.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define MAL_LAUNCH(kernel, grid, threads, bytes, stream, ...) kernel<<<grid, threads, bytes, stream>>>(__VA_ARGS__)
#define MAL_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#include "crf_refine.cuh"

namespace mal::cuda {

constexpr int kStrip = 16;       // pixels of a thread, at most
constexpr int kThreads = 1024;   // of a CTA, at most
constexpr int kMaxPasses = 16;   // iterations a pass where bands are needed: more halo than that never pays

// Weights to the right, below left, below and below right of a pixel.
template <typename W>
struct alignas(4 * sizeof(W)) Weights {
    W right, left_down, down, right_down;
};

__device__ __forceinline__ float decode(float weight) { return weight; }
__device__ __forceinline__ float decode(uint16_t weight) { return static_cast<float>(weight) * (1.0f / 65535.0f); }
__device__ __forceinline__ void encode(float weight, float& to) { to = weight; }
__device__ __forceinline__ void encode(float weight, uint16_t& to) {
    to = static_cast<uint16_t>(weight * 65535.0f + 0.5f);
}

struct Guide {
    const void* values;
    bool half;
    __device__ __forceinline__ float at(int64_t index) const {
#ifndef MAL_EMULATED_GPU
        if (half) return __half2float(static_cast<const __half*>(values)[index]);
#endif
        return static_cast<const float*>(values)[index];
    }
};

struct Plan {
    int band;        // rows of a band that are written
    int depth;       // iterations of a pass, and rows of the halo
    int rows;        // rows on chip: the band with its halos
    int threads;
    int bytes;       // of shared memory
    bool fixed;      // weights in u16
};

struct Task {
    const float* logits;
    Guide guide;
    const float* inside;
    float* out;
    int64_t inside_step;  // from crop to crop: 0 where one map serves all
    int height, width, iterations;
    float scale;
    Plan plan;
};

// A line of pixels in shared memory: one zero column right of the rows, a zero row above and below, so that a
// neighbour is a fixed distance away and what lies outside counts nothing.
__host__ __device__ inline int line_length(int rows, int width) { return (rows + 2) * (width + 1) + 2; }

template <typename W>
__host__ __device__ inline int shared_bytes(int rows, int width, int saved_rows) {
    return line_length(rows, width) * static_cast<int>(sizeof(Weights<W>) + sizeof(float)) +
           saved_rows * width * static_cast<int>(sizeof(float));
}

template <typename W>
__global__ void __launch_bounds__(kThreads) refine(Task task) {
    MAL_SHARED(shared);
    const Plan plan = task.plan;
    const int width = task.width, height = task.height, stride = width + 1;
    const int length = line_length(plan.rows, width), threads = plan.threads, me = threadIdx.x;
    auto* weights = reinterpret_cast<Weights<W>*>(shared);
    auto* state = reinterpret_cast<float*>(weights + length);
    auto* saved = state + length;

    const int64_t pixels = static_cast<int64_t>(height) * width, crop = blockIdx.x;
    const float* logits = task.logits + crop * pixels;
    const float* inside = task.inside + crop * task.inside_step;
    float* out = task.out + crop * pixels;
    const int64_t guide = crop * 3 * pixels;

    const int column = me % width, first_row = me / width * kStrip;

    int done = 0;
    do {
        const int steps = min(plan.depth, task.iterations - done);
        for (int top = 0; top < height; top += plan.band) {
            const int above = max(top - steps, 0), below = min(top + plan.band + steps, height);
            const int rows = below - above;

            // Load. Rows above `top` were overwritten by the band before; their old states are saved.
            for (int at = me; at < length; at += threads) {
                const int y = at / stride - 1, x = at % stride - 1;  // the line begins one pixel early
                float value = 0.0f;
                Weights<W> weight{};
                if (y >= 0 && y < rows && x >= 0 && x < width) {
                    const int row = above + y;
                    const int64_t here = static_cast<int64_t>(row) * width + x;
                    if (done == 0)
                        value = start_state(logits[here], coverage(inside[here]));
                    else
                        value = row < top ? saved[(row - above) * width + x] : out[here];
                    const float red = task.guide.at(guide + here), green = task.guide.at(guide + pixels + here),
                                blue = task.guide.at(guide + 2 * pixels + here);
                    const auto to = [&](int down, int right) {
                        if (row + down >= height || x + right < 0 || x + right >= width) return 0.0f;
                        const int64_t there = here + static_cast<int64_t>(down) * width + right;
                        const float r = task.guide.at(guide + there) - red,
                                    g = task.guide.at(guide + pixels + there) - green,
                                    b = task.guide.at(guide + 2 * pixels + there) - blue;
                        return mal::weight(r * r + g * g + b * b, task.scale);
                    };
                    encode(to(0, 1), weight.right);
                    encode(to(1, -1), weight.left_down);
                    encode(to(1, 0), weight.down);
                    encode(to(1, 1), weight.right_down);
                }
                state[at] = value;
                weights[at] = weight;
            }
            float constant[kStrip];
#pragma unroll
            for (int i = 0; i < kStrip; ++i) {
                const int y = first_row + i;
                constant[i] = y < rows ? log_coverage(coverage(inside[static_cast<int64_t>(above + y) * width + column]))
                                       : 0.0f;
            }
            __syncthreads();

            // Save what the next band's halo needs, while it is still old.
            if (done > 0) {
                const int from = top + plan.band - steps;  // >= top: a band is no thinner than the halo
                for (int at = me; at < steps * width; at += threads) {
                    const int row = from + at / width, x = at % width;
                    if (row < height) saved[at] = state[(row - above + 1) * stride + x + 1];
                }
                __syncthreads();
            }

            for (int step = 0; step < steps; ++step) {
                float fresh[kStrip];
                int p = (first_row + 1) * stride + column + 1;
                const bool active = first_row < rows;
                if (active) {
                    float a0 = state[p - stride - 1], a1 = state[p - stride], a2 = state[p - stride + 1];
                    float b0 = state[p - 1], b1 = state[p], b2 = state[p + 1];
                    float up = decode(weights[p - stride].down);
#pragma unroll
                    for (int i = 0; i < kStrip; ++i) {
                        if (first_row + i >= rows) break;
                        const float c0 = state[p + stride - 1], c1 = state[p + stride], c2 = state[p + stride + 1];
                        const Weights<W> own = weights[p];
                        float sum = b1 + constant[i];
                        sum += decode(own.right) * b2 + decode(weights[p - 1].right) * b0;
                        sum += decode(own.left_down) * c0 + decode(weights[p - stride + 1].left_down) * a2;
                        const float down = decode(own.down);
                        sum += down * c1 + up * a1;
                        sum += decode(own.right_down) * c2 + decode(weights[p - stride - 1].right_down) * a0;
                        fresh[i] = clamp_state(sum);
                        a0 = b0, a1 = b1, a2 = b2, b0 = c0, b1 = c1, b2 = c2, up = down;
                        p += stride;
                    }
                }
                __syncthreads();
                if (active) {
                    p = (first_row + 1) * stride + column + 1;
#pragma unroll
                    for (int i = 0; i < kStrip; ++i)
                        if (first_row + i < rows) state[p + i * stride] = fresh[i];
                }
                __syncthreads();
            }

            const int written = min(plan.band, height - top);
            for (int at = me; at < written * width; at += threads) {
                const int row = top + at / width, x = at % width;
                out[static_cast<int64_t>(row) * width + x] = state[(row - above + 1) * stride + x + 1];
            }
            __syncthreads();
        }
        done += steps;
    } while (done < task.iterations);
}

inline int threads_for(int rows, int width) {
    const int strips = (rows + kStrip - 1) / kStrip;
    return (width * strips + 31) / 32 * 32;
}

template <typename W>
bool fits(int rows, int width, int saved_rows, int limit) {
    return threads_for(rows, width) <= kThreads && shared_bytes<W>(rows, width, saved_rows) <= limit;
}

// How to take a crop through `limit` bytes of shared memory; false where even a band of one row does not fit.
inline bool make_plan(int height, int width, int iterations, int limit, Plan& plan) {
    if (width > kThreads) return false;
    const auto whole = [&](int bytes, bool fixed) {
        plan = {height, iterations, height, threads_for(height, width), bytes, fixed};
        return true;
    };
    if (fits<float>(height, width, 0, limit)) return whole(shared_bytes<float>(height, width, 0), false);
    if (fits<uint16_t>(height, width, 0, limit)) return whole(shared_bytes<uint16_t>(height, width, 0), true);

    // Loading a row (colours, four exponentials a pixel) costs about as much as this many iterations on it.
    constexpr float kLoad = 4.0f;
    float best = 0.0f;
    bool found = false;
    for (int depth = 1; depth <= min(iterations > 0 ? iterations : 1, kMaxPasses); ++depth) {
        int rows = 3 * depth;
        if (!fits<uint16_t>(rows, width, depth, limit)) break;
        while (rows < height && fits<uint16_t>(rows + 1, width, depth, limit)) ++rows;
        const int band = rows - 2 * depth, bands = (height + band - 1) / band;
        const float cost = bands * static_cast<float>(rows) * (depth + kLoad) / depth;  // an iteration
        if (found && cost >= best) continue;
        found = true, best = cost;
        plan = {band, depth, rows, threads_for(rows, width), shared_bytes<uint16_t>(rows, width, depth), true};
    }
    return found;
}

template <typename W>
cudaError_t launch(const Task& task, int batch, [[maybe_unused]] cudaStream_t stream) {
    const cudaError_t granted =
        cudaFuncSetAttribute(refine<W>, cudaFuncAttributeMaxDynamicSharedMemorySize, task.plan.bytes);
    if (granted != cudaSuccess) return granted;
    MAL_LAUNCH(refine<W>, batch, task.plan.threads, task.plan.bytes, stream, task);
    return cudaGetLastError();
}

}  // namespace mal::cuda

// Refine a batch on the current device. `stream` is a cudaStream_t, `guide_half` tells that guide is f16. Returns a
// cudaError_t; cudaErrorInvalidValue for arguments out of range. An empty batch is done at once.
extern "C" __attribute__((visibility("default"))) int mal_crf_refine_cuda(
    const float* logits, const void* guide, int guide_half, const float* inside, int inside_batch, float* out, int batch,
    int height, int width, int iterations, float zeta, void* stream) {
    using namespace mal::cuda;
    if (batch < 0 || height < 1 || width < 1 || iterations < 0 || !(zeta > 0.0f)) return cudaErrorInvalidValue;
    if (inside_batch != 1 && inside_batch != batch) return cudaErrorInvalidValue;
    if (batch == 0) return cudaSuccess;
    int device = 0, limit = 0;
    if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
    if (const cudaError_t error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        error != cudaSuccess)
        return error;
    Task task{logits, {guide, guide_half != 0}, inside, out,
              inside_batch == 1 ? 0 : static_cast<int64_t>(height) * width,
              height, width, iterations, -0.5f / (zeta * zeta), {}};
    if (!make_plan(height, width, iterations, limit, task.plan)) return cudaErrorInvalidValue;
    const auto ordered = static_cast<cudaStream_t>(stream);
    return task.plan.fixed ? launch<uint16_t>(task, batch, ordered) : launch<float>(task, batch, ordered);
}
