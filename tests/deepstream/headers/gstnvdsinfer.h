#pragma once
#include "nvdsinfer.h"

typedef struct {
    guint unique_id;
    guint num_output_layers;
    NvDsInferLayerInfo* output_layers_info;
    void** out_buf_ptrs_host;
    void** out_buf_ptrs_dev;
    gint gpu_id;
    void* priv_data;
    NvDsInferNetworkInfo network_info;
    gboolean maintain_aspect_ratio, symmetric_padding;
} NvDsInferTensorMeta;
