/* The element malnvinfer in a real GStreamer pipeline, around a fake nvinfer and a fake nvdspreprocess.

       pipeline CONFIG FRAMES [EVENT]

   Each frame has two objects and one object of another detector. EVENT comes before frame 27: deleted, eos or reset,
   nvstreammux's events of source 0, or flush. Prints what came out at the end of the pipeline, and
   the element's counts. */
#include <gst/gst.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "config.h"
#include "fake_deepstream.h"
#include "gst-nvevent.h"

extern "C" gboolean gst_plugin_nvdsinfer_mal_register(void);

namespace {

// Each buffer's metadata; the SDK keeps it in a GstMeta.
std::map<GstBuffer*, std::unique_ptr<fake::Batch>> batches;
std::mutex mutex;

fake::Batch* batch_of(GstBuffer* buffer) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = batches.find(buffer);
    return found == batches.end() ? nullptr : found->second.get();
}

// One type for both elements: it passes buffers on, and as nvinfer hangs results on.
struct Fake {
    GstElement parent;
    GstPad* src;
    gchar* config;
};
struct FakeClass {
    GstElementClass parent;
};
G_DEFINE_TYPE(Fake, fake_element, GST_TYPE_ELEMENT)
struct Preprocess {
    Fake parent;
};
struct PreprocessClass {
    FakeClass parent;
};
G_DEFINE_TYPE(Preprocess, fake_preprocess, fake_element_get_type())

GstStaticPadTemplate sinks = GST_STATIC_PAD_TEMPLATE("sink", GST_PAD_SINK, GST_PAD_ALWAYS, GST_STATIC_CAPS_ANY);
GstStaticPadTemplate sources = GST_STATIC_PAD_TEMPLATE("src", GST_PAD_SRC, GST_PAD_ALWAYS, GST_STATIC_CAPS_ANY);

GstFlowReturn chain(GstPad*, GstObject* parent, GstBuffer* buffer) {
    auto* self = reinterpret_cast<Fake*>(parent);
    fake::Batch* batch = batch_of(buffer);
    if (batch && G_OBJECT_TYPE(self) == fake_element_get_type()) {
        std::vector<NvDsObjectMeta*> objects;
        std::vector<fake::Output> outputs;
        for (const fake::Crop& crop : fake::crops_of(*batch)) {
            objects.push_back(crop.object);
            outputs.push_back({std::vector<float>(16, 1.f), 4, 4, 0.75f});
        }
        const auto config = mal::deepstream::read_config(self->config);
        if (config.settings.crop == mal::deepstream::Crop::exact) {
            fake::hang_on_rois(batch->meta(), objects, config.settings.gie_id, outputs);
        } else {
            for (std::size_t i = 0; i < objects.size(); ++i)
                fake::hang_on_object(batch->meta(), objects[i], config.settings.gie_id, outputs[i]);
        }
    }
    return gst_pad_push(self->src, buffer);
}

void set_config(GObject* object, guint, const GValue* value, GParamSpec*) {
    auto* self = reinterpret_cast<Fake*>(object);
    g_free(self->config);
    self->config = g_value_dup_string(value);
}

void get_config(GObject* object, guint, GValue* value, GParamSpec*) {
    g_value_set_string(value, reinterpret_cast<Fake*>(object)->config);
}

void finalize(GObject* object) {
    g_free(reinterpret_cast<Fake*>(object)->config);
    G_OBJECT_CLASS(fake_element_parent_class)->finalize(object);
}

void install(GObjectClass* type, const char* property) {
    type->set_property = set_config;
    type->get_property = get_config;
    g_object_class_install_property(
        type, 1, g_param_spec_string(property, property, property, nullptr, G_PARAM_READWRITE));
}

void fake_element_class_init(FakeClass* type) {
    install(G_OBJECT_CLASS(type), "config-file-path");
    G_OBJECT_CLASS(type)->finalize = finalize;
    gst_element_class_add_static_pad_template(GST_ELEMENT_CLASS(type), &sinks);
    gst_element_class_add_static_pad_template(GST_ELEMENT_CLASS(type), &sources);
    gst_element_class_set_static_metadata(GST_ELEMENT_CLASS(type), "fake", "fake", "fake", "fake");
}

