/*
mal::CRFRefine as TensorRT sees it.  What it means: reference.py.  How the GPU does it: cuda.cu.

Inputs    logits (B,1,h,w), guide (B,3,h,w), inside (1 or B,1,h,w); each float or half, linear
Output    refined (B,1,h,w) in the type of logits
Fields    iterations int32 >= 0, zeta float32 > 0; both needed, nothing else taken
Memory    no allocation; workspace only where logits or inside are half, for their float copies
State     none besides the two fields, so contexts share nothing that could clash
Loading   IPluginRegistry::loadLibrary, trtexec --dynamicPlugins: they call getCreators and setLoggerFinder below.
          No registration of its own: a library that does both crashes. No link to libnvinfer: one file serves
          TensorRT 10, 11 and RTX.
Names     MAL_DOMAIN, MAL_NAME, MAL_VERSION, MAL_ITERATIONS and MAL_ZETA come from Python, as the ONNX function's do
          (tensorrt_library.py builds this file).
*/
#include <NvInferRuntime.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <climits>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

extern "C" int mal_crf_refine_cuda(const float* logits, const void* guide, int guide_half, const float* inside,
                                   int inside_batch, float* out, int batch, int height, int width, int iterations,
                                   float zeta, void* stream);

// Not an anonymous namespace: nvinfer1 holds one too, and nvcc's stubs for kernels then take one for the other.
namespace mal::tensorrt {

using namespace nvinfer1;

constexpr int kLogits = 0, kGuide = 1, kInside = 2, kInputs = 3, kOutputs = 1;
constexpr int kOk = 0, kFailed = 1;

// ---------------------------------------------------------------- messages

// To stderr, not to TensorRT's logger: ILogger's table of functions is another one in 11 than in 10, so a library built
// against the headers of one would jump into nowhere in the other. What else we use of the headers is alike in both.
__attribute__((format(printf, 1, 2))) void report(const char* format, ...) noexcept {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    std::fprintf(stderr, "%s::%s: %s\n", MAL_DOMAIN, MAL_NAME, text);
}

struct Text {
    char characters[96];
};

Text describe(const Dims& dims) noexcept {
    Text text{};
    size_t at = 0;
    for (int i = 0; i < dims.nbDims && at < sizeof text.characters; ++i)
        at += std::snprintf(text.characters + at, sizeof text.characters - at, "%s%lld", i ? ", " : "",
                            static_cast<long long>(dims.d[i]));
    return text;
}

const char* name_of(PluginFieldType type) noexcept {
    switch (type) {
        case PluginFieldType::kFLOAT16: return "float16";
        case PluginFieldType::kFLOAT32: return "float32";
        case PluginFieldType::kFLOAT64: return "float64";
        case PluginFieldType::kINT8: return "int8";
        case PluginFieldType::kINT16: return "int16";
        case PluginFieldType::kINT32: return "int32";
        case PluginFieldType::kINT64: return "int64";
        case PluginFieldType::kCHAR: return "text";
        default: return "another type";
    }
}

// ---------------------------------------------------------------- fields

struct Attributes {
    int32_t iterations;
    float zeta;
};

// One value of this type, or a message.
template <typename Value>
bool take(const PluginField& field, PluginFieldType type, bool& known, Value& value) noexcept {
    if (known) {
        report("field %s is given twice", field.name);
        return false;
    }
    if (field.type != type || field.length != 1 || field.data == nullptr) {
        report("field %s must be 1 x %s, got %d x %s", field.name, name_of(type), field.data ? field.length : 0,
               name_of(field.type));
        return false;
    }
    std::memcpy(&value, field.data, sizeof value);
    return known = true;
}

bool read(const PluginFieldCollection* given, Attributes& attributes) noexcept {
    bool iterations = false, zeta = false;
    for (int i = 0; given && i < given->nbFields; ++i) {
        const PluginField& field = given->fields[i];
        const char* name = field.name ? field.name : "";
        if (std::strcmp(name, MAL_ITERATIONS) == 0) {
            if (!take(field, PluginFieldType::kINT32, iterations, attributes.iterations)) return false;
        } else if (std::strcmp(name, MAL_ZETA) == 0) {
            if (!take(field, PluginFieldType::kFLOAT32, zeta, attributes.zeta)) return false;
        } else {
            report("unknown field '%s'; expected " MAL_ITERATIONS " and " MAL_ZETA, name);
            return false;
        }
    }
    if (!iterations || !zeta) {
        report("field %s is missing", iterations ? MAL_ZETA : MAL_ITERATIONS);
        return false;
    }
    if (attributes.iterations < 0) {
        report(MAL_ITERATIONS " must be >= 0, got %d", attributes.iterations);
        return false;
    }
    if (!(attributes.zeta > 0) || !std::isfinite(attributes.zeta)) {
        report(MAL_ZETA " must be a positive number, got %g", static_cast<double>(attributes.zeta));
        return false;
    }
    return true;
}

// ---------------------------------------------------------------- shapes

// While an engine is built some sizes are not known yet (-1); they go with anything.
bool agree(int64_t a, int64_t b) noexcept { return a < 0 || b < 0 || a == b; }

bool is(const Dims& dims, int64_t batch, int64_t channels, const Dims& like) noexcept {
    return dims.nbDims == 4 && agree(dims.d[0], batch) && agree(dims.d[1], channels) && agree(dims.d[2], like.d[2]) &&
           agree(dims.d[3], like.d[3]);
}

bool fit(const Dims& logits, const Dims& guide, const Dims& inside) noexcept {
    if (!is(logits, -1, 1, logits) || logits.d[2] == 0 || logits.d[3] == 0) {
        report("logits must be (B, 1, h, w) with h, w >= 1, got (%s)", describe(logits).characters);
        return false;
    }
    if (!is(guide, logits.d[0], 3, logits)) {
        report("guide must be (B, 3, h, w) to go with logits (%s), got (%s)", describe(logits).characters,
               describe(guide).characters);
        return false;
    }
    if (!is(inside, 1, 1, logits) && !is(inside, logits.d[0], 1, logits)) {
        report("inside must be (1 or B, 1, h, w) to go with logits (%s), got (%s)", describe(logits).characters,
               describe(inside).characters);
        return false;
    }
    return true;
}

bool count_is_ours(int inputs, int outputs) noexcept {
    if (inputs == kInputs && outputs == kOutputs) return true;
    report("takes logits, guide and inside and gives one output, got %d inputs and %d outputs", inputs, outputs);
    return false;
}

// ---------------------------------------------------------------- half <-> float, for networks typed half

template <typename From, typename To>
__global__ void convert(const From* __restrict__ from, To* __restrict__ to, int64_t count) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
        to[i] = static_cast<To>(from[i]);
}

