/*
Crops on the CPU.  What they mean: mal/crops.py.

Data      image (h, w, 3) u8, its pixels contiguous, rows `stride` bytes apart; rects (n, 4) f64 x0 y0 x1 y1, may leave
          the image; crops (n, size, size, 3) u8. No aliasing.
Filter    a triangle as wide as an output pixel, or as an image pixel where that is wider; 22-bit weights.
Order     two passes, rounded to 8 bits between them, as in Pillow; the one that leaves less to do goes first. Where
          Pillow's order is another one, a value may differ by one grey level.
Source    the patch under the filter, as one pointer a row: into the image itself, or into a filled copy.
Build     g++ -O3 -march=native -shared -fPIC host.cpp      (host_library.py does it)
*/
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

using Row = const uint8_t*;

constexpr int kBits = 22;  // of a weight: 255 << 22 and the rounding fit an int32
constexpr int kHalf = 1 << (kBits - 1);  // rounds; thousands of weights, each rounded up, may still give 256

enum Fill { kReflect = 0, kEdge = 1, kWrap = 2 };  // the order in compiled.py

// Where row (or column) i of the filled image is read.
std::ptrdiff_t source_of(std::ptrdiff_t i, std::ptrdiff_t length, int fill) {
    if (fill == kEdge) return std::clamp<std::ptrdiff_t>(i, 0, length - 1);
    const std::ptrdiff_t period = fill == kWrap ? length : 2 * length;
    i %= period;
    if (i < 0) i += period;
    return std::min(i, 2 * length - 1 - i);
}

// Whole pixels first .. last of one axis that a crop reads, and what each of them counts in each output pixel.
struct Axis {
    std::ptrdiff_t first, last;
    std::vector<int> start;    // the first pixel of each output pixel, relative to `first`
    std::vector<int> weights;  // `taps` an output pixel, as many for all: a loop that the processor can foresee
    int taps = 0;

    Axis(double low, double high, int size) : start(size) {
        const double support = std::max(1.0, (high - low) / size);
        first = std::ptrdiff_t(std::floor(low - support)) - 1;
        last = std::ptrdiff_t(std::ceil(high + support)) + 1;
        // Pillow takes the edges as float32.
        const float begin = float(low - double(first)), end = float(high - double(first));
        const double scale = double(end - begin) / size, reach = std::max(1.0, scale);
        std::vector<int> stop(size);
        for (int i = 0; i < size; ++i) {
            const double centre = begin + (i + 0.5) * scale;
            start[i] = std::max(0, int(centre - reach + 0.5));
            stop[i] = int(std::min<std::ptrdiff_t>(length(), std::ptrdiff_t(centre + reach + 0.5)));
            taps = std::max(taps, stop[i] - start[i]);
        }
        weights.resize(std::ptrdiff_t(size) * taps);
        std::vector<double> exact(taps);
        for (int i = 0; i < size; ++i) {
            start[i] = std::min(start[i], int(length()) - taps);
            const double centre = begin + (i + 0.5) * scale;
            double sum = 0;
            for (int t = 0; t < taps; ++t)
                sum += exact[t] = std::max(0.0, 1.0 - std::abs((t + start[i] - centre + 0.5) * (1.0 / reach)));
            for (int t = 0; t < taps; ++t) weights[i * std::ptrdiff_t(taps) + t] = int(0.5 + exact[t] / sum * (1 << kBits));
        }
    }
    std::ptrdiff_t length() const { return last - first; }
};

// Two pixels of four values each; the fourth is the right neighbour's red, for whoever throws it away.
typedef uint8_t Bytes __attribute__((vector_size(8)));
typedef int Ints __attribute__((vector_size(32)));

// rows: at least one readable byte behind their last pixel. out: (rows.size(), size, 3).
void resample_across(const std::vector<Row>& rows, const Axis& axis, uint8_t* out) {
    const int size = int(axis.start.size());
    const std::ptrdiff_t side = 3 * std::ptrdiff_t(size), count = std::ptrdiff_t(rows.size());
    for (std::ptrdiff_t y = 0; y < count; y += 2) {  // two rows share the weights; an odd last row is its own partner
        const std::ptrdiff_t partner = std::min(y + 1, count - 1);
        uint8_t* const line[2] = {out + y * side, out + partner * side};
        for (int i = 0; i < size; ++i) {
            const std::ptrdiff_t at = 3 * std::ptrdiff_t(axis.start[i]);
            const uint8_t *upper = rows[y] + at, *lower = rows[partner] + at;
            const int* weight = axis.weights.data() + i * std::ptrdiff_t(axis.taps);
            Ints sum = {kHalf, kHalf, kHalf, kHalf, kHalf, kHalf, kHalf, kHalf};
            for (int t = 0; t < axis.taps; ++t) {
                Bytes values;
                std::memcpy(&values, upper + 3 * t, 4);
                std::memcpy(reinterpret_cast<uint8_t*>(&values) + 4, lower + 3 * t, 4);
                sum += __builtin_convertvector(values, Ints) * weight[t];
            }
            sum >>= kBits;
            const Bytes pixels = __builtin_convertvector(sum > 255 ? Ints{} + 255 : sum, Bytes);
            const int bytes = i + 1 < size ? 4 : 3;  // the fourth is written again
            std::memcpy(line[0] + 3 * i, &pixels, bytes);
            std::memcpy(line[1] + 3 * i, reinterpret_cast<const uint8_t*>(&pixels) + 4, bytes);
        }
    }
}

