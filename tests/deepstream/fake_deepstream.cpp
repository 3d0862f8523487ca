#include "fake_deepstream.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace fake {

std::atomic<long> user_metas_out{0};
long user_metas_limit = 1L << 40;

namespace {

void release(NvDsUserMeta* meta) {
    if (meta->base_meta.release_func) meta->base_meta.release_func(meta, nullptr);
    delete meta;
    --user_metas_out;
}

// A result and all that its pointers lead to.
struct Result {
    NvDsInferTensorMeta meta{};
    NvDsInferLayerInfo layers[2]{};
    void* host[2]{};
    Output output;
};

NvDsUserMeta* make_result(NvDsBatchMeta* batch, unsigned gie_id, Output output) {
    auto* result = new Result;
    result->output = std::move(output);
    const auto size = static_cast<unsigned>(result->output.logits.size());
    result->layers[0] = {FLOAT, {3, {1, result->output.height, result->output.width}, size}, 0, "logits", nullptr, 0};
    result->layers[1] = {FLOAT, {1, {1}, 1}, 1, "score", nullptr, 0};
    result->host[0] = result->output.logits.data();
    result->host[1] = &result->output.score;
    result->meta.unique_id = gie_id;
    result->meta.num_output_layers = 2;
    result->meta.output_layers_info = result->layers;
    result->meta.out_buf_ptrs_host = result->host;
    NvDsUserMeta* meta = nvds_acquire_user_meta_from_pool(batch);
    meta->base_meta.meta_type = NVDSINFER_TENSOR_OUTPUT_META;
    meta->user_meta_data = &result->meta;
    meta->base_meta.release_func = [](gpointer data, gpointer) {
        delete reinterpret_cast<Result*>(static_cast<NvDsUserMeta*>(data)->user_meta_data);
    };
    return meta;
}

}  // namespace

Batch::Batch() { g_rec_mutex_init(&batch_.meta_mutex); }

Batch::~Batch() {
    for (NvDsObjectMeta& object : objects_) {
        for (NvDsMetaList* at = object.obj_user_meta_list; at; at = at->next)
            release(static_cast<NvDsUserMeta*>(at->data));
        g_list_free(object.obj_user_meta_list);
        g_free(object.mask_params.data);
    }
    for (NvDsFrameMeta& frame : frames_) g_list_free(frame.obj_meta_list);
    for (NvDsMetaList* at = batch_.batch_user_meta_list; at; at = at->next)
        release(static_cast<NvDsUserMeta*>(at->data));
    g_list_free(batch_.batch_user_meta_list);
    g_list_free(batch_.frame_meta_list);
    g_rec_mutex_clear(&batch_.meta_mutex);
}

NvDsFrameMeta* Batch::add_frame(unsigned source, int number, unsigned width, unsigned height) {
    NvDsFrameMeta& frame = frames_.emplace_back();
    frame.batch_id = static_cast<guint>(surfaces_.size());
    frame.source_id = frame.pad_index = source;
    frame.frame_num = number;
    NvBufSurfaceParams& surface = surfaces_.emplace_back();
    surface.width = width;
    surface.height = height;
    batch_.frame_meta_list = g_list_append(batch_.frame_meta_list, &frame);
    return &frame;
}

NvDsObjectMeta* Batch::add_object(NvDsFrameMeta* frame, float left, float top, float width, float height,
                                  std::uint64_t track, int gie, int class_id) {
    NvDsObjectMeta& object = objects_.emplace_back();
    object.unique_component_id = gie;
    object.class_id = class_id;
    object.object_id = track;
    object.rect_params.left = left;
    object.rect_params.top = top;
    object.rect_params.width = width;
    object.rect_params.height = height;
    frame->obj_meta_list = g_list_append(frame->obj_meta_list, &object);
    return &object;
}

NvBufSurface Batch::surface() {
    NvBufSurface surface{};
    surface.batchSize = surface.numFilled = static_cast<std::uint32_t>(surfaces_.size());
    surface.surfaceList = surfaces_.data();
    return surface;
}

