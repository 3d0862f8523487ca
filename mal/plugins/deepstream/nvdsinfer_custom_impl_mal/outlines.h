/* Outlines of a mask as polygons, for message brokers: nvmsgconv does not read mask_params. */
#pragma once

#include <vector>

#include "geometry.h"

namespace mal::deepstream {

struct Corner {
    unsigned x, y;  // on the corners of the mask's cells: 0..width, 0..height
};

// The outer border of each 8-connected part, its corners only, clockwise on the screen. Holes are left out, and so is
// an island inside a hole. The judge is mal/masks.py, polygons.
std::vector<std::vector<Corner>> outlines(const Mask& mask);

}  // namespace mal::deepstream