template <typename From, typename To>
cudaError_t launch_convert(const void* from, void* to, int64_t count, cudaStream_t stream) noexcept {
    constexpr int kThreads = 256;
    const int64_t blocks = (count + kThreads - 1) / kThreads;
    convert<<<static_cast<unsigned>(blocks < 4096 ? blocks : 4096), kThreads, 0, stream>>>(
        static_cast<const From*>(from), static_cast<To*>(to), count);
    return cudaGetLastError();
}

// Where the float copies lie in the workspace.
class Copies {
public:
    Copies(DataType logits, int64_t logits_count, DataType inside, int64_t inside_count) noexcept {
        if (logits == DataType::kHALF) {
            logits_ = reserve(logits_count);
            refined_ = reserve(logits_count);
        }
        if (inside == DataType::kHALF) inside_ = reserve(inside_count);
    }
    size_t size() const noexcept { return size_; }
    float* logits(void* workspace) const noexcept { return at(workspace, logits_); }
    float* refined(void* workspace) const noexcept { return at(workspace, refined_); }
    float* inside(void* workspace) const noexcept { return at(workspace, inside_); }

private:
    size_t reserve(int64_t count) noexcept {
        const size_t here = size_;
        size_ += (static_cast<size_t>(count) * sizeof(float) + 255) / 256 * 256;  // 256: as cudaMalloc aligns
        return here;
    }
    static float* at(void* workspace, size_t offset) noexcept {
        return reinterpret_cast<float*>(static_cast<char*>(workspace) + offset);
    }
    size_t size_ = 0, logits_ = 0, refined_ = 0, inside_ = 0;
};

