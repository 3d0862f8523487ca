#pragma once
#include <stdint.h>

typedef enum {
    NVBUF_COLOR_FORMAT_NV12 = 6,
    NVBUF_COLOR_FORMAT_NV12_ER = 7,
    NVBUF_COLOR_FORMAT_NV12_709 = 33,
    NVBUF_COLOR_FORMAT_NV12_709_ER = 34,
    NVBUF_COLOR_FORMAT_RGBA = 19,
} NvBufSurfaceColorFormat;

typedef enum {
    NVBUF_MEM_DEFAULT,
    NVBUF_MEM_CUDA_PINNED,
    NVBUF_MEM_CUDA_DEVICE,
    NVBUF_MEM_CUDA_UNIFIED,
    NVBUF_MEM_SURFACE_ARRAY,
} NvBufSurfaceMemType;

#define NVBUF_MAX_PLANES 4

typedef struct {
    uint32_t num_planes;
    uint32_t width[NVBUF_MAX_PLANES], height[NVBUF_MAX_PLANES], pitch[NVBUF_MAX_PLANES], offset[NVBUF_MAX_PLANES];
} NvBufSurfacePlaneParams;

typedef struct {
    uint32_t width, height, pitch;
    NvBufSurfaceColorFormat colorFormat;
    uint32_t dataSize;
    void* dataPtr;
    NvBufSurfacePlaneParams planeParams;
} NvBufSurfaceParams;

typedef struct {
    uint32_t gpuId, batchSize, numFilled;
    NvBufSurfaceMemType memType;
    NvBufSurfaceParams* surfaceList;
} NvBufSurface;
