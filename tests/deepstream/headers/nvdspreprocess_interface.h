#pragma once
#include <string>
#include <unordered_map>
// No <vector>, as in the SDK.

#include "gstnvdsmeta.h"
// after gst/gst.h
#include "nvds_roi_meta.h"

typedef struct CustomCtx CustomCtx;

typedef enum {
    NVDSPREPROCESS_SUCCESS = 0,
    NVDSPREPROCESS_CUSTOM_TENSOR_FAILED = 4,
    NVDSPREPROCESS_CUDA_ERROR = 7,
    NVDSPREPROCESS_RESOURCE_ERROR = 9,
} NvDsPreProcessStatus;

typedef struct {
    void* sync_obj = nullptr;
} CustomTransformParams;

typedef struct {
    std::vector<int> network_input_shape;
    guint64 buffer_size = 1;
    NvDsDataType data_type;
    std::string tensor_name;
} NvDsPreProcessTensorParams;

typedef struct {
    std::vector<NvDsRoiMeta> roi_vector;
} CustomSeqProcTensorParams;

typedef struct {
    NvDsPreProcessTensorParams params;
    CustomSeqProcTensorParams seq_params;
} CustomTensorParams;

typedef struct {
    guint unique_id;
    NvDsPreProcessTensorParams tensor_params;
    std::unordered_map<std::string, std::string> user_configs;
    gchar* config_file_path;
} CustomInitParams;

struct NvDsPreProcessCustomBuf {
    void* memory_ptr;
};

class NvDsPreProcessAcquirer {
public:
    virtual NvDsPreProcessCustomBuf* acquire() = 0;
    virtual gboolean release(NvDsPreProcessCustomBuf*) = 0;
};

typedef struct {
    NvDsFrameMeta* frame_meta = nullptr;
    guint batch_index = 0;
    NvBufSurfaceParams* input_surf_params = nullptr;
    NvDsRoiMeta roi_meta;
} NvDsPreProcessUnit;

typedef struct {
    std::vector<NvDsPreProcessUnit> units;
    NvDsBatchMeta* batch_meta;
} NvDsPreProcessBatch;
