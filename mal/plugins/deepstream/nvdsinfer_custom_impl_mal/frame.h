/* A surface of DeepStream as crop.cuh reads it. */
#pragma once

#include "crop.cuh"
#include "nvbufsurface.h"

namespace mal::deepstream {

// False for a colour format that is neither RGBA nor 8-bit NV12. The pixels must be in memory that CUDA can read.
bool make_frame(const NvBufSurfaceParams& surface, Frame* frame);

}  // namespace mal::deepstream
