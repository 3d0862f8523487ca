/* One batch and its probes, for ctypes: Python makes the crops and the logits. */
#include <memory>
#include <vector>

#include "fake_deepstream.h"
#include "outlines.h"
#include "probe.h"

namespace {

constexpr unsigned kGie = 17;

struct Bridge {
    explicit Bridge(const mal::deepstream::Settings& settings) : probe(settings) {}
    mal::deepstream::MaskProbe probe;
    fake::Batch* batch = nullptr;
    std::vector<NvDsObjectMeta*> objects;
    NvDsFrameMeta* frame = nullptr;
};

}  // namespace

extern "C" {

Bridge* bridge_new(double expansion, int exact, unsigned longest_side, unsigned every, int polygons, unsigned most) {
    mal::deepstream::Settings settings;
    settings.gie_id = kGie;
    settings.on_gie_id = 1;
    settings.expansion = expansion;
    settings.crop = exact ? mal::deepstream::Crop::exact : mal::deepstream::Crop::clipped;
    settings.longest_side = longest_side;
    settings.every = every;
    settings.polygons = polygons;
    settings.most_crops = most;
    return new Bridge(settings);
}

void bridge_free(Bridge* bridge) {
    delete bridge->batch;
    delete bridge;
}

void bridge_batch(Bridge* bridge) {
    delete bridge->batch;
    bridge->batch = new fake::Batch;
    bridge->objects.clear();
}

void bridge_frame(Bridge* bridge, unsigned source, int number, unsigned width, unsigned height) {
    bridge->frame = bridge->batch->add_frame(source, number, width, height);
}

unsigned bridge_object(Bridge* bridge, float left, float top, float width, float height, unsigned long track, int gie) {
    bridge->objects.push_back(bridge->batch->add_object(bridge->frame, left, top, width, height, track, gie));
    return static_cast<unsigned>(bridge->objects.size() - 1);
}

void bridge_before(Bridge* bridge) { bridge->probe.before(bridge->batch->meta(), bridge->batch->surface()); }
void bridge_after(Bridge* bridge) { bridge->probe.after(bridge->batch->meta()); }

// left, top, width, height as they stand in rect_params.
void bridge_rect(Bridge* bridge, unsigned object, float* out) {
    const NvOSD_RectParams& rect = bridge->objects[object]->rect_params;
    const float values[] = {rect.left, rect.top, rect.width, rect.height};
    std::copy(values, values + 4, out);
}

// What the network sees, x0 y0 x1 y1; 0 where before() left nothing.
int bridge_crop(Bridge* bridge, unsigned object, double* out) {
    const NvDsUserMeta* meta = mal::deepstream::find_saved(*bridge->objects[object], kGie);
    if (!meta) return 0;
    const auto& crop = static_cast<const mal::deepstream::Saved*>(meta->user_meta_data)->crop;
    const double values[] = {crop.x0, crop.y0, crop.x1, crop.y1};
    std::copy(values, values + 4, out);
    return 1;
}

void bridge_result(Bridge* bridge, unsigned object, const float* logits, int height, int width, float score, int roi) {
    fake::Output output{{logits, logits + static_cast<long>(height) * width}, height, width, score};
    if (roi) fake::hang_on_rois(bridge->batch->meta(), {bridge->objects[object]}, kGie, {output});
    else fake::hang_on_object(bridge->batch->meta(), bridge->objects[object], kGie, output);
}

const NvOSD_MaskParams* bridge_mask(Bridge* bridge, unsigned object) { return &bridge->objects[object]->mask_params; }

const MalMaskMeta* bridge_mask_meta(Bridge* bridge, unsigned object) {
    for (NvDsMetaList* at = bridge->objects[object]->obj_user_meta_list; at; at = at->next) {
        auto* meta = static_cast<NvDsUserMeta*>(at->data);
        if (meta->base_meta.meta_type == mal_mask_meta_type()) return static_cast<MalMaskMeta*>(meta->user_meta_data);
    }
    return nullptr;
}

void bridge_metrics(Bridge* bridge, MalMaskMetrics* out) { *out = bridge->probe.metrics(); }
void bridge_pool(long limit) { fake::user_metas_limit = limit; }
}
