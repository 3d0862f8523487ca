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

// Where the pixel centres start .. stop of a mask fall on a map of `length` cells that covers the grown side low .. high.
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

// Turned by 90 degrees, so that every loop runs along memory: rows are interpolated into lines (cols, height).
class Decider {
public:
    void decide(const float* logits, std::ptrdiff_t rows, std::ptrdiff_t cols, const double* box, const int64_t* window,
                double expansion, uint8_t* mask) {
        across_.find(box[0], box[2], window[0], window[2], cols, expansion);
        down_.find(box[1], box[3], window[1], window[3], rows, expansion);
        const std::ptrdiff_t height = down_.count();
        line_.resize(cols);
        lines_.resize(cols * height);
        for (std::ptrdiff_t y = 0; y < height; ++y) {
            between(logits, down_.cells[y], rows, cols, down_.weights[y], line_.data());
            for (std::ptrdiff_t x = 0; x < cols; ++x) lines_[x * height + y] = line_[x];
        }
        column_.resize(height);
        for (std::ptrdiff_t x = 0; x < across_.count(); ++x, mask += height) {
            between(lines_.data(), across_.cells[x], cols, height, across_.weights[x], column_.data());
            for (std::ptrdiff_t y = 0; y < height; ++y) mask[y] = column_[y] > 0;
        }
    }

private:
    // The line between line `cell` and the next of `lines` lines of `length` values.
    static void between(const float* __restrict__ values, std::ptrdiff_t cell, std::ptrdiff_t lines,
                        std::ptrdiff_t length, float weight, float* __restrict__ out) {
        const float* base = values + cell * length;
        const float* following = values + std::min(cell + 1, lines - 1) * length;
        for (std::ptrdiff_t i = 0; i < length; ++i) out[i] = (following[i] - base[i]) * weight + base[i];
    }

    Samples across_, down_;
    std::vector<float> line_, lines_, column_;
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

struct Window {
    int64_t x0, y0, width, height, image_width, image_height;
};

void write_runs(const uint8_t* mask, const Window& window, Writer& writer) {
    int64_t open = -1, done = 0;  // where the mask run in hand began in the image, and what is written
    const auto close = [&](int64_t end) {
        writer.run(open - done);
        writer.run(end - open);
        done = end;
        open = -1;
    };
    for (int64_t x = 0; x < window.width; ++x, mask += window.height) {
        const int64_t top = (window.x0 + x) * window.image_height + window.y0;
        // A run goes on at the top of the next column only in a window as high as its image.
        if (open >= 0 && (window.height < window.image_height || !mask[0])) close(top - (window.image_height - window.height));
        for (int64_t y = 0; y < window.height;) {
            const void* found = std::memchr(mask + y, open < 0, window.height - y);
            if (!found) break;
            y = static_cast<const uint8_t*>(found) - mask;
            if (open < 0) open = top + y;
            else close(top + y);
        }
    }
    const int64_t total = window.image_width * window.image_height;
    if (open >= 0) close((window.x0 + window.width - 1) * window.image_height + window.y0 + window.height);
    if (done < total) writer.run(total - done);
}

}  // namespace

// Decide n masks. logits (n, rows, cols); boxes (n, 4) clipped; windows (n, 4) of whole pixels x0, y0, x1, y1; masks one
// after the other. Returns 0, or 2 when memory ran out.
extern "C" __attribute__((visibility("default"))) int mal_decide_masks_host(
    const float* logits, int64_t n, int64_t rows, int64_t cols, const double* boxes, const int64_t* windows,
    double expansion, uint8_t* masks) {
    try {
        Decider decider;
        for (int64_t i = 0; i < n; ++i, boxes += 4, windows += 4) {
            decider.decide(logits + i * rows * cols, rows, cols, boxes, windows, expansion, masks);
            masks += (windows[2] - windows[0]) * (windows[3] - windows[1]);
        }
    } catch (const std::bad_alloc&) {
        return 2;
    }
    return 0;
}

// Run lengths of n masks, one after the other in `text`; `lengths` (n,) gets the characters of each.
// windows: (n, 6) x0, y0, width, height, image width, image height. Returns the characters needed: more than `room`, and
// `text` is not whole.
extern "C" __attribute__((visibility("default"))) int64_t mal_encode_masks_host(
    const uint8_t* const* masks, int64_t n, const int64_t* windows, int64_t* lengths, char* text, int64_t room) {
    int64_t needed = 0;
    for (int64_t i = 0; i < n; ++i, windows += 6) {
        const Window window{windows[0], windows[1], windows[2], windows[3], windows[4], windows[5]};
        Writer writer(needed < room ? text + needed : nullptr, std::max<int64_t>(room - needed, 0));
        write_runs(masks[i], window, writer);
        lengths[i] = writer.written;
        needed += writer.written;
    }
    return needed;
}