std::vector<Crop> crops_of(Batch& batch, int on_gie_id, float minimum_size) {
    std::vector<Crop> crops;
    const NvBufSurface surface = batch.surface();
    for (NvDsMetaList* at = batch.meta()->frame_meta_list; at; at = at->next) {
        auto* frame = static_cast<NvDsFrameMeta*>(at->data);
        if (frame->batch_id >= surface.numFilled) continue;  // what the SDK never does, and nobody may read
        const NvBufSurfaceParams& pixels = surface.surfaceList[frame->batch_id];
        for (NvDsMetaList* of = frame->obj_meta_list; of; of = of->next) {
            auto* object = static_cast<NvDsObjectMeta*>(of->data);
            const NvOSD_RectParams& rect = object->rect_params;
            if (object->unique_component_id != on_gie_id) continue;
            if (rect.width < minimum_size || rect.height < minimum_size) continue;
            const Crop crop{object, GST_ROUND_UP_2(static_cast<unsigned>(rect.left)),
                            GST_ROUND_UP_2(static_cast<unsigned>(rect.top)),
                            GST_ROUND_DOWN_2(static_cast<unsigned>(rect.width)),
                            GST_ROUND_DOWN_2(static_cast<unsigned>(rect.height))};
            if (!(rect.left >= 0 && rect.top >= 0) || crop.left + crop.width > pixels.width ||
                crop.top + crop.height > pixels.height || crop.left != rect.left || crop.top != rect.top ||
                crop.width != rect.width || crop.height != rect.height || !crop.width || !crop.height) {
                std::fprintf(stderr, "nvinfer would read %g %g %g %g of a frame of %u x %u\n", rect.left, rect.top,
                             rect.width, rect.height, pixels.width, pixels.height);
                std::abort();
            }
            crops.push_back(crop);
        }
    }
    return crops;
}

void hang_on_object(NvDsBatchMeta* batch, NvDsObjectMeta* object, unsigned gie_id, Output output) {
    nvds_add_user_meta_to_obj(object, make_result(batch, gie_id, std::move(output)));
}

void hang_on_rois(NvDsBatchMeta* batch, const std::vector<NvDsObjectMeta*>& objects, unsigned gie_id,
                  const std::vector<Output>& outputs) {
    auto* made = new GstNvDsPreProcessBatchMeta{};
    for (std::size_t i = 0; i < objects.size(); ++i) {
        NvDsRoiMeta roi{};
        roi.object_meta = objects[i];
        roi.roi_user_meta_list = g_list_append(nullptr, make_result(batch, gie_id, outputs[i]));
        made->roi_vector.push_back(roi);
    }
    NvDsUserMeta* meta = nvds_acquire_user_meta_from_pool(batch);
    meta->base_meta.meta_type = NVDS_PREPROCESS_BATCH_META;
    meta->user_meta_data = made;
    meta->base_meta.release_func = [](gpointer data, gpointer) {
        auto* all = static_cast<GstNvDsPreProcessBatchMeta*>(static_cast<NvDsUserMeta*>(data)->user_meta_data);
        for (NvDsRoiMeta& roi : all->roi_vector) {
            release(static_cast<NvDsUserMeta*>(roi.roi_user_meta_list->data));
            g_list_free(roi.roi_user_meta_list);
        }
        delete all;
    };
    batch->batch_user_meta_list = g_list_append(batch->batch_user_meta_list, meta);
}

}  // namespace fake

// ---------------------------------------------------------------- the SDK's functions

void nvds_acquire_meta_lock(NvDsBatchMeta* batch) { g_rec_mutex_lock(&batch->meta_mutex); }
void nvds_release_meta_lock(NvDsBatchMeta* batch) { g_rec_mutex_unlock(&batch->meta_mutex); }

NvDsUserMeta* nvds_acquire_user_meta_from_pool(NvDsBatchMeta* batch) {
    if (fake::user_metas_out >= fake::user_metas_limit) return nullptr;
    ++fake::user_metas_out;
    auto* meta = new NvDsUserMeta{};
    meta->base_meta.batch_meta = batch;
    return meta;
}

void nvds_add_user_meta_to_obj(NvDsObjectMeta* object, NvDsUserMeta* meta) {
    object->obj_user_meta_list = g_list_append(object->obj_user_meta_list, meta);
}

void nvds_remove_user_meta_from_object(NvDsObjectMeta* object, NvDsUserMeta* meta) {
    object->obj_user_meta_list = g_list_remove(object->obj_user_meta_list, meta);
    fake::release(meta);
}

NvDsMetaType nvds_get_user_meta_type(gchar* descriptor) {
    static std::map<std::string, int> types;
    const auto next = static_cast<int>(types.size()) + 1;
    return static_cast<NvDsMetaType>(NVDS_START_USER_META + types.try_emplace(descriptor, next).first->second);
}
