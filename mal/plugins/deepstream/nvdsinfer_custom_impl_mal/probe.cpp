#include "probe.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <optional>

#include "gstnvdsinfer.h"
#include "nvdspreprocess_meta.h"
#include "outlines.h"

namespace mal::deepstream {

struct Made {
    Mask mask;
    float score;
};

// Guarded by the mutex of its probe.
struct Track {
    std::optional<int> asked;  // number of the frame whose crop went to nvinfer last; none: its result was lost
    std::uint64_t used = 0;    // batch that asked for a mask last
    std::shared_ptr<const Made> made;
};

namespace {

// A track that asked for no mask in so many batches more than `every` is forgotten; nvinfer holds fewer in its queues.
constexpr std::uint64_t kBatchesInFlight = 64;

class MetaLock {
public:
    explicit MetaLock(NvDsBatchMeta* batch) : batch_(batch) { nvds_acquire_meta_lock(batch_); }
    ~MetaLock() { nvds_release_meta_lock(batch_); }
    MetaLock(const MetaLock&) = delete;
    MetaLock& operator=(const MetaLock&) = delete;

private:
    NvDsBatchMeta* batch_;
};

NvDsMetaType type_named(const char* name) {
    char text[32];  // the SDK asks for a text that it may write to
    std::strncpy(text, name, sizeof text - 1);
    text[sizeof text - 1] = 0;
    return nvds_get_user_meta_type(text);
}

NvDsMetaType saved_type() {
    static const NvDsMetaType type = type_named("MAL.SAVED_RECTANGLE");
    return type;
}

void* copy_saved(void* data, void*) {
    return new Saved(*static_cast<const Saved*>(static_cast<NvDsUserMeta*>(data)->user_meta_data));
}

void release_saved(void* data, void*) {
    auto* meta = static_cast<NvDsUserMeta*>(data);
    delete static_cast<Saved*>(meta->user_meta_data);
    meta->user_meta_data = nullptr;
}

// ---------------------------------------------------------------- MalMaskMeta

// g_memdup2 with the length in items.
template <typename Item>
Item* duplicate(const Item* items, std::size_t count) {
    return static_cast<Item*>(g_memdup2(items, count * sizeof(Item)));
}

MalMaskMeta* make_mask_meta(float score, const std::vector<guint>& sizes, const std::vector<float>& points) {
    MalMaskMeta* made = g_new0(MalMaskMeta, 1);
    made->score = score;
    made->part_count = static_cast<guint>(sizes.size());
    made->part_sizes = duplicate(sizes.data(), sizes.size());
    made->points = duplicate(points.data(), points.size());
    return made;
}

void* copy_mask_meta(void* data, void*) {
    auto* from = static_cast<const MalMaskMeta*>(static_cast<NvDsUserMeta*>(data)->user_meta_data);
    const std::vector<guint> sizes(from->part_sizes, from->part_sizes + from->part_count);
    std::size_t vertices = 0;
    for (const guint size : sizes) vertices += size;
    return make_mask_meta(from->score, sizes, {from->points, from->points + 2 * vertices});
}

void release_mask_meta(void* data, void*) {
    auto* meta = static_cast<NvDsUserMeta*>(data);
    auto* made = static_cast<MalMaskMeta*>(meta->user_meta_data);
    if (made) {
        g_free(made->part_sizes);
        g_free(made->points);
        g_free(made);
    }
    meta->user_meta_data = nullptr;
}

bool attach(NvDsBatchMeta* batch, NvDsObjectMeta* object, NvDsMetaType type, void* data, NvDsMetaCopyFunc copy,
            NvDsMetaReleaseFunc release) {
    NvDsUserMeta* meta = nvds_acquire_user_meta_from_pool(batch);
    if (!meta) return false;
    meta->user_meta_data = data;
    meta->base_meta.meta_type = type;
    meta->base_meta.copy_func = copy;
    meta->base_meta.release_func = release;
    nvds_add_user_meta_to_obj(object, meta);
    return true;
}

void attach_outlines(NvDsBatchMeta* batch, NvDsObjectMeta* object, const Saved& saved, const Mask& mask, float score) {
    std::vector<guint> sizes;
    std::vector<float> points;
    for (const auto& part : outlines(mask)) {
        sizes.push_back(static_cast<guint>(part.size()));
        for (const Corner& corner : part) {
            points.push_back(saved.left + saved.width * static_cast<float>(corner.x) / static_cast<float>(mask.width));
            points.push_back(saved.top + saved.height * static_cast<float>(corner.y) / static_cast<float>(mask.height));
        }
    }
    MalMaskMeta* made = make_mask_meta(score, sizes, points);
    const auto type = static_cast<NvDsMetaType>(mal_mask_meta_type());
    if (attach(batch, object, type, made, copy_mask_meta, release_mask_meta)) return;
    NvDsUserMeta unattached{};
    unattached.user_meta_data = made;
    release_mask_meta(&unattached, nullptr);
}

// ---------------------------------------------------------------- the network's result

bool is_result(const NvDsUserMeta& meta, unsigned gie_id) {
    return meta.base_meta.meta_type == static_cast<NvDsMetaType>(NVDSINFER_TENSOR_OUTPUT_META) &&
           meta.user_meta_data &&
           static_cast<const NvDsInferTensorMeta*>(meta.user_meta_data)->unique_id == gie_id;
}

const NvDsUserMeta* find_result(const NvDsMetaList* list, unsigned gie_id) {
    for (; list; list = list->next) {
        auto* meta = static_cast<const NvDsUserMeta*>(list->data);
        if (meta && is_result(*meta, gie_id)) return meta;
    }
    return nullptr;
}

// With input-tensor-from-meta nvinfer hangs results on nvdspreprocess's rois, not on the objects.
std::map<const NvDsObjectMeta*, const NvDsUserMeta*> results_on_rois(const NvDsBatchMeta& batch, unsigned gie_id) {
    std::map<const NvDsObjectMeta*, const NvDsUserMeta*> found;
    for (const NvDsMetaList* at = batch.batch_user_meta_list; at; at = at->next) {
        auto* meta = static_cast<const NvDsUserMeta*>(at->data);
        if (!meta || meta->base_meta.meta_type != NVDS_PREPROCESS_BATCH_META || !meta->user_meta_data) continue;
        for (const NvDsRoiMeta& roi : static_cast<const GstNvDsPreProcessBatchMeta*>(meta->user_meta_data)->roi_vector)
            if (const NvDsUserMeta* result = find_result(roi.roi_user_meta_list, gie_id); result && roi.object_meta)
                found[roi.object_meta] = result;
    }
    return found;
}

// Values of an output on the host, or nullptr: no such layer, another type or shape.
const float* find_layer(const NvDsInferTensorMeta& result, const char* name, NvDsInferDims* dims) {
    for (unsigned i = 0; i < result.num_output_layers; ++i) {
        const NvDsInferLayerInfo& layer = result.output_layers_info[i];
        if (!layer.layerName || std::strcmp(layer.layerName, name) || layer.dataType != FLOAT) continue;
        if (!result.out_buf_ptrs_host) return nullptr;  // disable-output-host-copy
        *dims = layer.inferDims;
        return static_cast<const float*>(result.out_buf_ptrs_host[i]);
    }
    return nullptr;
}

void fill(NvOSD_MaskParams* params, const Mask& mask) {
    g_free(params->data);  // whoever wrote it used g_malloc: the object's owner frees it so
    params->data = duplicate(mask.cells.data(), mask.cells.size());
    params->size = static_cast<unsigned>(mask.cells.size() * sizeof(float));
    params->threshold = 0;
    params->width = mask.width;
    params->height = mask.height;
}

}  // namespace

NvDsUserMeta* find_saved(const NvDsObjectMeta& object, unsigned gie_id) {
    for (NvDsMetaList* at = object.obj_user_meta_list; at; at = at->next) {
        auto* meta = static_cast<NvDsUserMeta*>(at->data);
        if (meta && meta->base_meta.meta_type == saved_type() && meta->user_meta_data &&
            static_cast<const Saved*>(meta->user_meta_data)->gie_id == gie_id)
            return meta;
    }
    return nullptr;
}

MaskProbe::MaskProbe(Settings settings) : settings_(std::move(settings)) {}

MalMaskMetrics MaskProbe::metrics() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return metrics_;
}