int64_t volume(const Dims& dims) noexcept {
    int64_t count = 1;
    for (int i = 0; i < dims.nbDims; ++i) count *= dims.d[i];
    return count;
}

// ---------------------------------------------------------------- the plugin

class CrfRefine final : public IPluginV3,
                        public IPluginV3OneCore,
                        public IPluginV3OneBuild,
                        public IPluginV3OneRuntime {
public:
    explicit CrfRefine(const Attributes& attributes) noexcept : attributes_(attributes) {}
    CrfRefine(const CrfRefine&) = delete;  // the serialised fields point into the object
    CrfRefine& operator=(const CrfRefine&) = delete;

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    IPluginV3* clone() noexcept override { return new (std::nothrow) CrfRefine(attributes_); }
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    const AsciiChar* getPluginName() const noexcept override { return MAL_NAME; }
    const AsciiChar* getPluginVersion() const noexcept override { return MAL_VERSION; }
    const AsciiChar* getPluginNamespace() const noexcept override { return MAL_DOMAIN; }

    int32_t getNbOutputs() const noexcept override { return kOutputs; }

    int32_t getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                               int32_t input_count) const noexcept override {
        if (!count_is_ours(input_count, output_count)) return kFailed;
        outputs[0] = inputs[kLogits];
        return kOk;
    }

    int32_t getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t,
                            DimsExprs* outputs, int32_t output_count, IExprBuilder&) noexcept override {
        if (!count_is_ours(input_count, output_count)) return kFailed;
        if (!fit(known(inputs[kLogits]), known(inputs[kGuide]), known(inputs[kInside]))) return kFailed;
        outputs[0] = inputs[kLogits];
        return kOk;
    }

    bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t input_count,
                                   int32_t output_count) noexcept override {
        if (input_count != kInputs || output_count != kOutputs || position < 0 || position >= kInputs + kOutputs)
            return false;
        const PluginTensorDesc& tensor = tensors[position].desc;
        if (tensor.format != TensorFormat::kLINEAR) return false;
        if (position == kInputs) return tensor.type == tensors[kLogits].desc.type;
        return tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF;
    }

    int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count, const DynamicPluginTensorDesc*,
                            int32_t output_count) noexcept override {
        if (!count_is_ours(input_count, output_count)) return kFailed;
        return fit(inputs[kLogits].desc.dims, inputs[kGuide].desc.dims, inputs[kInside].desc.dims) ? kOk : kFailed;
    }

    size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*,
                            int32_t) const noexcept override {
        return Copies(inputs[kLogits].desc.type, volume(inputs[kLogits].max), inputs[kInside].desc.type,
                      volume(inputs[kInside].max))
            .size();
    }

    int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc*,
                          int32_t output_count) noexcept override {
        if (!count_is_ours(input_count, output_count)) return kFailed;
        return fit(inputs[kLogits].dims, inputs[kGuide].dims, inputs[kInside].dims) ? kOk : kFailed;
    }

    int32_t enqueue(const PluginTensorDesc* input, const PluginTensorDesc*, const void* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        const Dims& shape = input[kLogits].dims;
        const int64_t pixels = volume(shape), inside_pixels = volume(input[kInside].dims);
        if (pixels == 0) return kOk;
        if (shape.d[0] > INT_MAX || shape.d[2] > INT_MAX || shape.d[3] > INT_MAX) {
            report("logits (%s) are too large", describe(shape).characters);
            return kFailed;
        }
        const auto half = [&](int which) { return input[which].type == DataType::kHALF; };
        const Copies copies(input[kLogits].type, pixels, input[kInside].type, inside_pixels);
        auto logits = static_cast<const float*>(inputs[kLogits]);
        auto inside = static_cast<const float*>(inputs[kInside]);
        auto refined = static_cast<float*>(outputs[0]);
        if (half(kLogits)) {
            float* copy = copies.logits(workspace);
            const cudaError_t code = launch_convert<__half, float>(logits, copy, pixels, stream);
            if (!succeeded(code, "conversion of logits")) return kFailed;
            logits = copy;
            refined = copies.refined(workspace);
        }
        if (half(kInside)) {
            float* copy = copies.inside(workspace);
            const cudaError_t code = launch_convert<__half, float>(inside, copy, inside_pixels, stream);
            if (!succeeded(code, "conversion of inside")) return kFailed;
            inside = copy;
        }
        const int code = mal_crf_refine_cuda(logits, inputs[kGuide], half(kGuide), inside,
                                             static_cast<int>(input[kInside].dims.d[0]), refined,
                                             static_cast<int>(shape.d[0]), static_cast<int>(shape.d[2]),
                                             static_cast<int>(shape.d[3]), attributes_.iterations, attributes_.zeta,
                                             stream);
        if (!succeeded(static_cast<cudaError_t>(code), "kernel")) return kFailed;
        if (half(kLogits)) {
            const cudaError_t code = launch_convert<float, __half>(refined, outputs[0], pixels, stream);
            if (!succeeded(code, "conversion of the result")) return kFailed;
        }
        return kOk;
    }

    const PluginFieldCollection* getFieldsToSerialize() noexcept override {
        fields_[0] = PluginField(MAL_ITERATIONS, &attributes_.iterations, PluginFieldType::kINT32, 1);
        fields_[1] = PluginField(MAL_ZETA, &attributes_.zeta, PluginFieldType::kFLOAT32, 1);
        collection_ = {2, fields_};
        return &collection_;
    }