// rows: axis.length() of them, `bytes` long. out: (size, bytes).
void resample_down(const std::vector<Row>& rows, const Axis& axis, std::ptrdiff_t bytes, uint8_t* out) {
    constexpr std::ptrdiff_t kBlock = 64;  // sums of so many values stay in registers
    const int size = int(axis.start.size());
    for (int i = 0; i < size; ++i, out += bytes) {
        const int* weight = axis.weights.data() + i * std::ptrdiff_t(axis.taps);
        const Row* from = rows.data() + axis.start[i];
        const auto block = [&](std::ptrdiff_t at, std::ptrdiff_t values) {
            int sum[kBlock];
            std::fill_n(sum, values, kHalf);
            for (int t = 0; t < axis.taps; ++t)
                for (std::ptrdiff_t b = 0; b < values; ++b) sum[b] += from[t][at + b] * weight[t];
            for (std::ptrdiff_t b = 0; b < values; ++b) out[at + b] = uint8_t(std::min(sum[b] >> kBits, 255));
        };
        std::ptrdiff_t at = 0;
        for (; at + kBlock <= bytes; at += kBlock) block(at, kBlock);
        if (at < bytes) block(at, bytes - at);
    }
}

std::vector<Row> rows_of(const uint8_t* values, std::ptrdiff_t count, std::ptrdiff_t stride) {
    std::vector<Row> rows(count);
    for (std::ptrdiff_t y = 0; y < count; ++y) rows[y] = values + y * stride;
    return rows;
}

class Cutter {
public:
    Cutter(const uint8_t* image, int64_t height, int64_t width, int64_t stride, int size, int fill)
        : image_(image), height_(height), width_(width), stride_(stride), size_(size), fill_(fill) {}

    void cut(const double* rect, uint8_t* crop) {
        const Axis across(rect[0], rect[2], size_), down(rect[1], rect[3], size_);
        const std::vector<Row> rows = patch(across, down);
        const std::ptrdiff_t side = 3 * std::ptrdiff_t(size_);
        if (down.length() > size_ && down.length() > across.length()) {
            between_.resize(size_ * 3 * across.length() + 1);
            resample_down(rows, down, 3 * across.length(), between_.data());
            resample_across(rows_of(between_.data(), size_, 3 * across.length()), across, crop);
        } else {
            between_.resize(down.length() * side);
            resample_across(rows, across, between_.data());
            resample_down(rows_of(between_.data(), down.length(), side), down, side, crop);
        }
    }

private:
    std::vector<Row> patch(const Axis& across, const Axis& down) {
        // Not up to the last column: one byte behind the patch is read, and the image may end there.
        const bool within = across.first >= 0 && across.last < width_;
        const std::ptrdiff_t bytes = 3 * across.length();
        std::vector<Row> rows(down.length());
        if (!within) filled_.resize(down.length() * bytes + 1);
        for (std::ptrdiff_t y = 0; y < down.length(); ++y) {
            const uint8_t* line = image_ + source_of(down.first + y, height_, fill_) * stride_;
            if (within) {
                rows[y] = line + 3 * across.first;
            } else {
                uint8_t* copy = filled_.data() + y * bytes;
                fill_line(line, across, copy);
                rows[y] = copy;
            }
        }
        return rows;
    }

    void fill_line(const uint8_t* line, const Axis& across, uint8_t* copy) const {
        const auto one = [&](std::ptrdiff_t x) {
            std::memcpy(copy + 3 * (x - across.first), line + 3 * source_of(x, width_, fill_), 3);
        };
        const std::ptrdiff_t from = std::clamp<std::ptrdiff_t>(0, across.first, across.last);
        const std::ptrdiff_t to = std::clamp<std::ptrdiff_t>(width_, from, across.last);
        for (std::ptrdiff_t x = across.first; x < from; ++x) one(x);
        std::memcpy(copy + 3 * (from - across.first), line + 3 * from, 3 * (to - from));
        for (std::ptrdiff_t x = to; x < across.last; ++x) one(x);
    }

    const uint8_t* const image_;
    const std::ptrdiff_t height_, width_, stride_;
    const int size_, fill_;
    std::vector<uint8_t> filled_, between_;
};

}  // namespace

// Cut n crops. Returns 0, 1 for arguments out of range, or 2 when memory ran out. Rectangles are the caller's to check.
extern "C" __attribute__((visibility("default"))) int mal_cut_crops_host(
    const uint8_t* image, int64_t height, int64_t width, int64_t stride, const double* rects, int64_t n, int32_t size,
    int32_t fill, uint8_t* crops) {
    if (height < 1 || width < 1 || stride < 3 * width || n < 0 || size < 1 || fill < kReflect || fill > kWrap) return 1;
    try {
        Cutter cutter(image, height, width, stride, size, fill);
        for (int64_t i = 0; i < n; ++i) cutter.cut(rects + 4 * i, crops + i * 3 * int64_t(size) * size);
    } catch (const std::bad_alloc&) {
        return 2;
    }
    return 0;
}
