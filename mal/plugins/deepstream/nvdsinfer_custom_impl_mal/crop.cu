#include "crop.cuh"

#include <cuda_runtime.h>

using namespace mal::deepstream;

namespace {

__global__ void cut(Frame frame, Rectangle crop, int size, Fill fill, float* out) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= size || y >= size) return;
    const Colour colour = crop_pixel(frame, crop, size, fill, x, y);
    const size_t plane = static_cast<size_t>(size) * size, at = static_cast<size_t>(y) * size + x;
    out[at] = colour.red;
    out[plane + at] = colour.green;
    out[2 * plane + at] = colour.blue;
}

}  // namespace

// One crop, (3, size, size) floats, into `out` on the device. Returns a cudaError_t.
extern "C" int mal_cut_crop_cuda(const Frame* frame, const Rectangle* crop, int size, int fill, float* out,
                                 void* stream) {
    const dim3 threads(32, 8), blocks((size + 31) / 32, (size + 7) / 8);
    cut<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(*frame, *crop, size, static_cast<Fill>(fill), out);
    return cudaGetLastError();
}
