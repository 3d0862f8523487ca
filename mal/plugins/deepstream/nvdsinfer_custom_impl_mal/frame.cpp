#include "frame.h"

namespace mal::deepstream {
namespace {

// From the weights of red and blue in luma. Source: ITU-R BT.601-7 and BT.709-6, 3; full range: JPEG.
void set_colours(Frame* frame, float red, float blue, bool full_range) {
    const float green = 1 - red - blue, chroma = full_range ? 1 : 255.f / 224;
    frame->luma_zero = full_range ? 0 : 16;
    frame->luma_scale = full_range ? 1 : 255.f / 219;
    frame->red_v = 2 * (1 - red) * chroma;
    frame->blue_u = 2 * (1 - blue) * chroma;
    frame->green_u = -frame->blue_u * blue / green;
    frame->green_v = -frame->red_v * red / green;
}

}  // namespace

bool make_frame(const NvBufSurfaceParams& surface, Frame* frame) {
    const auto* pixels = static_cast<const uint8_t*>(surface.dataPtr);
    const NvBufSurfacePlaneParams& planes = surface.planeParams;
    *frame = Frame{};
    frame->first = pixels + planes.offset[0];
    frame->step = 4;
    frame->first_pitch = planes.pitch[0];
    frame->width = static_cast<int>(surface.width);
    frame->height = static_cast<int>(surface.height);
    if (!pixels) return false;
    if (surface.colorFormat == NVBUF_COLOR_FORMAT_RGBA) return true;
    frame->chroma = pixels + planes.offset[1];
    frame->chroma_pitch = planes.pitch[1];
    switch (surface.colorFormat) {
        case NVBUF_COLOR_FORMAT_NV12: set_colours(frame, 0.299f, 0.114f, false); return true;
        case NVBUF_COLOR_FORMAT_NV12_ER: set_colours(frame, 0.299f, 0.114f, true); return true;
        case NVBUF_COLOR_FORMAT_NV12_709: set_colours(frame, 0.2126f, 0.0722f, false); return true;
        case NVBUF_COLOR_FORMAT_NV12_709_ER: set_colours(frame, 0.2126f, 0.0722f, true); return true;
        default: return false;
    }
}

}  // namespace mal::deepstream
