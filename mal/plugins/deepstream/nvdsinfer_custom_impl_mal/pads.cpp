/* The probes on GStreamer's pads: mal_masks_attach and mal_masks_metrics. */
#include <gst/gst.h>

#include <memory>
#include <stdexcept>

#include "config.h"
#include "gst-nvevent.h"
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

// nvstreammux tells in its own events what becomes of the streams in its batches.
GstPadProbeReturn on_event(GstPad*, GstPadProbeInfo* info, gpointer data) {
    MaskProbe& probe = **static_cast<Shared*>(data);
    GstEvent* event = GST_PAD_PROBE_INFO_EVENT(info);
    guint source = 0;
    switch (static_cast<int>(GST_EVENT_TYPE(event))) {
        case GST_NVEVENT_PAD_DELETED:
            gst_nvevent_parse_pad_deleted(event, &source);
            probe.forget_tracks(source);
            break;
        case GST_NVEVENT_STREAM_EOS:
            gst_nvevent_parse_stream_eos(event, &source);
            probe.forget_tracks(source);
            break;
        case GST_NVEVENT_STREAM_RESET:
            gst_nvevent_parse_stream_reset(event, &source);
            probe.forget_tracks(source);
            break;
        case GST_EVENT_EOS:
        case GST_EVENT_FLUSH_STOP:
            probe.forget_tracks();
    }
    return GST_PAD_PROBE_OK;
}

void drop(gpointer data) { delete static_cast<Shared*>(data); }

using Pad = std::unique_ptr<GstPad, void (*)(gpointer)>;

Pad find_pad(GstElement* element, const char* name) {
    Pad pad(gst_element_get_static_pad(element, name), gst_object_unref);
    if (!pad) throw std::runtime_error(std::string("the element has no pad ") + name);
    return pad;
}

void add(const Pad& pad, int kinds, GstPadProbeCallback callback, const Shared& probe) {
    gst_pad_add_probe(pad.get(), static_cast<GstPadProbeType>(kinds), callback, new Shared(probe), drop);
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
        const Pad sink = find_pad(first, "sink"), src = find_pad(nvinfer, "src");
        add(sink, GST_PAD_PROBE_TYPE_BUFFER, before, probe);
        add(sink, GST_PAD_PROBE_TYPE_EVENT_DOWNSTREAM | GST_PAD_PROBE_TYPE_EVENT_FLUSH, on_event, probe);
        add(src, GST_PAD_PROBE_TYPE_BUFFER, after, probe);
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
