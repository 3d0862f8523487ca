/*
Drives the plugin library as TensorRT would, without TensorRT.

harness LIBRARY                                   prints what it answers, one "name value" a line
harness LIBRARY run B h w I iterations zeta LGN   logits, guide and inside from stdin, refined to stdout;
                                                  I maps in inside; L, G, N: f or h, types of logits, guide, inside.
                                                  Needs a GPU; without one the plugin must fail and say why (exit 1).
Build     nvcc -cudart static -isystem HEADERS -x cu tensorrt_harness.cpp -ldl
*/
#include <NvInferRuntime.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

using namespace nvinfer1;

static IPluginCreatorV3One* creator_of(void* library) {
    auto get = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
    int32_t count = 0;
    IPluginCreatorInterface* const* creators = get(count);
    return count == 1 ? static_cast<IPluginCreatorV3One*>(creators[0]) : nullptr;
}

static IPluginV3* make(IPluginCreatorV3One* creator, int32_t iterations, float zeta) {
    PluginField fields[2] = {{"iterations", &iterations, PluginFieldType::kINT32, 1},
                             {"zeta", &zeta, PluginFieldType::kFLOAT32, 1}};
    const PluginFieldCollection collection{2, fields};
    return creator->createPlugin("crf", &collection, TensorRTPhase::kRUNTIME);
}

template <typename Capability>
static Capability* as(IPluginV3* plugin, PluginCapabilityType type) {
    return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}