private:
    // The sizes of an expression that are constants; -1 elsewhere.
    static Dims known(const DimsExprs& expressions) noexcept {
        Dims dims{};
        dims.nbDims = expressions.nbDims;
        for (int i = 0; i < expressions.nbDims; ++i)
            dims.d[i] = expressions.d[i]->isConstant() ? expressions.d[i]->getConstantValue() : -1;
        return dims;
    }

    static bool succeeded(cudaError_t code, const char* what) noexcept {
        if (code == cudaSuccess) return true;
        report("%s failed: %s", what, cudaGetErrorString(code));
        return false;
    }

    Attributes attributes_;
    PluginField fields_[2];
    PluginFieldCollection collection_{};
};

class Creator final : public IPluginCreatorV3One {
public:
    IPluginV3* createPlugin(const AsciiChar*, const PluginFieldCollection* given, TensorRTPhase) noexcept override {
        Attributes attributes{};
        return read(given, attributes) ? new (std::nothrow) CrfRefine(attributes) : nullptr;
    }
    const PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const AsciiChar* getPluginName() const noexcept override { return MAL_NAME; }
    const AsciiChar* getPluginVersion() const noexcept override { return MAL_VERSION; }
    const AsciiChar* getPluginNamespace() const noexcept override { return MAL_DOMAIN; }

private:
    PluginField fields_[2] = {PluginField(MAL_ITERATIONS, nullptr, PluginFieldType::kINT32, 1),
                              PluginField(MAL_ZETA, nullptr, PluginFieldType::kFLOAT32, 1)};
    PluginFieldCollection collection_{2, fields_};
};

Creator creator;
IPluginCreatorInterface* const creators[] = {&creator};

}  // namespace mal::tensorrt

#define MAL_EXPORTED extern "C" __attribute__((visibility("default")))

MAL_EXPORTED nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    count = 1;
    return mal::tensorrt::creators;
}

// Part of the protocol; `report` tells why it is not used.
MAL_EXPORTED void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
