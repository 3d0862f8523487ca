/*
nvdspreprocess's side: our own crops in place of its. Its config names this library and the two functions below.

    [property]      custom-tensor-preparation-function=MalTensorPreparation
    [group-0]       custom-input-transformation-function=MalTransformation
    [user-configs]  gie-unique-id of nvinfer, fill of the model

The probe before nvdspreprocess has left each object's crop in its metadata (probe.h, Saved); here it is read from the
frame's surface on the GPU and written into the tensor, (N, 3, S, S) float RGB 0..255.
*/
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>

#include "frame.h"
#include "nvdspreprocess_interface.h"
#include "probe.h"

using namespace mal::deepstream;

extern "C" int mal_cut_crop_cuda(const Frame* frame, const Rectangle* crop, int size, int fill, float* out,
                                 void* stream);

struct CustomCtx {
    unsigned gie_id;
    Fill fill;
    cudaStream_t stream;
};

namespace {

bool report(const std::string& what) {
    std::fprintf(stderr, "libnvdsinfer_mal: %s\n", what.c_str());
    return false;
}

bool succeeded(int code, const char* what) {
    return code == cudaSuccess || report(std::string(what) + " failed: " +
                                         cudaGetErrorString(static_cast<cudaError_t>(code)));
}

bool read(const CustomInitParams& given, CustomCtx* context) {
    const auto& shape = given.tensor_params.network_input_shape;
    if (shape.size() != 4 || shape[1] != 3 || shape[2] != shape[3] || given.tensor_params.data_type != NvDsDataType_FP32)
        return report("network-input-shape must be N;3;S;S and tensor-data-type 0 (FP32)");
    const auto gie = given.user_configs.find("gie-unique-id"), fill = given.user_configs.find("fill");
    if (gie == given.user_configs.end() || fill == given.user_configs.end())
        return report("[user-configs] needs gie-unique-id and fill");
    context->gie_id = static_cast<unsigned>(std::strtoul(gie->second.c_str(), nullptr, 10));
    if (fill->second == "reflect") context->fill = Fill::reflect;
    else if (fill->second == "edge") context->fill = Fill::edge;
    else if (fill->second == "wrap") context->fill = Fill::wrap;
    else return report("fill must be reflect, edge or wrap, got " + fill->second);
    return true;
}

bool cut(const CustomCtx& context, const NvDsPreProcessUnit& unit, int size, float* out) {
    const NvDsObjectMeta* object = unit.roi_meta.object_meta;
    const NvDsUserMeta* meta = object ? find_saved(*object, context.gie_id) : nullptr;
    if (!meta) return report("an object without a crop: is the mask probe on nvdspreprocess's sink pad?");
    const Box& box = static_cast<const Saved*>(meta->user_meta_data)->crop;
    Frame frame;
    if (!make_frame(*unit.input_surf_params, &frame))
        return report("frames must be 8-bit NV12 or RGBA in memory that CUDA can read, got colour format " +
                      std::to_string(unit.input_surf_params->colorFormat));
    const Rectangle crop{box.x0, box.y0, box.x1, box.y1};
    return succeeded(mal_cut_crop_cuda(&frame, &crop, size, static_cast<int>(context.fill), out, context.stream),
                     "cutting a crop");
}

}  // namespace

extern "C" {

CustomCtx* initLib(CustomInitParams given) {
    auto* context = new (std::nothrow) CustomCtx{};
    if (context && read(given, context) && succeeded(cudaStreamCreate(&context->stream), "a CUDA stream"))
        return context;
    delete context;
    return nullptr;
}

void deInitLib(CustomCtx* context) {
    if (context) cudaStreamDestroy(context->stream);
    delete context;
}

// nvdspreprocess would scale each object here; the crops come from the frames themselves.
NvDsPreProcessStatus MalTransformation(NvBufSurface*, NvBufSurface*, CustomTransformParams&) {
    return NVDSPREPROCESS_SUCCESS;
}

NvDsPreProcessStatus MalTensorPreparation(CustomCtx* context, NvDsPreProcessBatch* batch,
                                          NvDsPreProcessCustomBuf*& buffer, CustomTensorParams& tensor,
                                          NvDsPreProcessAcquirer* acquirer) {
    auto& shape = tensor.params.network_input_shape;
    const int size = shape[2];
    buffer = acquirer->acquire();
    if (!buffer) return NVDSPREPROCESS_RESOURCE_ERROR;
    auto* out = static_cast<float*>(buffer->memory_ptr);
    bool good = true;
    for (const NvDsPreProcessUnit& unit : batch->units) {
        good = good && cut(*context, unit, size, out);
        out += static_cast<size_t>(3) * size * size;
    }
    // nvinfer reads the tensor on another stream.
    good = succeeded(cudaStreamSynchronize(context->stream), "waiting for the crops") && good;
    if (!good) {
        acquirer->release(buffer);
        buffer = nullptr;
        return NVDSPREPROCESS_CUSTOM_TENSOR_FAILED;
    }
    shape[0] = static_cast<int>(batch->units.size());
    return NVDSPREPROCESS_SUCCESS;
}

}  // extern "C"
