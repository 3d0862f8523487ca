/*
Logits to masks to run lengths on the CPU.  What they mean: mal/masks.py, whose values these are, bit for bit.

Data      logits (rows, cols) f32; mask (width, height) u8 0 or 1: column after column, the order of run lengths.
Runs      COCO's: background first, down the columns of the whole image; each written as its difference to the run two
          before it, five bits a character, lowest first.
Build     g++ -O3 -march=native -shared -fPIC masks.cpp      (host_library.py does it)
*/
// NumPy rounds the product before it adds.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

// Where the pixel centres start .. stop of a mask fall on a map of `length` cells over the grown side low .. high.
struct Samples {
    std::vector<std::ptrdiff_t> cells;
    std::vector<float> weights;  // of the next cell

    void find(double low, double high, int64_t start, int64_t stop, std::ptrdiff_t length, double expansion) {
        const double side = (high - low) * (1 + expansion), origin = (low + high - side) / 2;
        const double shift = 0.5 - origin, scale = double(length) / side;
        cells.resize(stop - start);
        weights.resize(stop - start);
        for (int64_t i = start; i < stop; ++i) {
            const double at = std::clamp((double(i) + shift) * scale - 0.5, 0.0, double(length - 1));
            const std::ptrdiff_t cell = std::min(std::ptrdiff_t(at), std::max<std::ptrdiff_t>(length - 2, 0));
            cells[i - start] = cell;
            weights[i - start] = float(at - double(cell));
        }
    }
    std::ptrdiff_t count() const { return std::ptrdiff_t(cells.size()); }
};

// Decides the pixels of one mask, column by column: rows are interpolated first and turned, so that the loops over a
// column run along memory.
class Decider {
public:
    void begin(const float* logits, std::ptrdiff_t rows, std::ptrdiff_t cols, const double* box, const int64_t* window,
               double expansion) {
        across_.find(box[0], box[2], window[0], window[2], cols, expansion);
        down_.find(box[1], box[3], window[1], window[3], rows, expansion);
        cols_ = cols;
        lines_.resize(cols * height());
        for (std::ptrdiff_t y = 0, end = height(); y < end; ++y) {
            const std::ptrdiff_t cell = down_.cells[y];
            const float *base = logits + cell * cols, *following = logits + std::min(cell + 1, rows - 1) * cols;
            const float weight = down_.weights[y];
            for (std::ptrdiff_t x = 0; x < cols; ++x) lines_[x * end + y] = (following[x] - base[x]) * weight + base[x];
        }
    }
    std::ptrdiff_t width() const { return across_.count(); }
    std::ptrdiff_t height() const { return down_.count(); }

    // Column x, 0 or 1 a pixel.
    void decide(std::ptrdiff_t x, uint8_t* __restrict__ out) const {
        const std::ptrdiff_t cell = across_.cells[x], end = height();
        const float *base = &lines_[cell * end], *following = &lines_[std::min(cell + 1, cols_ - 1) * end];
        const float weight = across_.weights[x];
        for (std::ptrdiff_t y = 0; y < end; ++y) out[y] = (following[y] - base[y]) * weight + base[y] > 0;
    }

private:
    Samples across_, down_;
    std::ptrdiff_t cols_ = 0;
    std::vector<float> lines_;  // (cols, height)
};

// Writes run lengths as they come; counts on where there is no room left.
class Writer {
public:
    Writer(char* out, int64_t room) : out_(out), room_(room) {}
    void run(int64_t length) {
        int64_t value = runs_ > 2 ? length - before_[runs_ % 2] : length;
        before_[runs_++ % 2] = length;
        for (bool more = true; more;) {
            char character = char(value & 31);
            value >>= 5;
            more = character & 16 ? value != -1 : value != 0;
            if (more) character |= 32;
            if (written < room_) out_[written] = char(character + 48);
            ++written;
        }
    }
    int64_t written = 0;

private:
    char* const out_;
    const int64_t room_;
    int64_t runs_ = 0, before_[2] = {0, 0};
};

