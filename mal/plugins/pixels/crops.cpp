/*
Crops on the CPU, straight into the network's input.  What they mean: mal/crops.py.

Data      image (h, w, 3) u8, its pixels contiguous, rows `stride` bytes apart; rects (n, 4) f64 x0 y0 x1 y1, may leave
          the image; crops (n, 3, size, size) f32, whole numbers 0 .. 255. No aliasing.
Filter    a triangle as wide as an output pixel, or as an image pixel where that is wider; f32 weights.
Order     two passes, down the columns first where that leaves fewer rows, rounded to whole grey levels after each, as in
          Pillow. Where Pillow's order is another one, both are half a level off at most: a value may differ by one.
Speed     down: along memory, which compilers make good code of. across: two pixels of three colours at a time.
Same      on every machine: no fused multiply-adds, and sums in the order that stands here.
Build     g++ -O3 -march=native -shared -fPIC host.cpp      (host_library.py does it)
*/
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

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
    std::vector<int> start;      // the first pixel of each output pixel, relative to `first`
    std::vector<float> weights;  // `taps` an output pixel, as many for all: a loop that the processor can foresee
    int taps = 0;                // a multiple of `step`, the last ones without weight

    Axis(double low, double high, int size, int step) : start(size) {
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
        std::vector<double> exact(taps);
        taps = (taps + step - 1) / step * step;
        weights.resize(std::ptrdiff_t(size) * taps);
        for (int i = 0; i < size; ++i) {
            const double centre = begin + (i + 0.5) * scale;
            const int count = stop[i] - start[i];
            double sum = 0;
            for (int t = 0; t < count; ++t)
                sum += exact[t] = std::max(0.0, 1.0 - std::abs((t + start[i] - centre + 0.5) * (1.0 / reach)));
            for (int t = 0; t < count; ++t) weights[i * std::ptrdiff_t(taps) + t] = float(exact[t] / sum);
        }
    }
    std::ptrdiff_t length() const { return last - first; }
    int size() const { return int(start.size()); }
};

typedef float Eight __attribute__((vector_size(32)));

// Resamples lines of interleaved colours into three lines of one colour each.
class Across {
public:
    explicit Across(const Axis& axis) : axis_(axis), pairs_(axis.taps / 2), weights_(8 * axis.size() * pairs_) {
        for (int i = 0; i < axis.size(); ++i)
            for (int t = 0; t < axis.taps; ++t)
                std::fill_n(&weights_[8 * (i * pairs_ + t / 2) + 3 * (t % 2)], 3, axis.weights[i * axis.taps + t]);
    }
    // What is read behind the line's end has no weight, but must be a number.
    static constexpr std::ptrdiff_t kBehind = 8;

    void resample(const float* line, float* out) const {
        const int size = axis_.size();
        const float* weight = weights_.data();
        for (int i = 0; i < size; ++i) {
            const float* from = line + 3 * std::ptrdiff_t(axis_.start[i]);
            Eight sum = {};
            for (std::ptrdiff_t pair = 0; pair < pairs_; ++pair, from += 6, weight += 8) {
                Eight values, weights;
                std::memcpy(&values, from, sizeof values);
                std::memcpy(&weights, weight, sizeof weights);
                sum += values * weights;
            }
            out[i] = sum[0] + sum[3];
            out[size + i] = sum[1] + sum[4];
            out[2 * size + i] = sum[2] + sum[5];
        }
    }

private:
    const Axis& axis_;
    const std::ptrdiff_t pairs_;
    std::vector<float> weights_;  // eight a pair of pixels: w w w v v v 0 0
};

// out[x] = the sum of rows start .. start + taps, weighted. Four rows at a time, which compilers make good code of; the
// last ones may have no weight.
template <typename Value>
void resample_down(const Value* const* rows, const float* weights, int taps, std::ptrdiff_t length, float* __restrict__ out) {
    for (int t = 0; t < taps; t += 4) {
        const Value *a = rows[t], *b = rows[t + 1], *c = rows[t + 2], *d = rows[t + 3];
        const float u = weights[t], v = weights[t + 1], w = weights[t + 2], z = weights[t + 3];
        if (t == 0)
            for (std::ptrdiff_t x = 0; x < length; ++x)
                out[x] = float(a[x]) * u + float(b[x]) * v + float(c[x]) * w + float(d[x]) * z;
        else
            for (std::ptrdiff_t x = 0; x < length; ++x)
                out[x] = out[x] + float(a[x]) * u + float(b[x]) * v + float(c[x]) * w + float(d[x]) * z;
    }
}

void round_to(const float* values, std::ptrdiff_t count, float* out) {
    for (std::ptrdiff_t x = 0; x < count; ++x) out[x] = float(int(values[x] + 0.5f));
}

// Rows without weight that resample_down reads.
template <typename Row>
void repeat_last(std::vector<Row>& rows) {
    rows.resize(rows.size() + 3, rows.back());
}

