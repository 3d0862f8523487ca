/* crop.cuh and frame.cpp on the CPU, for ctypes: a surface in ordinary memory. */
#include "frame.h"

using namespace mal::deepstream;

extern "C" int crop_on_cpu(void* pixels, unsigned width, unsigned height, unsigned pitch, int colour, const double* rect,
                           int size, int fill, float* out) {
    NvBufSurfaceParams surface{};
    surface.width = width;
    surface.height = height;
    surface.dataPtr = pixels;
    surface.colorFormat = static_cast<NvBufSurfaceColorFormat>(colour);
    surface.planeParams.pitch[0] = surface.planeParams.pitch[1] = pitch;
    surface.planeParams.offset[1] = pitch * height;
    Frame frame;
    if (!make_frame(surface, &frame)) return 0;
    const Rectangle crop{rect[0], rect[1], rect[2], rect[3]};
    for (int y = 0; y < size; ++y)
        for (int x = 0; x < size; ++x) {
            const Colour colour_at = crop_pixel(frame, crop, size, static_cast<Fill>(fill), x, y);
            const float values[] = {colour_at.red, colour_at.green, colour_at.blue};
            for (int channel = 0; channel < 3; ++channel) out[(channel * size + y) * size + x] = values[channel];
        }
    return 1;
}
