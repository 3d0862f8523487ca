/*
Texts one behind the other.

Data      at (n) addresses, lengths (n) in bytes: n texts; out: room for all of them. No aliasing.
*/
#include <cstdint>
#include <cstring>

extern "C" __attribute__((visibility("default"))) void mal_join_host(
    const char* const* at, const int64_t* lengths, int64_t n, char* out) {
    for (int64_t i = 0; i < n; out += lengths[i++])
        if (lengths[i]) std::memcpy(out, at[i], lengths[i]);
}