bool MaskProbe::wants(const NvDsObjectMeta& object) const {
    const auto& classes = settings_.on_class_ids;
    return (settings_.on_gie_id < 0 || object.unique_component_id == settings_.on_gie_id) &&
           (classes.empty() || std::find(classes.begin(), classes.end(), object.class_id) != classes.end());
}

void MaskProbe::before(NvDsBatchMeta* batch, const NvBufSurface& surface) {
    const MetaLock meta_lock(batch);
    const std::lock_guard<std::mutex> lock(mutex_);
    ++batches_;
    unsigned room = settings_.most_crops;
    for (NvDsMetaList* at = batch->frame_meta_list; at; at = at->next) {
        auto* frame = static_cast<NvDsFrameMeta*>(at->data);
        for (NvDsMetaList* of = frame->obj_meta_list; of; of = of->next) {
            auto* object = static_cast<NvDsObjectMeta*>(of->data);
            if (!wants(*object) || find_saved(*object, settings_.gie_id)) continue;
            ++metrics_.wanted;
            auto saved = std::make_unique<Saved>(plan(*frame, *object, surface, &room));
            if (!attach(batch, object, saved_type(), saved.get(), copy_saved, release_saved)) {
                ++metrics_.misses;  // the pool is empty, so the rectangle stays as it came
                continue;
            }
            const Saved& here = *saved.release();
            Box shown{0, 0, 0, 0};  // nvinfer and nvdspreprocess pass over what has no size
            if (here.plan == Saved::Plan::infer)
                shown = settings_.crop == Crop::clipped
                            ? here.crop
                            : crop_in_frame(here.visible, 0, surface.surfaceList[frame->batch_id].width,
                                            surface.surfaceList[frame->batch_id].height);
            object->rect_params.left = static_cast<float>(shown.x0);
            object->rect_params.top = static_cast<float>(shown.y0);
            object->rect_params.width = static_cast<float>(shown.x1 - shown.x0);
            object->rect_params.height = static_cast<float>(shown.y1 - shown.y0);
        }
    }
    forget_old_tracks();
}

