/*
Masks on the objects of a DeepStream pipeline: what an application calls and reads. libnvdsinfer_mal.so.

No call is needed. The library is a GStreamer plugin; its element `malnvinfer` holds nvinfer (and nvdspreprocess, where
the config names one) with the probes on it:

    gst-launch-1.0 ... ! malnvinfer config-file-path=config_infer_secondary_mal.txt ! ...

An application with its own nvinfer puts the probes on it with mal_masks_attach. Downstream either way:

    object->mask_params      over rect_params as they came; > threshold is mask
*/
#ifndef MAL_MASKS_H
#define MAL_MASKS_H

#include <gst/gst.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Counts since the probes were attached. wanted = masks + reused + misses + unusable, once all buffers are through. */
typedef struct {
    guint64 wanted;   /* objects that the config asks masks for */
    guint64 masks;    /* made from a result of the network */
    guint64 reused;   /* taken from an earlier frame of the same track */
    guint64 misses;   /* no result came: too small for nvinfer, a dropped batch, a track whose mask was lost, more objects
                         in a batch than nvdspreprocess's pools have room for */
    guint64 unusable; /* boxes without an area in the frame, not finite, or of a frame without a surface */
} MalMaskMetrics;

/* With attach-polygons=1: user_meta_data of an NvDsUserMeta of the object, whose meta_type is mal_mask_meta_type(). */
typedef struct {
    float score;         /* 0..1: how good the mask is likely to be; negative where the model gives none */
    guint part_count;    /* outlines; holes are left out, as in COCO's polygons */
    guint* part_sizes;   /* vertices of each part */
    float* points;       /* x, y, x, y, ... in frame pixels, part after part */
} MalMaskMeta;

/* The NvDsMetaType of MalMaskMeta. */
int mal_mask_meta_type(void);

/* Put the probes on the sink pad of `first` and the src pad of `nvinfer`, for these elements' whole life. `first` is
   the nvdspreprocess before nvinfer if the config's [mal] group names a preprocess-config, else nvinfer itself.
   What the probes need to know they read from nvinfer's config-file-path: the [mal] group, and gie-unique-id,
   operate-on-gie-id and operate-on-class-ids of [property].
   FALSE and an error: no config file, one without a [mal] group, a key or value that is none, or probes already there. */
gboolean mal_masks_attach(GstElement* first, GstElement* nvinfer, GError** error);

/* Counts of an element with probes; FALSE where there are none. From any thread. */
gboolean mal_masks_metrics(GstElement* nvinfer, MalMaskMetrics* metrics);

#ifdef __cplusplus
}
#endif
#endif
