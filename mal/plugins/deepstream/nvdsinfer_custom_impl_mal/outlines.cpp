#include "outlines.h"

#include <cstddef>

namespace mal::deepstream {
namespace {

constexpr int kRight = 0, kDown = 1, kLeft = 2, kUp = 3;
constexpr int kStepX[] = {1, 0, -1, 0}, kStepY[] = {0, 1, 0, -1};

class Grid {
public:
    explicit Grid(const Mask& mask)
        : mask_(mask), wide_(static_cast<int>(mask.width)), high_(static_cast<int>(mask.height)),
          outside_(static_cast<std::size_t>(wide_ + 2) * (high_ + 2)), seen_(outside_.size()) {
        flood();
    }

    bool set(int x, int y) const {
        return x >= 0 && y >= 0 && x < wide_ && y < high_ && mask_.cells[static_cast<std::size_t>(y) * wide_ + x] > 0;
    }

    // A cell with the outer background above it, whose upper edge no outline has taken yet: where one begins.
    bool begins(int x, int y) const { return set(x, y) && outside_[at(x, y - 1)] && !seen_[at(x, y)]; }

    // Along the cracks between mask and background, the mask on the right hand.
    std::vector<Corner> follow(int x, int y) {
        std::vector<Corner> corners;
        const int first_x = x, first_y = y;
        int way = kRight;
        do {
            if (way == kRight) seen_[at(x, y)] = true;
            const int before = way;
            x += kStepX[way];
            y += kStepY[way];
            // The two cells ahead of the corner x, y. Mask on the left ahead: turn left, which joins parts that touch
            // at a corner; mask on the right ahead: straight on; none: turn right.
            if (ahead(x, y, way, true)) way = (way + 3) % 4;
            else if (!ahead(x, y, way, false)) way = (way + 1) % 4;
            if (way != before) corners.push_back({static_cast<unsigned>(x), static_cast<unsigned>(y)});
        } while (x != first_x || y != first_y || way != kRight);
        return corners;
    }

private:
    std::size_t at(int x, int y) const { return static_cast<std::size_t>(y + 1) * (wide_ + 2) + (x + 1); }

    bool ahead(int x, int y, int way, bool left) const {
        switch (way) {
            case kRight: return set(x, left ? y - 1 : y);
            case kDown: return set(left ? x : x - 1, y);
            case kLeft: return set(x - 1, left ? y : y - 1);
            default: return set(left ? x - 1 : x, y - 1);
        }
    }

    // Background that is connected to the border: 4-connected, as the mask is 8-connected.
    void flood() {
        std::vector<Corner> todo{{0, 0}};
        outside_[0] = true;
        while (!todo.empty()) {
            const Corner corner = todo.back();
            todo.pop_back();
            for (int way = 0; way < 4; ++way) {
                const int x = static_cast<int>(corner.x) - 1 + kStepX[way], y = static_cast<int>(corner.y) - 1 + kStepY[way];
                if (x < -1 || y < -1 || x > wide_ || y > high_ || set(x, y) || outside_[at(x, y)]) continue;
                outside_[at(x, y)] = true;
                todo.push_back({static_cast<unsigned>(x + 1), static_cast<unsigned>(y + 1)});
            }
        }
    }

    const Mask& mask_;
    const int wide_, high_;
    std::vector<bool> outside_;  // of the mask and its holes; with a border of one cell
    std::vector<bool> seen_;     // cells whose upper edge an outline has taken
};

}  // namespace

std::vector<std::vector<Corner>> outlines(const Mask& mask) {
    Grid grid(mask);
    std::vector<std::vector<Corner>> found;
    for (int y = 0; y < static_cast<int>(mask.height); ++y)
        for (int x = 0; x < static_cast<int>(mask.width); ++x)
            if (grid.begins(x, y)) found.push_back(grid.follow(x, y));
    return found;
}

}  // namespace mal::deepstream
