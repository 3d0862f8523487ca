/*
Crops on a GPU, straight into the network's input.  What they mean: mal/crops.py.

Data      image (h, w, 3) u8 on the device; rects (n, 4) f64 x0 y0 x1 y1 on the host, may leave the image; crops
          (n, 3, size, size) f32 on the device, whole numbers 0..255. No aliasing.
Filter    crop.cuh, one thread a pixel; rounded once, as on the CPU.
Build     nvcc (../cuda_library.py)
*/
#include <cuda_runtime.h>

#include <algorithm>

#include "../deepstream/nvdsinfer_custom_impl_mal/crop.cuh"

using namespace mal::deepstream;

namespace {

constexpr int kMost = 64;  // rectangles a launch: they travel as an argument, which has 4 KB at most

struct Rectangles {
    Rectangle of[kMost];
};

__global__ void cut(Frame image, Rectangles crops, int size, Fill fill, float* out) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= size || y >= size) return;
    const Colour colour = crop_pixel(image, crops.of[blockIdx.z], size, fill, x, y);
    const size_t plane = static_cast<size_t>(size) * size, at = static_cast<size_t>(y) * size + x;
    out += 3 * plane * blockIdx.z;
    out[at] = rintf(colour.red);
    out[plane + at] = rintf(colour.green);
    out[2 * plane + at] = rintf(colour.blue);
}

}  // namespace

// Enqueue n crops. Returns a cudaError_t. Rectangles are the caller's to check; they are read before this returns.
extern "C" __attribute__((visibility("default"))) int mal_cut_crops_cuda(
    const uint8_t* image, int height, int width, const double* rects, int n, int size, int fill, float* crops,
    void* stream) {
    if (height < 1 || width < 1 || n < 0 || size < 1 || fill < 0 || fill > static_cast<int>(Fill::wrap))
        return cudaErrorInvalidValue;
    const Frame frame = rgb_frame(image, width, height);
    const dim3 threads(32, 8);
    for (int first = 0; first < n; first += kMost, crops += size_t{3} * kMost * size * size) {
        const int count = std::min(kMost, n - first);
        Rectangles some;
        for (int i = 0; i < count; ++i) {
            const double* rect = rects + 4 * (first + i);
            some.of[i] = {rect[0], rect[1], rect[2], rect[3]};
        }
        const dim3 blocks((size + 31) / 32, (size + 7) / 8, count);
        cut<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(frame, some, size, static_cast<Fill>(fill), crops);
        if (const cudaError_t error = cudaGetLastError()) return error;
    }
    return cudaSuccess;
}
