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
#include <unordered_map>
#include <vector>

#include "frame.h"
#include "nvdspreprocess_interface.h"  // DeepStream 9.1's uses <vector> without including it
#include "probe.h"

using namespace mal::deepstream;

extern "C" int mal_cut_crop_cuda(const Frame* frame, const Rectangle* crop, int size, int fill, float* out,
                                 void* stream);

struct CustomCtx {
    unsigned gie_id;
    Fill fill;
    cudaStream_t stream;  // nullptr until the first batch
    std::string said;     // last
};

namespace {

// Once: what goes wrong with one batch goes wrong with the next.
bool report(CustomCtx* context, const std::string& what) {
    if (what != context->said) std::fprintf(stderr, "libnvdsinfer_mal: %s\n", what.c_str());
    context->said = what;
    return false;
}

bool succeeded(CustomCtx* context, int code, const char* what) {
    return code == cudaSuccess || report(context, std::string(what) + " failed: " +
                                                      cudaGetErrorString(static_cast<cudaError_t>(code)));
}

bool read(const CustomInitParams& given, CustomCtx* context) {
    const auto& shape = given.tensor_params.network_input_shape;
    if (shape.size() != 4 || shape[1] != 3 || shape[2] != shape[3] || given.tensor_params.data_type != NvDsDataType_FP32)
        return report(context, "network-input-shape must be N;3;S;S and tensor-data-type 0 (FP32)");
    const auto gie = given.user_configs.find("gie-unique-id"), fill = given.user_configs.find("fill");
    if (gie == given.user_configs.end() || fill == given.user_configs.end())
        return report(context, "[user-configs] needs gie-unique-id and fill");
    context->gie_id = static_cast<unsigned>(std::strtoul(gie->second.c_str(), nullptr, 10));
    if (fill->second == "reflect") context->fill = Fill::reflect;
    else if (fill->second == "edge") context->fill = Fill::edge;
    else if (fill->second == "wrap") context->fill = Fill::wrap;
    else return report(context, "fill must be reflect, edge or wrap, got " + fill->second);
    return true;
}

// Jetson's frames are not: reading them would end all CUDA work of the process.
bool is_readable(const void* pixels) {
    cudaPointerAttributes about{};
    const bool known = cudaPointerGetAttributes(&about, pixels) == cudaSuccess;
    if (!known) cudaGetLastError();  // takes the error off
    return known && about.type != cudaMemoryTypeUnregistered;
}

bool cut(CustomCtx* context, const NvDsPreProcessUnit& unit, int size, float* out) {
    const NvDsObjectMeta* object = unit.roi_meta.object_meta;
    const NvDsUserMeta* meta = object ? find_saved(*object, context->gie_id) : nullptr;
    if (!meta) {  // a blank crop, whose result nobody reads: the batch's other objects need theirs
        report(context, "an object without a crop: is the mask probe on nvdspreprocess's sink pad?");
        const size_t bytes = sizeof(float) * 3 * size * size;
        return succeeded(context, cudaMemsetAsync(out, 0, bytes, context->stream), "clearing a crop");
    }
    const Box& box = static_cast<const Saved*>(meta->user_meta_data)->crop;
    Frame frame;
    if (!make_frame(*unit.input_surf_params, &frame) || !is_readable(frame.first))
        return report(context, "frames must be 8-bit NV12 or RGBA in memory that CUDA can read, got colour format " +
                                   std::to_string(unit.input_surf_params->colorFormat));
    const Rectangle crop{box.x0, box.y0, box.x1, box.y1};
    return succeeded(context, mal_cut_crop_cuda(&frame, &crop, size, static_cast<int>(context->fill), out, context->stream),
                     "cutting a crop");
}

}  // namespace

extern "C" {

CustomCtx* initLib(CustomInitParams given) {
    auto* context = new (std::nothrow) CustomCtx{};
    if (context && read(given, context)) return context;
    delete context;
    return nullptr;
}

void deInitLib(CustomCtx* context) {
    if (context && context->stream) cudaStreamDestroy(context->stream);
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
    buffer = nullptr;
    // Here and not in initLib, which nvdspreprocess calls before it chooses its GPU.
    if (!context->stream && !succeeded(context, cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking),
                                       "making a CUDA stream"))
        return NVDSPREPROCESS_CUDA_ERROR;
    buffer = acquirer->acquire();
    if (!buffer) return NVDSPREPROCESS_RESOURCE_ERROR;
    auto* out = static_cast<float*>(buffer->memory_ptr);
    bool good = true;
    for (const NvDsPreProcessUnit& unit : batch->units) {
        good = good && cut(context, unit, size, out);
        out += static_cast<size_t>(3) * size * size;
    }
    // nvinfer reads the tensor on another stream.
    good = succeeded(context, cudaStreamSynchronize(context->stream), "waiting for the crops") && good;
    if (!good) {
        acquirer->release(buffer);
        buffer = nullptr;
        return NVDSPREPROCESS_CUSTOM_TENSOR_FAILED;
    }
    shape[0] = static_cast<int>(batch->units.size());
    return NVDSPREPROCESS_SUCCESS;
}

}  // extern "C"
