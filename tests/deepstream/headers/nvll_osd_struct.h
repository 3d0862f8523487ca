/* What our plugin uses of DeepStream's API, written from its documentation, to compile and run it without the SDK.
   Names and types are the SDK's; what we do not touch is missing, so layouts differ: never link one with the other. */
#pragma once

typedef struct {
    double red, green, blue, alpha;
} NvOSD_ColorParams;

typedef struct {
    float left, top, width, height;
    unsigned int border_width;
    NvOSD_ColorParams border_color;
} NvOSD_RectParams;

typedef struct {
    float* data;
    unsigned int size; /* bytes */
    float threshold;
    unsigned int width, height;
} NvOSD_MaskParams;
