/* The probes on GStreamer's pads: mal_masks_attach and mal_masks_metrics. */
#include <gst/gst.h>

#include <memory>
#include <stdexcept>

#include "config.h"
#include "gstnvdsmeta.h"
#include "mal_masks.h"
#include "probe.h"

namespace {

using mal::deepstream::MaskProbe;
using Shared = std::shared_ptr<MaskProbe>;  // of two pads and one element, whichever goes last

const char kKey[] = "mal-masks";

GstPadProbeReturn before(GstPad* pad, GstPadProbeInfo* info, gpointer data) {
    GstBuffer* buffer = GST_PAD_PROBE_INFO_BUFFER(info);
    NvDsBatchMeta* batch = buffer ? gst_buffer_get_nvds_batch_meta(buffer) : nullptr;
    GstMapInfo map;
    if (!batch) return GST_PAD_PROBE_OK;
    if (!gst_buffer_map(buffer, &map, GST_MAP_READ)) {
        GST_WARNING_OBJECT(pad, "cannot map a buffer; its objects get no masks");
        return GST_PAD_PROBE_OK;
    }
    if (map.size >= sizeof(NvBufSurface))  // in NVMM memory a buffer holds this struct, not pixels
        (*static_cast<Shared*>(data))->before(batch, *reinterpret_cast<const NvBufSurface*>(map.data));
    gst_buffer_unmap(buffer, &map);
    return GST_PAD_PROBE_OK;
}

GstPadProbeReturn after(GstPad*, GstPadProbeInfo* info, gpointer data) {
    GstBuffer* buffer = GST_PAD_PROBE_INFO_BUFFER(info);
    if (NvDsBatchMeta* batch = buffer ? gst_buffer_get_nvds_batch_meta(buffer) : nullptr)
        (*static_cast<Shared*>(data))->after(batch);
    return GST_PAD_PROBE_OK;
}

void drop(gpointer data) { delete static_cast<Shared*>(data); }

void add(GstElement* element, const char* pad_name, GstPadProbeCallback callback, const Shared& probe) {
    GstPad* pad = gst_element_get_static_pad(element, pad_name);
    if (!pad) throw std::runtime_error(std::string("the element has no pad ") + pad_name);
    gst_pad_add_probe(pad, GST_PAD_PROBE_TYPE_BUFFER, callback, new Shared(probe), drop);
    gst_object_unref(pad);
}

std::string config_path(GstElement* nvinfer) {
    if (!g_object_class_find_property(G_OBJECT_GET_CLASS(nvinfer), "config-file-path"))
        throw std::runtime_error("the element is no nvinfer: it has no property config-file-path");
    gchar* path = nullptr;
    g_object_get(nvinfer, "config-file-path", &path, nullptr);
    const std::unique_ptr<gchar, void (*)(void*)> owner(path, g_free);
    if (!path || !*path) throw std::runtime_error("nvinfer has no config-file-path yet; set it first");
    return path;
}

}  // namespace

gboolean mal_masks_attach(GstElement* first, GstElement* nvinfer, GError** error) {
    try {
        if (g_object_get_data(G_OBJECT(nvinfer), kKey)) throw std::runtime_error("nvinfer has mask probes already");
        const auto config = mal::deepstream::read_config(config_path(nvinfer));
        if (config.preprocess.empty() != (first == nvinfer))
            throw std::runtime_error(config.preprocess.empty()
                                         ? "the config names no preprocess-config, so the first element is nvinfer"
                                         : "the config names a preprocess-config: the first element must be the "
                                           "nvdspreprocess before nvinfer");
        const auto probe = std::make_shared<MaskProbe>(config.settings);
        add(first, "sink", before, probe);
        add(nvinfer, "src", after, probe);
        g_object_set_data_full(G_OBJECT(nvinfer), kKey, new Shared(probe), drop);
        return TRUE;
    } catch (const std::exception& problem) {
        g_set_error(error, GST_LIBRARY_ERROR, GST_LIBRARY_ERROR_SETTINGS, "%s", problem.what());
        return FALSE;
    }
}

gboolean mal_masks_metrics(GstElement* nvinfer, MalMaskMetrics* metrics) {
    auto* probe = static_cast<Shared*>(g_object_get_data(G_OBJECT(nvinfer), kKey));
    if (!probe) return FALSE;
    *metrics = (*probe)->metrics();
    return TRUE;
}