static IPluginV3OneBuild* build_of(IPluginV3* plugin) {
    return as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
static IPluginV3OneRuntime* runtime_of(IPluginV3* plugin) {
    return as<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

static PluginTensorDesc tensor(std::initializer_list<int64_t> sizes, DataType type,
                               TensorFormat format = TensorFormat::kLINEAR) {
    PluginTensorDesc desc{};
    desc.dims.nbDims = static_cast<int32_t>(sizes.size());
    int i = 0;
    for (const int64_t size : sizes) desc.dims.d[i++] = size;
    desc.type = type;
    desc.format = format;
    return desc;
}

static DynamicPluginTensorDesc dynamic(const PluginTensorDesc& desc, int64_t most) {
    DynamicPluginTensorDesc whole{};
    whole.desc = desc;
    whole.min = whole.max = whole.opt = desc.dims;
    if (whole.max.d[0] < 0) whole.max.d[0] = most;
    return whole;
}

static std::string fields_of(IPluginV3* plugin) {
    const PluginFieldCollection* fields = runtime_of(plugin)->getFieldsToSerialize();
    std::string text;
    for (int i = 0; i < fields->nbFields; ++i) {
        const PluginField& field = fields->fields[i];
        char value[32];
        if (field.type == PluginFieldType::kINT32)
            std::snprintf(value, sizeof value, "%d", *static_cast<const int32_t*>(field.data));
        else
            std::snprintf(value, sizeof value, "%g", static_cast<double>(*static_cast<const float*>(field.data)));
        text += std::string(i ? "," : "") + field.name + "=" + value;
    }
    return text;
}

static const DataType F = DataType::kFLOAT, H = DataType::kHALF;

static int inspect(void* library) {
    IPluginCreatorV3One* creator = creator_of(library);
    IPluginV3* plugin = make(creator, 7, 0.25f);

    // Serialised, made again from that, copied, attached: always the same two values.
    IPluginV3* again = creator->createPlugin("crf", runtime_of(plugin)->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
    IPluginV3* copy = plugin->clone();
    IPluginV3* attached = runtime_of(plugin)->attachToContext(nullptr);
    std::printf("fields %s\nagain %s\ncopy %s\nattached %s\n", fields_of(plugin).c_str(), fields_of(again).c_str(),
                fields_of(copy).c_str(), fields_of(attached).c_str());
    std::printf("objects %d\n", copy != plugin && attached != plugin && attached != copy);

    IPluginV3OneBuild* build = build_of(plugin);
    std::string formats;
    const DataType types[] = {F, H, DataType::kINT8, DataType::kBF16};
    const char* names = "fhib";
    for (int l = 0; l < 4; ++l)
        for (int g = 0; g < 4; ++g)
            for (int n = 0; n < 4; ++n)
                for (int o = 0; o < 4; ++o) {
                    DynamicPluginTensorDesc all[4] = {};
                    const int chosen[4] = {l, g, n, o};
                    bool taken = true;
                    for (int i = 0; i < 4; ++i) all[i] = dynamic(tensor({1, 1, 8, 8}, types[chosen[i]]), 1);
                    for (int i = 0; i < 4; ++i) taken = taken && build->supportsFormatCombination(i, all, 3, 1);
                    if (!taken) continue;
                    if (!formats.empty()) formats += ",";
                    for (const int i : chosen) formats += names[i];
                }
    std::printf("formats %s\n", formats.c_str());
    DynamicPluginTensorDesc packed[4] = {dynamic(tensor({1, 1, 8, 8}, H, TensorFormat::kCHW2), 1)};
    std::printf("packed %d\n", build->supportsFormatCombination(0, packed, 3, 1));

    const auto configure = [&](PluginTensorDesc logits, PluginTensorDesc guide, PluginTensorDesc inside) {
        const DynamicPluginTensorDesc in[3] = {dynamic(logits, 64), dynamic(guide, 64), dynamic(inside, 64)};
        const DynamicPluginTensorDesc out[1] = {in[0]};
        return build->configurePlugin(in, 3, out, 1);
    };
    const PluginTensorDesc logits = tensor({-1, 1, 48, 48}, F), guide = tensor({-1, 3, 48, 48}, F);
    const PluginTensorDesc one = tensor({1, 1, 48, 48}, F), each = tensor({-1, 1, 48, 48}, F);
    std::printf("configure %d %d %d %d %d\n", configure(logits, guide, one), configure(logits, guide, each),
                configure(logits, tensor({-1, 4, 48, 48}, F), one), configure(logits, guide, tensor({1, 1, 48, 47}, F)),
                configure(tensor({-1, 48, 48}, F), guide, one));

    const auto workspace = [&](DataType l, DataType n, const PluginTensorDesc& maps) {
        PluginTensorDesc typed_logits = logits, typed_inside = maps;
        typed_logits.type = l;
        typed_inside.type = n;
        const DynamicPluginTensorDesc in[3] = {dynamic(typed_logits, 64), dynamic(guide, 64), dynamic(typed_inside, 64)};
        return build->getWorkspaceSize(in, 3, in, 1);
    };
    std::printf("workspace %zu %zu %zu %zu\n", workspace(F, F, one), workspace(H, F, one), workspace(F, H, one),
                workspace(H, H, each));

    IPluginV3OneRuntime* runtime = runtime_of(plugin);
    const auto change = [&](std::initializer_list<int64_t> inside) {
        const PluginTensorDesc in[3] = {tensor({5, 1, 48, 48}, F), tensor({5, 3, 48, 48}, F), tensor(inside, F)};
        return runtime->onShapeChange(in, 3, in, 1);
    };
    std::printf("change %d %d %d\n", change({1, 1, 48, 48}), change({5, 1, 48, 48}), change({2, 1, 48, 48}));

    const PluginTensorDesc nothing[3] = {tensor({0, 1, 8, 8}, F), tensor({0, 3, 8, 8}, F), tensor({1, 1, 8, 8}, F)};
    const void* inputs[3] = {};
    void* outputs[1] = {};
    std::printf("empty %d\n", runtime->enqueue(nothing, nothing, inputs, outputs, nullptr, nullptr));
    for (IPluginV3* object : {plugin, again, copy, attached}) delete object;
    return 0;
}

static int refine(void* library, char** words) {
    const int64_t batch = std::atoll(words[0]), height = std::atoll(words[1]), width = std::atoll(words[2]);
    const int64_t maps = std::atoll(words[3]), channels[3] = {batch, 3 * batch, maps};
    IPluginV3* plugin = make(creator_of(library), std::atoi(words[4]), std::strtof(words[5], nullptr));
    PluginTensorDesc in[3];
    DynamicPluginTensorDesc most[3];
    void* device[3] = {};
    for (int i = 0; i < 3; ++i) {
        const DataType type = words[6][i] == 'h' ? H : F;
        in[i] = tensor({i == 2 ? maps : batch, i == 1 ? 3 : 1, height, width}, type);
        most[i] = dynamic(in[i], batch);
        std::vector<char> bytes(channels[i] * height * width * (type == H ? 2 : 4));
        if (std::fread(bytes.data(), 1, bytes.size(), stdin) != bytes.size()) return 2;
        if (cudaMalloc(&device[i], bytes.size()) == cudaSuccess)
            cudaMemcpy(device[i], bytes.data(), bytes.size(), cudaMemcpyHostToDevice);
    }
    std::vector<char> result(batch * height * width * (in[0].type == H ? 2 : 4));
    const size_t size = build_of(plugin)->getWorkspaceSize(most, 3, most, 1);
    void *out[1] = {}, *workspace = nullptr;
    cudaMalloc(&out[0], result.size());
    if (size) cudaMalloc(&workspace, size);
    cudaGetLastError();  // without a GPU all of this failed; the plugin is to find out by itself
    cudaStream_t stream = nullptr;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    IPluginV3OneRuntime* runtime = runtime_of(plugin);
    if (runtime->onShapeChange(in, 3, in, 1)) return 3;
    if (runtime->enqueue(in, in, device, out, workspace, stream)) return 1;
    if (cudaStreamSynchronize(stream) != cudaSuccess) return 4;
    cudaMemcpy(result.data(), out[0], result.size(), cudaMemcpyDeviceToHost);
    std::fwrite(result.data(), 1, result.size(), stdout);
    delete plugin;
    return 0;
}

int main(int count, char** words) {
    void* library = count > 1 ? dlopen(words[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (library == nullptr) {
        std::fprintf(stderr, "%s\n", count > 1 ? dlerror() : "no library");
        return 2;
    }
    return count == 10 ? refine(library, words + 3) : inspect(library);
}
