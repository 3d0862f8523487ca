/*
A detector, a tracker and masks on one video, drawn into mal.mp4.

    GST_PLUGIN_PATH=nvdsinfer_custom_impl_mal ./pipeline DETECTOR_CONFIG VIDEO

The mask element comes after the tracker: a tracker rewrites the boxes that masks lie over.
*/
#include <gst/gst.h>

#include <cstdio>
#include <string>

namespace {

std::string description(const std::string& detector, const std::string& video) {
    const std::string tracker = "/opt/nvidia/deepstream/deepstream/lib/libnvds_nvmultiobjecttracker.so";
    return "filesrc location=\"" + video + "\" ! decodebin ! mux.sink_0 "
           "nvstreammux name=mux batch-size=1 width=1920 height=1080 ! "
           "nvinfer config-file-path=\"" + detector + "\" ! nvtracker ll-lib-file=" + tracker + " ! "
           "malnvinfer name=masks config-file-path=config_infer_secondary_mal.txt ! "
           "nvdsosd display-mask=1 process-mode=1 ! nvvideoconvert ! nvv4l2h264enc ! h264parse ! mp4mux ! "
           "filesink location=mal.mp4";
}

bool run(GstElement* pipeline) {
    gst_element_set_state(pipeline, GST_STATE_PLAYING);
    GstBus* bus = gst_element_get_bus(pipeline);
    GstMessage* message = gst_bus_timed_pop_filtered(
        bus, GST_CLOCK_TIME_NONE, static_cast<GstMessageType>(GST_MESSAGE_ERROR | GST_MESSAGE_EOS));
    const bool good = GST_MESSAGE_TYPE(message) == GST_MESSAGE_EOS;
    if (!good) {
        GError* error = nullptr;
        gst_message_parse_error(message, &error, nullptr);
        std::fprintf(stderr, "%s: %s\n", GST_OBJECT_NAME(message->src), error->message);
        g_error_free(error);
    }
    gst_message_unref(message);
    gst_object_unref(bus);
    return good;
}

}  // namespace

int main(int count, char** words) {
    gst_init(&count, &words);
    if (count != 3) {
        std::fprintf(stderr, "usage: pipeline DETECTOR_CONFIG VIDEO\n");
        return 2;
    }
    GError* error = nullptr;
    GstElement* pipeline = gst_parse_launch(description(words[1], words[2]).c_str(), &error);
    if (error) {
        std::fprintf(stderr, "%s\n", error->message);
        g_error_free(error);
        if (pipeline) gst_object_unref(pipeline);
        return 1;
    }
    const bool good = run(pipeline);
    GstElement* masks = gst_bin_get_by_name(GST_BIN(pipeline), "masks");
    guint64 wanted = 0, made = 0, reused = 0, misses = 0, unusable = 0;
    g_object_get(masks, "wanted", &wanted, "masks", &made, "reused", &reused, "misses", &misses, "unusable", &unusable,
                 nullptr);
    std::printf("objects %" G_GUINT64_FORMAT "  masks %" G_GUINT64_FORMAT "  reused %" G_GUINT64_FORMAT
                "  misses %" G_GUINT64_FORMAT "  unusable %" G_GUINT64_FORMAT "\n",
                wanted, made, reused, misses, unusable);
    gst_object_unref(masks);
    gst_element_set_state(pipeline, GST_STATE_NULL);
    gst_object_unref(pipeline);
    return good ? 0 : 1;
}
