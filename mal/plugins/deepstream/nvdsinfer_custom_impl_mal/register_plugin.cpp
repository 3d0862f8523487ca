/*
Loading this library makes mal::CRFRefine known to TensorRT: nvinfer opens custom-lib-path before it reads an engine or
an ONNX file, and `trtexec --staticPlugins` does the same.

The plugin is tensorrt_plugin.cu, as in libmal_crf_tensorrt.so. Its getCreators stays inside this library
(exports.map): TensorRT crashes on one that registers itself and is asked for its creators too.
*/
#include <NvInferRuntime.h>

#include <cstdio>

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);

namespace {

struct Registration {
    Registration() {
        int32_t count = 0;
        nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
        for (int32_t i = 0; i < count; ++i)
            if (!getPluginRegistry()->registerCreator(*creators[i], MAL_DOMAIN))
                std::fprintf(stderr, "%s::%s is registered already, by another library\n", MAL_DOMAIN, MAL_NAME);
    }
} registration;

}  // namespace
