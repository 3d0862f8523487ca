// Enough of CUDA to run cuda.cu on a CPU: a std::thread for each CUDA thread, a real barrier, one CTA after another.
// It shows wrong indices, halos, lost barriers' effects and out-of-bounds (with a sanitizer); it knows nothing of warps.
#pragma once
#include <algorithm>
#include <barrier>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __syncthreads() emulated::barrier->arrive_and_wait()
#define MAL_SHARED(name) unsigned char* name = emulated::memory

using std::max;
using std::min;
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaDevAttrMaxSharedMemoryPerBlockOptin };
struct Index { int x; };

namespace emulated {
inline int limit = 99 * 1024;  // shared memory of a CTA on the chip that is played
inline unsigned char* memory;
inline std::barrier<>* barrier;
template <typename Kernel, typename Task>
void launch(Kernel kernel, int grid, int threads, int bytes, const Task& task);
}  // namespace emulated
inline thread_local Index threadIdx, blockIdx;

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) { return *value = emulated::limit, cudaSuccess; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int bytes) {
    return bytes <= emulated::limit ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

template <typename Kernel, typename Task>
void emulated::launch(Kernel kernel, int grid, int threads, int bytes, const Task& task) {
    for (int block = 0; block < grid; ++block) {
        // On the heap, exactly as large as asked for, and full of NaN: what is read before it is written shows.
        std::vector<float> shared((bytes + 3) / 4, __builtin_nanf(""));
        memory = reinterpret_cast<unsigned char*>(shared.data());
        std::barrier<> gate(threads);
        barrier = &gate;
        std::vector<std::thread> crew;
        for (int i = 0; i < threads; ++i)
            crew.emplace_back([=] { threadIdx.x = i, blockIdx.x = block, kernel(task); });
        for (auto& member : crew) member.join();
    }
}
#define MAL_LAUNCH(kernel, grid, threads, bytes, stream, ...) emulated::launch(kernel, grid, threads, bytes, __VA_ARGS__)

extern "C" __attribute__((visibility("default"))) void emulate_shared_memory(int bytes) { emulated::limit = bytes; }