void fake_preprocess_class_init(PreprocessClass* type) { install(G_OBJECT_CLASS(type), "config-file"); }

void fake_element_init(Fake* self) {
    GstPad* sink = gst_pad_new_from_static_template(&sinks, "sink");
    self->src = gst_pad_new_from_static_template(&sources, "src");
    gst_pad_set_chain_function(sink, chain);
    GST_PAD_SET_PROXY_CAPS(sink);
    gst_element_add_pad(GST_ELEMENT(self), sink);
    gst_element_add_pad(GST_ELEMENT(self), self->src);
}

void fake_preprocess_init(Preprocess*) {}

void forget(gpointer, GstMiniObject* buffer) {
    const std::lock_guard<std::mutex> lock(mutex);
    batches.erase(reinterpret_cast<GstBuffer*>(buffer));
}

// A buffer as DeepStream's: it holds an NvBufSurface, and metadata hangs on it.
GstBuffer* make_buffer(int number) {
    auto batch = std::make_unique<fake::Batch>();
    NvDsFrameMeta* frame = batch->add_frame(0, number, 640, 480);
    batch->add_object(frame, 100, 100, 60, 40, 1);
    batch->add_object(frame, -10, 20, 31, 50, 2);
    batch->add_object(frame, 10, 20, 30, 50, 3, 9);
    const NvBufSurface surface = batch->surface();
    GstBuffer* buffer = gst_buffer_new_memdup(&surface, sizeof surface);
    const std::lock_guard<std::mutex> lock(mutex);
    batches[buffer] = std::move(batch);
    gst_mini_object_weak_ref(GST_MINI_OBJECT(buffer), forget, nullptr);
    return buffer;
}

void send(GstPad* pad, const char* name) {
    if (!std::strcmp(name, "flush")) {
        gst_pad_push_event(pad, gst_event_new_flush_start());
        gst_pad_push_event(pad, gst_event_new_flush_stop(FALSE));
    } else {
        GstStructure* source = gst_structure_new("source", "id", G_TYPE_UINT, 0, nullptr);
        const std::map<std::string, GstNvEventType> types = {
            {"deleted", GST_NVEVENT_PAD_DELETED}, {"eos", GST_NVEVENT_STREAM_EOS}, {"reset", GST_NVEVENT_STREAM_RESET}};
        gst_pad_push_event(pad, gst_event_new_custom(static_cast<GstEventType>(types.at(name)), source));
    }
}

long masks_seen = 0, wrong = 0;

GstPadProbeReturn look(GstPad*, GstPadProbeInfo* info, gpointer) {
    fake::Batch* batch = batch_of(GST_PAD_PROBE_INFO_BUFFER(info));
    auto* frame = static_cast<NvDsFrameMeta*>(batch->meta()->frame_meta_list->data);
    const unsigned widths[] = {60, 31, 0};
    int index = 0;
    for (NvDsMetaList* at = frame->obj_meta_list; at; at = at->next, ++index) {
        auto* object = static_cast<NvDsObjectMeta*>(at->data);
        masks_seen += object->mask_params.data != nullptr;
        wrong += object->mask_params.width != widths[index];
        wrong += object->rect_params.width != (index == 2 ? 30 : static_cast<float>(widths[index]));
    }
    return GST_PAD_PROBE_OK;
}

int fail(GstElement* pipeline) {
    GstBus* bus = gst_element_get_bus(pipeline);
    GstMessage* message = gst_bus_pop_filtered(bus, GST_MESSAGE_ERROR);
    if (message) {
        GError* error = nullptr;
        gst_message_parse_error(message, &error, nullptr);
        std::printf("error %s\n", error->message);
        g_error_free(error);
        gst_message_unref(message);
    }
    gst_object_unref(bus);
    gst_element_set_state(pipeline, GST_STATE_NULL);
    gst_object_unref(pipeline);
    return 1;
}

}  // namespace

