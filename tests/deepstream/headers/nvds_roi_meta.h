#pragma once
#include "nvbufsurface.h"
#include "nvdsmeta.h"

typedef enum { NvDsDataType_FP32 = 0, NvDsDataType_FP16 = 7 } NvDsDataType;

typedef struct NvDsRoiMeta {
    NvOSD_RectParams roi;
    NvBufSurfaceParams* converted_buffer;
    NvDsFrameMeta* frame_meta;
    NvDsMetaList* roi_user_meta_list;
    NvDsObjectMeta* object_meta;
} NvDsRoiMeta;