Saved MaskProbe::plan(const NvDsFrameMeta& frame, const NvDsObjectMeta& object, const NvBufSurface& surface,
                      unsigned* room) {
    const NvOSD_RectParams& rect = object.rect_params;
    Saved saved{Saved::Plan::nothing, settings_.gie_id, rect.left, rect.top, rect.width, rect.height, {}, {}, {}};
    if (frame.batch_id >= surface.numFilled) return saved;
    const NvBufSurfaceParams& pixels = surface.surfaceList[frame.batch_id];
    saved.visible = visible_part(rect.left, rect.top, rect.width, rect.height, pixels.width, pixels.height);
    if (!saved.visible.usable() || pixels.width < 2 || pixels.height < 2) return saved;
    saved.crop = settings_.crop == Crop::clipped
                     ? crop_in_frame(saved.visible, settings_.expansion, pixels.width, pixels.height)
                     : grown(saved.visible, settings_.expansion);
    saved.plan = *room ? Saved::Plan::infer : Saved::Plan::miss;
    if (settings_.every > 1 && object.object_id != UNTRACKED_OBJECT_ID) {
        std::shared_ptr<Track>& track = tracks_[{frame.pad_index, object.object_id}];
        // Frame numbers that go backwards: the stream has begun anew, and ids may mean other objects.
        if (!track || (track->asked && frame.frame_num < *track->asked)) track = std::make_shared<Track>();
        track->used = batches_;
        if (track->asked && std::int64_t{frame.frame_num} - *track->asked < settings_.every)
            saved.plan = Saved::Plan::reuse;
        else if (*room)
            track->asked = frame.frame_num;
        saved.track = track;
    }
    if (saved.plan == Saved::Plan::infer) --*room;
    return saved;
}

