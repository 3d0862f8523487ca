#include "geometry.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace mal::deepstream {
namespace {

constexpr double kLongest = 4096;  // cells along a side, whatever the box says

struct Side {
    double low, high;
};

Side even_side(double low, double high, double expansion, unsigned length) {
    const double margin = (high - low) * (expansion / 2), last = length / 2;  // in steps of two pixels
    double start = std::min(std::floor((low - margin) / 2 + 0.5), std::floor(low / 2));
    double stop = std::max(std::floor((high + margin) / 2 + 0.5), std::ceil(high / 2));
    start = std::min(std::max(start, 0.0), last - 1);
    stop = std::max(std::min(stop, last), start + 1);
    return {2 * start, 2 * stop};
}

// Where one cell's centre falls on the map: the lower cell of it and the weight of the next.
struct Sample {
    std::size_t cell;
    float weight;
    bool inside;
};

std::vector<Sample> samples(unsigned count, Side rectangle, Side visible, Side crop, unsigned length) {
    std::vector<Sample> found(count);
    const double step = (rectangle.high - rectangle.low) / count, scale = length / (crop.high - crop.low);
    for (unsigned i = 0; i < count; ++i) {
        const double centre = rectangle.low + (i + 0.5) * step;
        const double at = std::clamp((centre - crop.low) * scale - 0.5, 0.0, length - 1.0);
        const std::size_t cell = std::min(static_cast<std::size_t>(at), static_cast<std::size_t>(std::max(length, 2u) - 2));
        found[i] = {cell, static_cast<float>(at - static_cast<double>(cell)),
                    centre >= visible.low && centre < visible.high};
    }
    return found;
}

float lerp(float low, float high, float weight) { return (high - low) * weight + low; }

}  // namespace

Box visible_part(float left, float top, float width, float height, unsigned frame_width, unsigned frame_height) {
    const double x = left, y = top;
    const Box box{std::max(x, 0.0), std::max(y, 0.0), std::min(x + width, static_cast<double>(frame_width)),
                  std::min(y + height, static_cast<double>(frame_height))};
    // std::max and std::min pass over a NaN in their second argument, so it is asked for.
    const bool finite = std::isfinite(left) && std::isfinite(top) && std::isfinite(width) && std::isfinite(height);
    return finite ? box : Box{0, 0, 0, 0};
}

Box grown(const Box& box, double expansion) {
    const double x = (box.x1 - box.x0) * (expansion / 2), y = (box.y1 - box.y0) * (expansion / 2);
    return {box.x0 - x, box.y0 - y, box.x1 + x, box.y1 + y};
}

Box crop_in_frame(const Box& box, double expansion, unsigned frame_width, unsigned frame_height) {
    const Side x = even_side(box.x0, box.x1, expansion, frame_width);
    const Side y = even_side(box.y0, box.y1, expansion, frame_height);
    return {x.low, y.low, x.high, y.high};
}

Mask cut_mask(const float* logits, unsigned width, unsigned height, const Box& crop, const Box& rectangle,
              const Box& visible, unsigned longest_side) {
    const double limit = longest_side ? std::min<double>(longest_side, kLongest) : kLongest;
    const double wide = rectangle.x1 - rectangle.x0, high = rectangle.y1 - rectangle.y0;
    const double scale = std::min(1.0, limit / std::max(wide, high));
    Mask mask;
    mask.width = static_cast<unsigned>(std::max(1.0, std::round(wide * scale)));
    mask.height = static_cast<unsigned>(std::max(1.0, std::round(high * scale)));
    mask.cells.resize(static_cast<std::size_t>(mask.width) * mask.height);

    const auto columns = samples(mask.width, {rectangle.x0, rectangle.x1}, {visible.x0, visible.x1}, {crop.x0, crop.x1},
                                 width);
    const auto rows = samples(mask.height, {rectangle.y0, rectangle.y1}, {visible.y0, visible.y1}, {crop.y0, crop.y1},
                              height);
    std::vector<float> line(width);  // the row between two rows of the map
    float* out = mask.cells.data();
    for (const Sample& row : rows) {
        if (row.inside) {
            const float* upper = logits + row.cell * width;
            const float* lower = row.cell + 1 < height ? upper + width : upper;
            for (unsigned x = 0; x < width; ++x) line[x] = lerp(upper[x], lower[x], row.weight);
            for (unsigned x = 0; x < mask.width; ++x) {
                const Sample& column = columns[x];
                const float next = line[std::min(column.cell + 1, static_cast<std::size_t>(width - 1))];
                const float value = lerp(line[column.cell], next, column.weight);
                if (column.inside && value > 0) out[x] = value;
            }
        }
        out += mask.width;
    }
    return mask;
}

}  // namespace mal::deepstream
