/*
malnvinfer: a bin of nvinfer with the probes on it, and of nvdspreprocess before it where the config names one.

    config-file-path     of nvinfer; read when the element goes to READY
    wanted, masks, reused, misses, unusable     MalMaskMetrics, read-only

Every other property of nvinfer: malnvinfer is a GstChildProxy of it, "nvinfer::batch-size".
*/
#include <gst/gst.h>

#include <memory>
#include <stdexcept>

#include "config.h"
#include "mal_masks.h"

#ifndef PACKAGE
#define PACKAGE "mal"
#endif

namespace {

struct MalNvInfer {
    GstBin parent;
    gchar* config;
    GstElement* nvinfer;  // owned by the bin; nullptr until READY
};
struct MalNvInferClass {
    GstBinClass parent;
};

enum Property { kConfig = 1, kWanted, kMasks, kReused, kMisses, kUnusable };

GstStaticPadTemplate sink_template =
    GST_STATIC_PAD_TEMPLATE("sink", GST_PAD_SINK, GST_PAD_ALWAYS, GST_STATIC_CAPS("video/x-raw(memory:NVMM)"));
GstStaticPadTemplate src_template =
    GST_STATIC_PAD_TEMPLATE("src", GST_PAD_SRC, GST_PAD_ALWAYS, GST_STATIC_CAPS("video/x-raw(memory:NVMM)"));

G_DEFINE_TYPE(MalNvInfer, mal_nv_infer, GST_TYPE_BIN)

MalNvInfer* self_of(gpointer object) { return reinterpret_cast<MalNvInfer*>(object); }

GstElement* make(GstBin* bin, const char* factory, const char* property, const std::string& config) {
    GstElement* element = gst_element_factory_make(factory, factory);
    if (!element)
        throw std::runtime_error(std::string("there is no element ") + factory +
                                 " here: is DeepStream's plugin folder in GST_PLUGIN_PATH?");
    gst_bin_add(bin, element);
    g_object_set(element, property, config.c_str(), nullptr);
    return element;
}

void drop(GstBin* bin, const char* name) {
    GstElement* element = gst_bin_get_by_name(bin, name);
    if (!element) return;
    gst_bin_remove(bin, element);
    gst_object_unref(element);
}

void aim(GstElement* bin, const char* name, GstElement* element) {
    GstPad* pad = gst_element_get_static_pad(element, name);
    GstPad* ghost = gst_element_get_static_pad(bin, name);
    gst_ghost_pad_set_target(GST_GHOST_PAD(ghost), pad);
    gst_object_unref(ghost);
    gst_object_unref(pad);
}

void build(MalNvInfer* self) {
    GST_OBJECT_LOCK(self);
    const std::string path = self->config ? self->config : "";
    GST_OBJECT_UNLOCK(self);
    if (path.empty()) throw std::runtime_error("set config-file-path");
    const auto config = mal::deepstream::read_config(path);
    GstBin* bin = GST_BIN(self);
    GstElement* nvinfer = make(bin, "nvinfer", "config-file-path", path);
    GstElement* first = nvinfer;
    if (!config.preprocess.empty()) {
        first = make(bin, "nvdspreprocess", "config-file", config.preprocess);
        if (!gst_element_link(first, nvinfer)) throw std::runtime_error("cannot link nvdspreprocess and nvinfer");
    }
    GError* error = nullptr;
    if (!mal_masks_attach(first, nvinfer, &error)) {
        const std::string what = error->message;
        g_error_free(error);
        throw std::runtime_error(what);
    }
    aim(GST_ELEMENT(self), "sink", first);
    aim(GST_ELEMENT(self), "src", nvinfer);
    GST_OBJECT_LOCK(self);
    self->nvinfer = nvinfer;
    GST_OBJECT_UNLOCK(self);
}

GstStateChangeReturn change_state(GstElement* element, GstStateChange change) {
    MalNvInfer* self = self_of(element);
    if (change == GST_STATE_CHANGE_NULL_TO_READY && !self->nvinfer) {
        try {
            build(self);
        } catch (const std::exception& problem) {
            drop(GST_BIN(self), "nvdspreprocess");
            drop(GST_BIN(self), "nvinfer");
            GST_ELEMENT_ERROR(self, LIBRARY, SETTINGS, ("%s", problem.what()), (nullptr));
            return GST_STATE_CHANGE_FAILURE;
        }
    }
    return GST_ELEMENT_CLASS(mal_nv_infer_parent_class)->change_state(element, change);
}

void set_property(GObject* object, guint, const GValue* value, GParamSpec*) {
    MalNvInfer* self = self_of(object);
    GST_OBJECT_LOCK(self);
    const bool late = self->nvinfer;
    if (!late) {
        g_free(self->config);
        self->config = g_value_dup_string(value);
    }
    GST_OBJECT_UNLOCK(self);
    if (late) GST_WARNING_OBJECT(self, "config-file-path is read once, when the element goes to READY");
}

void get_property(GObject* object, guint id, GValue* value, GParamSpec*) {
    MalNvInfer* self = self_of(object);
    GST_OBJECT_LOCK(self);
    if (id == kConfig) g_value_set_string(value, self->config);
    GstElement* nvinfer = self->nvinfer;
    GST_OBJECT_UNLOCK(self);
    if (id == kConfig) return;
    MalMaskMetrics metrics{};
    if (nvinfer) mal_masks_metrics(nvinfer, &metrics);
    const guint64 counts[] = {metrics.wanted, metrics.masks, metrics.reused, metrics.misses, metrics.unusable};
    g_value_set_uint64(value, counts[id - kWanted]);
}

void finalize(GObject* object) {
    g_free(self_of(object)->config);
    G_OBJECT_CLASS(mal_nv_infer_parent_class)->finalize(object);
}

void mal_nv_infer_class_init(MalNvInferClass* type) {
    GObjectClass* object = G_OBJECT_CLASS(type);
    GstElementClass* element = GST_ELEMENT_CLASS(type);
    object->set_property = set_property;
    object->get_property = get_property;
    object->finalize = finalize;
    element->change_state = change_state;
    const auto fixed = static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS);
    const auto seen = static_cast<GParamFlags>(G_PARAM_READABLE | G_PARAM_STATIC_STRINGS);
    g_object_class_install_property(
        object, kConfig,
        g_param_spec_string("config-file-path", "Config file", "nvinfer's config with a [mal] group", nullptr, fixed));
    const char* const counts[][2] = {{"wanted", "Objects that masks were asked for"},
                                     {"masks", "Masks made from a result of the network"},
                                     {"reused", "Masks of an earlier frame of the same track"},
                                     {"misses", "Objects that got no result"},
                                     {"unusable", "Boxes without an area in their frame"}};
    for (guint i = 0; i < G_N_ELEMENTS(counts); ++i)
        g_object_class_install_property(object, kWanted + i,
                                        g_param_spec_uint64(counts[i][0], counts[i][0], counts[i][1], 0, G_MAXUINT64, 0,
                                                            seen));
    gst_element_class_add_static_pad_template(element, &sink_template);
    gst_element_class_add_static_pad_template(element, &src_template);
    gst_element_class_set_static_metadata(element, "Mask Auto-Labeler", "Filter/Analyzer/Video",
                                          "Fills mask_params of the objects it is given", "mal");
}

void mal_nv_infer_init(MalNvInfer* self) {
    GstPadTemplate* sink = gst_static_pad_template_get(&sink_template);
    GstPadTemplate* src = gst_static_pad_template_get(&src_template);
    gst_element_add_pad(GST_ELEMENT(self), gst_ghost_pad_new_no_target_from_template("sink", sink));
    gst_element_add_pad(GST_ELEMENT(self), gst_ghost_pad_new_no_target_from_template("src", src));
    gst_object_unref(sink);
    gst_object_unref(src);
}

gboolean plugin_init(GstPlugin* plugin) {
    return gst_element_register(plugin, "malnvinfer", GST_RANK_NONE, mal_nv_infer_get_type());
}

}  // namespace

// GStreamer finds a plugin by its file's name: libnvdsinfer_mal.so.
GST_PLUGIN_DEFINE(GST_VERSION_MAJOR, GST_VERSION_MINOR, nvdsinfer_mal, "Masks on DeepStream's objects", plugin_init,
                  "1.0", "Apache 2.0", "mal", "mask-auto-labeler")
