#pragma once
#include <gst/gst.h>

#include "nvdsmeta.h"

#ifdef __cplusplus
extern "C" {
#endif
NvDsBatchMeta* gst_buffer_get_nvds_batch_meta(GstBuffer* buffer);
#ifdef __cplusplus
}
#endif