NvDsBatchMeta* gst_buffer_get_nvds_batch_meta(GstBuffer* buffer) {
    fake::Batch* batch = batch_of(buffer);
    return batch ? batch->meta() : nullptr;
}

void gst_nvevent_parse_pad_deleted(GstEvent* event, guint* source_id) {
    gst_structure_get_uint(gst_event_get_structure(event), "id", source_id);
}
void gst_nvevent_parse_stream_eos(GstEvent* event, guint* source_id) { gst_nvevent_parse_pad_deleted(event, source_id); }
void gst_nvevent_parse_stream_reset(GstEvent* event, guint* source_id) {
    gst_nvevent_parse_pad_deleted(event, source_id);
}

int main(int count, char** words) {
    gst_init(&count, &words);
    if (count < 3) return 2;
    if (!std::getenv("WITHOUT_NVINFER")) {
        gst_element_register(nullptr, "nvinfer", GST_RANK_NONE, fake_element_get_type());
        gst_element_register(nullptr, "nvdspreprocess", GST_RANK_NONE, fake_preprocess_get_type());
    }
    if (!gst_plugin_nvdsinfer_mal_register()) return 3;
    GstElement* pipeline = gst_pipeline_new(nullptr);
    GstElement* masks = gst_element_factory_make("malnvinfer", "masks");
    GstElement* sink = gst_element_factory_make("fakesink", nullptr);
    g_object_set(masks, "config-file-path", words[1], nullptr);
    g_object_set(sink, "async", FALSE, "sync", FALSE, nullptr);
    gst_bin_add_many(GST_BIN(pipeline), masks, sink, nullptr);
    if (!gst_element_link(masks, sink)) return 4;
    GstPad* into = gst_element_get_static_pad(masks, "sink");
    GstPad* out = gst_element_get_static_pad(sink, "sink");
    gst_pad_add_probe(out, GST_PAD_PROBE_TYPE_BUFFER, look, nullptr, nullptr);
    GstPad* feed = gst_pad_new("feed", GST_PAD_SRC);
    if (gst_element_set_state(pipeline, GST_STATE_PLAYING) == GST_STATE_CHANGE_FAILURE) {
        gst_object_unref(into);
        gst_object_unref(out);
        gst_object_unref(feed);
        return fail(pipeline);
    }
    gst_pad_link(feed, into);
    gst_pad_set_active(feed, TRUE);
    gst_pad_push_event(feed, gst_event_new_stream_start("test"));
    GstCaps* caps = gst_caps_from_string("video/x-raw(memory:NVMM),format=NV12,width=640,height=480");
    gst_pad_push_event(feed, gst_event_new_caps(caps));
    gst_caps_unref(caps);
    GstSegment segment;
    gst_segment_init(&segment, GST_FORMAT_TIME);
    gst_pad_push_event(feed, gst_event_new_segment(&segment));
    GstFlowReturn flow = GST_FLOW_OK;
    for (int number = 0; number < std::atoi(words[2]) && flow == GST_FLOW_OK; ++number) {
        if (number == 27 && count > 3) send(feed, words[3]);
        flow = gst_pad_push(feed, make_buffer(number));
    }
    guint64 wanted = 0, made = 0, reused = 0, misses = 0, unusable = 0;
    g_object_get(masks, "wanted", &wanted, "masks", &made, "reused", &reused, "misses", &misses, "unusable", &unusable,
                 nullptr);
    std::printf("flow %s seen %ld wrong %ld wanted %lu masks %lu reused %lu misses %lu unusable %lu\n",
                gst_flow_get_name(flow), masks_seen, wrong, wanted, made, reused, misses, unusable);
    gst_pad_unlink(feed, into);
    gst_object_unref(into);
    gst_object_unref(out);
    gst_object_unref(feed);
    gst_element_set_state(pipeline, GST_STATE_NULL);
    gst_object_unref(pipeline);
    if (!batches.empty() || fake::user_metas_out) {
        std::printf("%zu buffers and %ld user metas are left\n", batches.size(), fake::user_metas_out.load());
        return 5;
    }
    return 0;
}
