/* What crops.cu does, on memory of the host: the same lines of crop.cuh, a call for a thread. */
#include <algorithm>
#include <cmath>

#include "../../../mal/plugins/deepstream/nvdsinfer_custom_impl_mal/crop.cuh"

using namespace mal::deepstream;

extern "C" int mal_cut_crops_cuda(const uint8_t* image, int height, int width, const double* rects, int n, int size,
                                  int fill, float* crops, void*) {
    const Frame frame = rgb_frame(image, width, height);
    for (int i = 0; i < n; ++i)
        for (int y = 0; y < size; ++y)
            for (int x = 0; x < size; ++x) {
                const Rectangle rect{rects[4 * i], rects[4 * i + 1], rects[4 * i + 2], rects[4 * i + 3]};
                const Colour colour = crop_pixel(frame, rect, size, static_cast<Fill>(fill), x, y);
                float* out = crops + static_cast<size_t>(3) * size * size * i + size * y + x;
                out[0] = rintf(colour.red);
                out[size * size] = rintf(colour.green);
                out[2 * size * size] = rintf(colour.blue);
            }
    return 0;
}
