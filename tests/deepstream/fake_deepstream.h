/* A batch of metadata and an nvinfer without a network, to drive the probes on any machine. */
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "gstnvdsmeta.h"
// after gst/gst.h
#include "gstnvdsinfer.h"
#include "nvbufsurface.h"
#include "nvdspreprocess_meta.h"

namespace fake {

// User metadata that is out of its pool; 0 when nothing leaked. A pool of `limit` items can be made to run dry.
extern std::atomic<long> user_metas_out;
extern long user_metas_limit;

// One buffer: frames of 1920 x 1080 unless said otherwise. Owns its metadata as the SDK's pools do.
class Batch {
public:
    Batch();
    ~Batch();
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    NvDsFrameMeta* add_frame(unsigned source, int number, unsigned width = 1920, unsigned height = 1080);
    NvDsObjectMeta* add_object(NvDsFrameMeta* frame, float left, float top, float width, float height,
                               std::uint64_t track = UNTRACKED_OBJECT_ID, int gie = 1, int class_id = 0);
    NvDsBatchMeta* meta() { return &batch_; }
    NvBufSurface surface();

private:
    NvDsBatchMeta batch_{};
    std::list<NvDsFrameMeta> frames_;
    std::list<NvDsObjectMeta> objects_;
    std::vector<NvBufSurfaceParams> surfaces_;
};

// What nvinfer cut out of a frame: even whole pixels, and it must lie inside the frame.
struct Crop {
    NvDsObjectMeta* object;
    unsigned left, top, width, height;
};

// The crops that nvinfer makes of a batch. Source: Gst-nvinfer 9.1, should_infer_object and get_converted_buffer.
std::vector<Crop> crops_of(Batch& batch, int on_gie_id = 1, float minimum_size = 1);

// Outputs of one object; they live as long as the metadata that points to them.
struct Output {
    std::vector<float> logits;
    int height, width;
    float score;
};

// Hang a result on its object, as nvinfer does, or on a roi of nvdspreprocess's metadata.
void hang_on_object(NvDsBatchMeta* batch, NvDsObjectMeta* object, unsigned gie_id, Output output);
void hang_on_rois(NvDsBatchMeta* batch, const std::vector<NvDsObjectMeta*>& objects, unsigned gie_id,
                  const std::vector<Output>& outputs);

}  // namespace fake
