/*
Crops on the CPU, straight into the network's input.  What they mean: mal/crops.py.

Data      image (h, w, 3) u8, its pixels contiguous, rows `stride` bytes apart; rects (n, 4) f64 x0 y0 x1 y1, may leave
          the image; crops (n, 3, size, size) f32, whole numbers 0 .. 255. No aliasing.
Filter    a triangle as wide as an output pixel, or as an image pixel where that is wider.
Order     two passes, down the columns first where that leaves fewer rows, rounded to whole grey levels after each, as
          in Pillow. Where Pillow's order is another one, both are half a level off at most: a value may differ by one.
Speed     every pass is a sum of whole lines; between the passes the picture is turned, so that columns are lines. Lines
          are found by pointers, so what is filled in outside the image costs nothing.
Same      on every machine: integers, and weights from f64 without fused multiply-adds.
Build     g++ -O3 -march=native -shared -fPIC crops.cpp      (host_library.py does it)
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

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

enum Fill { kReflect = 0, kEdge = 1, kWrap = 2 };  // the order in compiled.py

constexpr std::ptrdiff_t kTile = 32;  // bytes of a line that are worked on at a time

std::ptrdiff_t whole_tiles(std::ptrdiff_t bytes) { return (bytes + kTile - 1) / kTile * kTile; }

// Where row (or column) i of the filled image is read.
std::ptrdiff_t source_of(std::ptrdiff_t i, std::ptrdiff_t length, int fill) {
    if (fill == kEdge) return std::clamp<std::ptrdiff_t>(i, 0, length - 1);
    const std::ptrdiff_t period = fill == kWrap ? length : 2 * length;
    i %= period;
    if (i < 0) i += period;
    return std::min(i, 2 * length - 1 - i);
}

// One axis of a crop: which pixels of the image it reads, and what each of them counts in each output pixel.
struct Axis {
    std::ptrdiff_t first, length;        // of the image's pixels that are read
    std::vector<std::ptrdiff_t> places;  // among these, of the filled image's pixels in their order
    std::vector<int> start;              // of each output pixel: the first of its places
    std::vector<int16_t> weights;        // `taps` an output pixel, together 1 << shift
    int taps = 0, shift = 0;             // taps: even, the last ones perhaps without weight

    Axis(double low, double high, std::ptrdiff_t image, int size, int fill) : start(size) {
        const double support = std::max(1.0, (high - low) / size);
        const std::ptrdiff_t begins = std::ptrdiff_t(std::floor(low - support)) - 1;
        places.resize(std::ptrdiff_t(std::ceil(high + support)) + 1 - begins);
        find_places(begins, image, fill);
        // Pillow takes the edges as float32.
        find_weights(float(low - double(begins)), float(high - double(begins)));
    }
    int size() const { return int(start.size()); }

private:
    void find_places(std::ptrdiff_t begins, std::ptrdiff_t image, int fill) {
        for (std::size_t i = 0; i < places.size(); ++i) places[i] = source_of(begins + std::ptrdiff_t(i), image, fill);
        const auto [low, high] = std::minmax_element(places.begin(), places.end());
        first = *low, length = *high + 1 - first;
        for (std::ptrdiff_t& place : places) place -= first;
    }

    void find_weights(float begin, float end) {
        const double scale = double(end - begin) / size(), reach = std::max(1.0, scale);
        std::vector<double> exact, sums(size());  // one after the other; of each output pixel
        std::vector<int> counts(size());
        double largest = 0;
        for (int i = 0; i < size(); ++i) {
            const double centre = begin + (i + 0.5) * scale;
            start[i] = std::max(0, int(centre - reach + 0.5));
            counts[i] = int(std::min<std::ptrdiff_t>(places.size(), std::ptrdiff_t(centre + reach + 0.5))) - start[i];
            taps = std::max(taps, counts[i]);
            double most = 0;
            for (int t = 0; t < counts[i]; ++t) {
                exact.push_back(std::max(0.0, 1.0 - std::abs((t + start[i] - centre + 0.5) * (1.0 / reach))));
                sums[i] += exact.back(), most = std::max(most, exact.back());
            }
            largest = std::max(largest, most / sums[i]);
        }
        taps += taps % 2;
        places.resize(places.size() + taps, places.back());  // what has no weight is read, too
        // As fine as 16 bits hold the weights, and 32 the sums.
        for (shift = 14; shift < 22 && largest * (2 << shift) < 32767;) ++shift;
        weights.resize(std::ptrdiff_t(size()) * taps);
        const double* next = exact.data();
        for (int i = 0; i < size(); ++i) {
            // It is their sums that are rounded, so that all of them together are one: white stays white.
            double before = 0;
            for (int t = 0, done = 0; t < counts[i]; ++t) {
                before += *next++ / sums[i];
                const int now = int(before * (1 << shift) + 0.5);
                weights[i * std::ptrdiff_t(taps) + t] = int16_t(now - done);
                done = now;
            }
        }
    }
};

// A picture of bytes, its lines `stride` bytes apart.
struct Picture {
    const uint8_t* at;
    std::ptrdiff_t stride;
};

// Sixteen sums of bytes, each times the weight of its line; two lines at a time.
#if defined(__AVX2__)
struct Sums {
    __m256i low = _mm256_setzero_si256(), high = low;

    void add(const uint8_t* one, const uint8_t* other, const int16_t* weights) {
        int32_t two;
        std::memcpy(&two, weights, sizeof two);
        const __m256i a = load(one), b = load(other), pair = _mm256_set1_epi32(two);
        low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), pair));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), pair));
    }
    void round_to(uint8_t* out, int shift) const {
        const __m256i half = _mm256_set1_epi32(1 << (shift - 1));
        const __m256i all = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_add_epi32(low, half), shift),
                                               _mm256_srai_epi32(_mm256_add_epi32(high, half), shift));
        const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    }

private:
    static __m256i load(const uint8_t* bytes) {
        return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    }
};
#else
struct Sums {
    int32_t sums[16] = {};

    void add(const uint8_t* one, const uint8_t* other, const int16_t* weights) {
        for (int i = 0; i < 16; ++i) sums[i] += one[i] * weights[0] + other[i] * weights[1];
    }
    void round_to(uint8_t* out, int shift) const {
        for (int i = 0; i < 16; ++i) out[i] = uint8_t((sums[i] + (1 << (shift - 1))) >> shift);
    }
};
#endif

// Line i of `out` is the sum of the lines of `from` that output pixel i of the axis reads. At least a tile of each is
// read and written.
void resample(const Axis& axis, Picture from, std::ptrdiff_t length, uint8_t* out, std::ptrdiff_t stride) {
    std::vector<const uint8_t*> places(axis.places.size());
    for (std::size_t i = 0; i < places.size(); ++i) places[i] = from.at + axis.places[i] * from.stride;
    for (int i = 0; i < axis.size(); ++i, out += stride) {
        const uint8_t* const* const lines = &places[axis.start[i]];
        const int16_t* const weights = &axis.weights[i * std::ptrdiff_t(axis.taps)];
        // Lines that the next output pixel reads first: asked for now, they are there in time.
        const int soon = i + 1 < axis.size() ? axis.start[i + 1] - axis.start[i] : 0;
        for (std::ptrdiff_t tile = 0; tile < length; tile += kTile) {
            const std::ptrdiff_t x = std::max<std::ptrdiff_t>(std::min(tile, length - kTile), 0);
            for (int t = 0; t < soon; ++t) __builtin_prefetch(lines[axis.taps + t] + x, 0, 2);
            Sums left, right;
            for (int t = 0; t < axis.taps; t += 2) {
                left.add(lines[t] + x, lines[t + 1] + x, weights + t);
                right.add(lines[t] + x + 16, lines[t + 1] + x + 16, weights + t);
            }
            left.round_to(out + x, axis.shift);
            right.round_to(out + x + 16, axis.shift);
        }
    }
}

typedef uint8_t Bytes __attribute__((vector_size(16)));

#if defined(__clang__)
#define MAL_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MAL_PICK(a, b, ...) __builtin_shuffle(a, b, Bytes{__VA_ARGS__})
#endif

// Bytes of a and b in turn, of their first and of their second halves.
inline Bytes deal_first(Bytes a, Bytes b) {
    return MAL_PICK(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Bytes deal_second(Bytes a, Bytes b) {
    return MAL_PICK(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Columns become lines, in squares of 16; whole ones are read and written.
void turn(Picture from, std::ptrdiff_t lines, std::ptrdiff_t length, uint8_t* out, std::ptrdiff_t stride) {
    for (std::ptrdiff_t x = 0; x < length; x += 16)
        for (std::ptrdiff_t y = 0; y < lines; y += 16) {
            Bytes square[16], next[16];
            for (int i = 0; i < 16; ++i) std::memcpy(&square[i], from.at + (y + i) * from.stride + x, 16);
            // As a pack of 256 cards whose halves are dealt into each other: four times.
            for (int round = 0; round < 4; ++round) {
                for (int i = 0; i < 8; ++i) {
                    next[2 * i] = deal_first(square[i], square[i + 8]);
                    next[2 * i + 1] = deal_second(square[i], square[i + 8]);
                }
                std::copy_n(next, 16, square);
            }
            for (int i = 0; i < 16; ++i) std::memcpy(out + (x + i) * stride + y, &square[i], 16);
        }
}

// Cuts crops of one image.
class Cutter {
public:
    Cutter(const uint8_t* image, int64_t height, int64_t width, int64_t stride, int size, int fill)
        : image_(image), height_(height), width_(width), stride_(stride), size_(size), fill_(fill) {}

    void cut(const double* rect, float* crop) {
        const Axis across(rect[0], rect[2], width_, size_, fill_), down(rect[1], rect[3], height_, size_, fill_);
        const Picture window{image_ + down.first * stride_ + 3 * across.first, stride_};
        if (down.length > size_) cut_down_first(across, down, window, crop);
        else cut_across_first(across, down, window, crop);
    }

private:
    // A line of bytes that is turned is a colour of a column; three of them are a pixel of the axis across.
    void cut_down_first(const Axis& across, const Axis& down, Picture window, float* crop) {
        const std::ptrdiff_t length = 3 * across.length, side = whole_tiles(size_);
        if (length < kTile) window = copy(window, down.length, length, one_);  // a tile may not be there
        const Picture lines = room(side, whole_tiles(length), other_);
        resample(down, window, length, other_.data(), lines.stride);
        const Picture columns = room(lines.stride, side, one_);
        turn(lines, size_, length, one_.data(), columns.stride);
        room(side, 3 * side, other_);
        resample(across, {columns.at, 3 * side}, 3 * side, other_.data(), 3 * side);
        const Picture plane = room(side, side, one_);
        for (std::ptrdiff_t colour = 0; colour < 3; ++colour) {
            turn({other_.data() + colour * side, 3 * side}, size_, size_, one_.data(), side);
            write(plane, crop + colour * size_ * size_);
        }
    }

    void cut_across_first(const Axis& across, const Axis& down, Picture window, float* crop) {
        const std::ptrdiff_t length = 3 * across.length, height = whole_tiles(down.length), side = whole_tiles(size_);
        const Picture lines = copy(window, down.length, length, one_);
        const Picture columns = room(lines.stride, height, other_);
        turn(lines, down.length, length, other_.data(), height);
        room(side, 3 * height, one_);
        resample(across, {columns.at, 3 * height}, 3 * height, one_.data(), 3 * height);
        const Picture planes = room(3 * height, side, other_);
        turn({one_.data(), 3 * height}, size_, 3 * height, other_.data(), side);
        const Picture plane = room(side, side, one_);
        for (std::ptrdiff_t colour = 0; colour < 3; ++colour) {
            resample(down, {planes.at + colour * height * side, side}, size_, one_.data(), side);
            write(plane, crop + colour * size_ * size_);
        }
    }

    // Room for a picture; what it holds is anything.
    static Picture room(std::ptrdiff_t lines, std::ptrdiff_t stride, std::vector<uint8_t>& bytes) {
        if (std::ptrdiff_t(bytes.size()) < lines * stride) bytes.resize(lines * stride);
        return {bytes.data(), stride};
    }

    static Picture copy(Picture from, std::ptrdiff_t lines, std::ptrdiff_t length, std::vector<uint8_t>& bytes) {
        const Picture made = room(whole_tiles(lines), whole_tiles(length), bytes);
        for (std::ptrdiff_t y = 0; y < lines; ++y)
            std::memcpy(&bytes[y * made.stride], from.at + y * from.stride, length);
        return made;
    }

    void write(Picture plane, float* out) const {
        for (std::ptrdiff_t y = 0; y < size_; ++y, out += size_)
            for (std::ptrdiff_t x = 0; x < size_; ++x) out[x] = float(plane.at[y * plane.stride + x]);
    }

    const uint8_t* const image_;
    const std::ptrdiff_t height_, width_, stride_;
    const int size_, fill_;
    std::vector<uint8_t> one_, other_;
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