// The columns of the filled image that a crop reads, made of a line of the image's own.
class Columns {
public:
    Columns(const Axis& across, std::ptrdiff_t width, int fill) : sources_(across.length()) {
        for (std::ptrdiff_t x = across.first; x < across.last; ++x)
            sources_[x - across.first] = source_of(x, width, fill);
        const auto [low, high] = std::minmax_element(sources_.begin(), sources_.end());
        first_ = *low, length_ = *high + 1 - *low;
        inner_ = std::clamp<std::ptrdiff_t>(0, across.first, across.last) - across.first;
        outer_ = std::clamp<std::ptrdiff_t>(width, across.first + inner_, across.last) - across.first;
    }
    std::ptrdiff_t first() const { return first_; }
    std::ptrdiff_t length() const { return length_; }

    // own: pixels first() .. first() + length() of the image. out: all that the crop reads.
    void fill(const float* own, float* out) const {
        const auto one = [&](std::ptrdiff_t x) { std::memcpy(out + 3 * x, own + 3 * (sources_[x] - first_), 12); };
        for (std::ptrdiff_t x = 0; x < inner_; ++x) one(x);
        if (inner_ < outer_)
            std::memcpy(out + 3 * inner_, own + 3 * (sources_[inner_] - first_), 12 * (outer_ - inner_));
        for (std::ptrdiff_t x = outer_; x < std::ptrdiff_t(sources_.size()); ++x) one(x);
    }

private:
    std::vector<std::ptrdiff_t> sources_;
    std::ptrdiff_t first_, length_, inner_, outer_;  // inner .. outer lie in the image
};

class Cutter {
public:
    Cutter(const uint8_t* image, int64_t height, int64_t width, int64_t stride, int size, int fill)
        : image_(image), height_(height), width_(width), stride_(stride), size_(size), fill_(fill) {}

    void cut(const double* rect, float* crop) {
        const Axis across(rect[0], rect[2], size_, 2), down(rect[1], rect[3], size_, 4);
        const Columns columns(across, width_, fill_);
        const Across resampler(across);
        const std::ptrdiff_t length = 3 * columns.length(), side = 3 * std::ptrdiff_t(size_);
        std::vector<const uint8_t*> rows(down.length());
        for (std::ptrdiff_t y = 0; y < down.length(); ++y)
            rows[y] = image_ + source_of(down.first + y, height_, fill_) * stride_ + 3 * columns.first();
        own_.resize(length);
        line_.assign(3 * across.length() + Across::kBehind, 0);
        planes_.resize(side);
        if (down.length() > size_) {
            repeat_last(rows);
            for (int i = 0; i < size_; ++i) {
                resample_down(&rows[down.start[i]], &down.weights[i * down.taps], down.taps, length, own_.data());
                round_to(own_.data(), length, own_.data());
                columns.fill(own_.data(), line_.data());
                resampler.resample(line_.data(), planes_.data());
                round_into(crop, i);
            }
        } else {
            between_.resize(down.length() * side);
            std::vector<const float*> lines(down.length());
            for (std::ptrdiff_t y = 0; y < down.length(); ++y) {
                lines[y] = &between_[y * side];
                std::copy_n(rows[y], length, own_.data());
                columns.fill(own_.data(), line_.data());
                resampler.resample(line_.data(), &between_[y * side]);
                round_to(&between_[y * side], side, &between_[y * side]);
            }
            repeat_last(lines);
            for (int i = 0; i < size_; ++i) {
                resample_down(&lines[down.start[i]], &down.weights[i * down.taps], down.taps, side, planes_.data());
                round_into(crop, i);
            }
        }
    }

private:
    // The lines in planes_ are line i of the crop.
    void round_into(float* crop, std::ptrdiff_t i) const {
        for (std::ptrdiff_t colour = 0; colour < 3; ++colour)
            round_to(planes_.data() + colour * size_, size_, crop + (colour * size_ + i) * size_);
    }

    const uint8_t* const image_;
    const std::ptrdiff_t height_, width_, stride_;
    const int size_, fill_;
    std::vector<float> own_, line_, between_, planes_;
};

}  // namespace

// Cut n crops. Returns 0, 1 for arguments out of range, or 2 when memory ran out. Rectangles are the caller's to check.
extern "C" __attribute__((visibility("default"))) int mal_cut_crops_host(
    const uint8_t* image, int64_t height, int64_t width, int64_t stride, const double* rects, int64_t n, int32_t size,
    int32_t fill, float* crops) {
    if (height < 1 || width < 1 || stride < 3 * width || n < 0 || size < 1 || fill < kReflect || fill > kWrap) return 1;
    try {
        Cutter cutter(image, height, width, stride, size, fill);
        for (int64_t i = 0; i < n; ++i) cutter.cut(rects + 4 * i, crops + i * 3 * int64_t(size) * size);
    } catch (const std::bad_alloc&) {
        return 2;
    }
    return 0;
}
