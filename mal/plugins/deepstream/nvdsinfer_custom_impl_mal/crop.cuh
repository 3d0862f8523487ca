/*
A crop as the model was trained on, read from a frame in GPU memory: any float rectangle, anti-aliased, filled outside.
One pixel a call; g++ and nvcc compile the same lines. What it means: mal/crops.py, whose judge is Pillow.
*/
#pragma once

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define MAL_BOTH __host__ __device__
#else
#define MAL_BOTH
#endif

namespace mal::deepstream {

enum class Fill { reflect, edge, wrap };

// RGB or RGBA, or NV12: a plane of luma and one of interleaved chroma at half size.
struct Frame {
    const uint8_t* first;   // RGB or RGBA pixels, or luma
    const uint8_t* chroma;  // nullptr for RGB and RGBA
    int step;               // bytes a pixel: 3 or 4; NV12 needs none
    unsigned first_pitch, chroma_pitch;
    int width, height;
    // RGB = luma_scale * (Y - luma_zero) + what chroma adds. Source: ITU-R BT.601, BT.709.
    float luma_zero, luma_scale, red_v, green_u, green_v, blue_u;
};

// An image of RGB bytes without padding.
inline Frame rgb_frame(const uint8_t* pixels, int width, int height) {
    Frame frame{};
    frame.first = pixels;
    frame.step = 3;
    frame.first_pitch = 3u * static_cast<unsigned>(width);
    frame.width = width;
    frame.height = height;
    return frame;
}

struct Colour {
    float red, green, blue;
};

struct Rectangle {
    double x0, y0, x1, y1;
};

MAL_BOTH inline int source_of(int at, int length, Fill fill) {
    if (at >= 0 && at < length) return at;
    if (fill == Fill::edge) return at < 0 ? 0 : length - 1;
    const int period = fill == Fill::reflect ? 2 * length : length;
    at %= period;
    if (at < 0) at += period;
    return at < length ? at : period - 1 - at;
}

MAL_BOTH inline float grey(float value) { return fminf(fmaxf(value, 0.f), 255.f); }

MAL_BOTH inline Colour pixel_of(const Frame& frame, int x, int y) {
    const uint8_t* first = frame.first + static_cast<size_t>(y) * frame.first_pitch;
    if (!frame.chroma) {
        first += static_cast<size_t>(frame.step) * x;
        return {float(first[0]), float(first[1]), float(first[2])};
    }
    const uint8_t* chroma = frame.chroma + static_cast<size_t>(y / 2) * frame.chroma_pitch + x / 2 * 2;
    const float luma = frame.luma_scale * (float(first[x]) - frame.luma_zero);
    const float u = float(chroma[0]) - 128, v = float(chroma[1]) - 128;
    return {grey(luma + frame.red_v * v), grey(luma + frame.green_u * u + frame.green_v * v),
            grey(luma + frame.blue_u * u)};
}

// Frame pixels under a triangle as wide as one output pixel, or as two frame pixels where those are larger.
struct Taps {
    int start, stop;
    double centre, inverse;
    MAL_BOTH Taps(double low, double high, int size, int index) {
        const double step = (high - low) / size, support = step > 1 ? step : 1;
        centre = low + (index + 0.5) * step;
        inverse = 1 / support;
        start = static_cast<int>(floor(centre - support + 0.5));
        stop = static_cast<int>(floor(centre + support + 0.5));
    }
    MAL_BOTH float weight(int at) const {
        const double distance = fabs(at + 0.5 - centre) * inverse;
        return distance < 1 ? static_cast<float>(1 - distance) : 0.f;
    }
};

// Pixel (x, y) of the crop of `size` x `size` pixels; grey levels 0..255.
MAL_BOTH inline Colour crop_pixel(const Frame& frame, const Rectangle& crop, int size, Fill fill, int x, int y) {
    const Taps across(crop.x0, crop.x1, size, x), down(crop.y0, crop.y1, size, y);
    Colour sum{0, 0, 0};
    float total = 0;
    for (int row = down.start; row < down.stop; ++row) {
        const int from_row = source_of(row, frame.height, fill);
        const float row_weight = down.weight(row);
        for (int column = across.start; column < across.stop; ++column) {
            const float weight = row_weight * across.weight(column);
            const Colour colour = pixel_of(frame, source_of(column, frame.width, fill), from_row);
            sum.red += weight * colour.red;
            sum.green += weight * colour.green;
            sum.blue += weight * colour.blue;
            total += weight;
        }
    }
    return {sum.red / total, sum.green / total, sum.blue / total};
}

}  // namespace mal::deepstream
