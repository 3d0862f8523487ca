#pragma once
#include <gst/gst.h>

#define NVEVENT(number) \
    GST_EVENT_MAKE_TYPE(number, GST_EVENT_TYPE_DOWNSTREAM | GST_EVENT_TYPE_SERIALIZED | GST_EVENT_TYPE_STICKY | \
                                    GST_EVENT_TYPE_STICKY_MULTI)

typedef enum {
    GST_NVEVENT_PAD_ADDED = NVEVENT(400),
    GST_NVEVENT_PAD_DELETED = NVEVENT(401),
    GST_NVEVENT_STREAM_EOS = NVEVENT(402),
    GST_NVEVENT_STREAM_RESET = NVEVENT(404),
} GstNvEventType;
#undef NVEVENT

#ifdef __cplusplus
extern "C" {
#endif
void gst_nvevent_parse_pad_deleted(GstEvent* event, guint* source_id);
void gst_nvevent_parse_stream_eos(GstEvent* event, guint* source_id);
void gst_nvevent_parse_stream_reset(GstEvent* event, guint* source_id);
#ifdef __cplusplus
}
#endif
