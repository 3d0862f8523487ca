/*
The two halves of a mask, before and after nvinfer. All of it works on metadata and floats: no CUDA, no pad.

before()  saves an object's rectangle and writes the one that the network shall see (or an empty one, so that nvinfer
          passes over it: its track has a fresh mask, the box has no area in the frame, or the batch is full)
after()   restores it, and fills mask_params from this object's logits

What is saved travels with the object as user metadata: a buffer that is dropped in between takes it along.
*/
#pragma once

#include <climits>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "geometry.h"
#include "gstnvdsmeta.h"
#include "mal_masks.h"
#include "nvbufsurface.h"

namespace mal::deepstream {

// The crop's pixels: `exact` as the model was trained, cut by our own code in nvdspreprocess; `clipped` cut by nvinfer.
enum class Crop { exact, clipped };

struct Settings {
    unsigned gie_id = 0;             // of our nvinfer
    int on_gie_id = -1;              // objects of this detector only; -1: all
    std::vector<int> on_class_ids;   // objects of these classes only; empty: all
    double expansion = 0;            // the model's
    Crop crop = Crop::exact;
    unsigned most_crops = UINT_MAX;  // of one batch; objects beyond it are misses
    unsigned longest_side = 0;       // most cells along a mask's longer side; 0: one a pixel
    unsigned every = 1;              // a tracked object gets a new mask every so many frames
    bool polygons = false;           // attach MalMaskMeta
};

struct Track;  // the last mask of a tracked object

// What before() leaves on an object for nvdspreprocess and for after().
struct Saved {
    enum class Plan { infer, reuse, miss, nothing } plan;
    unsigned gie_id;
    float left, top, width, height;  // rect_params as they came
    Box visible, crop;
    std::shared_ptr<Track> track;  // where its mask is kept, or comes from; nullptr: nowhere
};

// Of this object, by our nvinfer's id; nullptr where before() left none.
NvDsUserMeta* find_saved(const NvDsObjectMeta& object, unsigned gie_id);

class MaskProbe {
public:
    explicit MaskProbe(Settings settings);

    // Call on nvinfer's sink pad; surfaces by the frames' batch_id.
    void before(NvDsBatchMeta* batch, const NvBufSurface& surface);
    // Call on nvinfer's src pad. One thread may call before() while another calls after().
    void after(NvDsBatchMeta* batch);

    // Call where a stream ends, begins anew or goes away, between the buffers before and after that: its tracker ids
    // may mean other objects from now on. Buffers under way still get their masks.
    void forget_tracks(unsigned pad_index);
    void forget_tracks();

    MalMaskMetrics metrics() const;

private:
    using Key = std::pair<unsigned, std::uint64_t>;  // the frame's pad_index, tracker id

    bool wants(const NvDsObjectMeta& object) const;
    Saved plan(const NvDsFrameMeta& frame, const NvDsObjectMeta& object, const NvBufSurface& surface, unsigned* room);
    void finish(NvDsBatchMeta* batch, NvDsObjectMeta* object, const Saved& saved,
                const std::map<const NvDsObjectMeta*, const NvDsUserMeta*>& on_rois);
    void forget_old_tracks();

    const Settings settings_;
    mutable std::mutex mutex_;  // of what follows
    std::map<Key, std::shared_ptr<Track>> tracks_;
    std::uint64_t batches_ = 0;
    MalMaskMetrics metrics_{};
};

}  // namespace mal::deepstream