// Finds the runs of a mask in a window of its image.
class Runs {
public:
    Runs(const int64_t* window, const int64_t* image, Writer& writer)
        : left_(window[0]), top_(window[1]), height_(window[3] - window[1]), image_height_(image[0]),
          total_(image[0] * image[1]), writer_(writer) {}

    int64_t area = 0;

    // Columns one after the other, 0 or 1 a pixel.
    void add(int64_t x, const uint8_t* column) {
        const int64_t start = (left_ + x) * image_height_ + top_;
        // A run goes on at the top of the next column only in a window as high as its image.
        if (open_ >= 0 && (height_ < image_height_ || !column[0])) close(start - (image_height_ - height_));
        for (int64_t y = 0; y < height_;) {
            const void* found = std::memchr(column + y, open_ < 0, height_ - y);
            if (!found) break;
            y = static_cast<const uint8_t*>(found) - column;
            if (open_ < 0) open_ = start + y;
            else close(start + y);
        }
        end_ = start + height_;
    }
    void finish() {
        if (open_ >= 0) close(end_);
        if (done_ < total_) writer_.run(total_ - done_);
    }

private:
    void close(int64_t end) {
        writer_.run(open_ - done_);
        writer_.run(end - open_);
        area += end - open_;
        done_ = end;
        open_ = -1;
    }

    const int64_t left_, top_, height_, image_height_, total_;
    Writer& writer_;
    int64_t open_ = -1, done_ = 0, end_ = 0;  // where the run in hand began in the image, what is written, what is seen
};

}  // namespace

// Decide n masks. logits (n, rows, cols); boxes (n, 4) clipped; windows (n, 4) of whole pixels x0, y0, x1, y1; masks
// one after the other. Returns 0, or 2 when memory ran out.
extern "C" __attribute__((visibility("default"))) int mal_decide_masks_host(
    const float* logits, int64_t n, int64_t rows, int64_t cols, const double* boxes, const int64_t* windows,
    double expansion, uint8_t* masks) {
    try {
        Decider decider;
        for (int64_t i = 0; i < n; ++i) {
            decider.begin(logits + i * rows * cols, rows, cols, boxes + 4 * i, windows + 4 * i, expansion);
            for (std::ptrdiff_t x = 0; x < decider.width(); ++x, masks += decider.height()) decider.decide(x, masks);
        }
    } catch (const std::bad_alloc&) {
        return 2;
    }
    return 0;
}

// The same masks as run lengths, one after the other in `text`. images (n, 2) height, width; lengths (n,) gets the
// characters of each, areas (n,) its pixels. Returns the characters needed: more than `room`, and `text` is not whole;
// -1 when memory ran out.
extern "C" __attribute__((visibility("default"))) int64_t mal_encode_masks_host(
    const float* logits, int64_t n, int64_t rows, int64_t cols, const double* boxes, const int64_t* windows,
    const int64_t* images, double expansion, int64_t* lengths, int64_t* areas, char* text, int64_t room) {
    int64_t needed = 0;
    try {
        Decider decider;
        std::vector<uint8_t> column;
        for (int64_t i = 0; i < n; ++i) {
            decider.begin(logits + i * rows * cols, rows, cols, boxes + 4 * i, windows + 4 * i, expansion);
            Writer writer(needed < room ? text + needed : nullptr, std::max<int64_t>(room - needed, 0));
            Runs runs(windows + 4 * i, images + 2 * i, writer);
            column.resize(decider.height());
            for (std::ptrdiff_t x = 0; x < decider.width(); ++x) {
                decider.decide(x, column.data());
                runs.add(x, column.data());
            }
            runs.finish();
            lengths[i] = writer.written;
            areas[i] = runs.area;
            needed += writer.written;
        }
    } catch (const std::bad_alloc&) {
        return -1;
    }
    return needed;
}
