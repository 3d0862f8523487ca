#pragma once
#include <glib.h>

#include "nvll_osd_struct.h"

#define MAX_USER_FIELDS 4
#define UNTRACKED_OBJECT_ID 0xFFFFFFFFFFFFFFFF

typedef GList NvDsMetaList;

typedef enum {
    NVDS_INVALID_META = -1,
    NVDS_OBJ_META = 3,
    NVDS_USER_META = 7,
    NVDSINFER_TENSOR_OUTPUT_META = 12,
    NVDS_PREPROCESS_BATCH_META = 28,
    NVDS_START_USER_META = 8193,
} NvDsMetaType;

typedef gpointer (*NvDsMetaCopyFunc)(gpointer data, gpointer user_data);
typedef void (*NvDsMetaReleaseFunc)(gpointer data, gpointer user_data);

typedef struct _NvDsBatchMeta NvDsBatchMeta;
typedef struct _NvDsObjectMeta NvDsObjectMeta;

typedef struct {
    NvDsBatchMeta* batch_meta;
    NvDsMetaType meta_type;
    void* uContext;
    NvDsMetaCopyFunc copy_func;
    NvDsMetaReleaseFunc release_func;
} NvDsBaseMeta;

typedef struct {
    NvDsBaseMeta base_meta;
    void* user_meta_data;
} NvDsUserMeta;

struct _NvDsObjectMeta {
    NvDsBaseMeta base_meta;
    gint unique_component_id, class_id;
    guint64 object_id;
    gfloat confidence;
    NvOSD_RectParams rect_params;
    NvOSD_MaskParams mask_params;
    NvDsMetaList* obj_user_meta_list;
    gint64 misc_obj_info[MAX_USER_FIELDS];
};

typedef struct _NvDsFrameMeta {
    NvDsBaseMeta base_meta;
    guint pad_index, batch_id;
    gint frame_num;
    guint source_id;
    NvDsMetaList* obj_meta_list;
} NvDsFrameMeta;

struct _NvDsBatchMeta {
    NvDsBaseMeta base_meta;
    NvDsMetaList* frame_meta_list;
    NvDsMetaList* batch_user_meta_list;
    GRecMutex meta_mutex;
};

#ifdef __cplusplus
extern "C" {
#endif
void nvds_acquire_meta_lock(NvDsBatchMeta* batch_meta);
void nvds_release_meta_lock(NvDsBatchMeta* batch_meta);
NvDsUserMeta* nvds_acquire_user_meta_from_pool(NvDsBatchMeta* batch_meta);
void nvds_add_user_meta_to_obj(NvDsObjectMeta* obj_meta, NvDsUserMeta* user_meta);
void nvds_remove_user_meta_from_object(NvDsObjectMeta* obj_meta, NvDsUserMeta* user_meta);
NvDsMetaType nvds_get_user_meta_type(gchar* meta_descriptor);
#ifdef __cplusplus
}
#endif
