#pragma once
#include <string>
#include <vector>

#include "nvds_roi_meta.h"

typedef struct {
    void* raw_tensor_buffer;
    guint64 buffer_size;
    std::vector<int> tensor_shape;
    NvDsDataType data_type;
    std::string tensor_name;
    guint meta_id;
} NvDsPreProcessTensorMeta;

typedef struct {
    std::vector<guint64> target_unique_ids;
    NvDsPreProcessTensorMeta* tensor_meta;
    std::vector<NvDsRoiMeta> roi_vector;
    void* private_data;
} GstNvDsPreProcessBatchMeta;