void MaskProbe::forget_tracks(unsigned pad_index) {
    const std::lock_guard<std::mutex> lock(mutex_);
    tracks_.erase(tracks_.lower_bound({pad_index, 0}),
                  tracks_.upper_bound({pad_index, std::numeric_limits<std::uint64_t>::max()}));
}

void MaskProbe::forget_tracks() {
    const std::lock_guard<std::mutex> lock(mutex_);
    tracks_.clear();
}

void MaskProbe::forget_old_tracks() {
    if (batches_ % settings_.every) return;
    const std::uint64_t most = settings_.every + kBatchesInFlight;
    for (auto track = tracks_.begin(); track != tracks_.end();)
        track = batches_ - track->second->used > most ? tracks_.erase(track) : std::next(track);
}

void MaskProbe::after(NvDsBatchMeta* batch) {
    const MetaLock meta_lock(batch);
    const auto on_rois = results_on_rois(*batch, settings_.gie_id);
    for (NvDsMetaList* at = batch->frame_meta_list; at; at = at->next) {
        auto* frame = static_cast<NvDsFrameMeta*>(at->data);
        for (NvDsMetaList* of = frame->obj_meta_list; of; of = of->next) {
            auto* object = static_cast<NvDsObjectMeta*>(of->data);
            NvDsUserMeta* meta = find_saved(*object, settings_.gie_id);
            if (!meta) continue;
            const Saved saved = *static_cast<const Saved*>(meta->user_meta_data);
            nvds_remove_user_meta_from_object(object, meta);
            object->rect_params.left = saved.left;
            object->rect_params.top = saved.top;
            object->rect_params.width = saved.width;
            object->rect_params.height = saved.height;
            finish(batch, object, saved, on_rois);
        }
    }
}

void MaskProbe::finish(NvDsBatchMeta* batch, NvDsObjectMeta* object, const Saved& saved,
                       const std::map<const NvDsObjectMeta*, const NvDsUserMeta*>& on_rois) {
    std::shared_ptr<const Made> made;
    if (saved.plan == Saved::Plan::infer) {
        const NvDsUserMeta* meta = find_result(object->obj_user_meta_list, settings_.gie_id);
        if (const auto roi = on_rois.find(object); !meta && roi != on_rois.end()) meta = roi->second;
        if (meta) {
            const auto& result = *static_cast<const NvDsInferTensorMeta*>(meta->user_meta_data);
            NvDsInferDims dims{}, score_dims{};
            const float* logits = find_layer(result, "logits", &dims);
            const float* score = find_layer(result, "score", &score_dims);
            if (logits && dims.numDims == 3 && dims.d[0] == 1 && dims.d[1] > 0 && dims.d[2] > 0) {
                const Box rectangle{saved.left, saved.top, static_cast<double>(saved.left) + saved.width,
                                    static_cast<double>(saved.top) + saved.height};
                Mask mask = cut_mask(logits, static_cast<unsigned>(dims.d[2]), static_cast<unsigned>(dims.d[1]),
                                     saved.crop, rectangle, saved.visible, settings_.longest_side);
                made = std::make_shared<const Made>(Made{std::move(mask), score ? *score : -1});
            }
        }
    }

    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (saved.plan == Saved::Plan::nothing) {
            ++metrics_.unusable;
        } else if (saved.plan == Saved::Plan::miss) {
            ++metrics_.misses;
        } else if (saved.plan == Saved::Plan::reuse) {
            made = saved.track->made;
            ++(made ? metrics_.reused : metrics_.misses);
        } else {
            ++(made ? metrics_.masks : metrics_.misses);
            if (saved.track) {
                saved.track->made = made;
                if (!made) saved.track->asked.reset();  // asks again with its next frame
            }
        }
    }
    if (!made) return;  // mask_params stay as they came
    fill(&object->mask_params, made->mask);
    if (settings_.polygons) attach_outlines(batch, object, saved, made->mask, made->score);
}

}  // namespace mal::deepstream

int mal_mask_meta_type(void) {
    static const NvDsMetaType type = mal::deepstream::type_named("MAL.MASK");
    return type;
}
