/*
Which rectangle the network sees, and how its logits become the mask of a box. No DeepStream in here.

The judge is Python: mal/evaluation/nvinfer_crop.py (crop_in_frame) and mal/masks.py (mask_in_crop).
*/
#pragma once

#include <vector>

namespace mal::deepstream {

// Edges in frame pixels, half-open.
struct Box {
    double x0, y0, x1, y1;
    bool usable() const { return x1 > x0 && y1 > y0; }
};

// The part of a rectangle inside a frame of width x height pixels; not usable() where there is none, or for NaN.
Box visible_part(float left, float top, float width, float height, unsigned frame_width, unsigned frame_height);

// The box grown by `expansion` about its centre; may leave the frame. Source: mal/boxes.py, expand.
Box grown(const Box& box, double expansion);

// The box grown, clipped to the frame, with even edges, so that nvinfer's rounding changes nothing.
Box crop_in_frame(const Box& box, double expansion, unsigned frame_width, unsigned frame_height);

// A mask over a rectangle, as NvOSD_MaskParams wants it: row after row; mask where > 0, exactly 0 elsewhere, because
// nvdsosd's blur-bbox=2 looks at zeros alone and at no threshold.
struct Mask {
    unsigned width = 0, height = 0;
    std::vector<float> cells;
};

// Cells over `rectangle`: one a pixel, fewer where the longer side has more than `longest_side` (0: 4096).
// Each is the bilinear sample of the logits at the cell's centre, 0 where that is outside `visible` or not > 0.
//   logits   height x width values over `crop`; 0 is the boundary
Mask cut_mask(const float* logits, unsigned width, unsigned height, const Box& crop, const Box& rectangle,
              const Box& visible, unsigned longest_side);

}  // namespace mal::deepstream
