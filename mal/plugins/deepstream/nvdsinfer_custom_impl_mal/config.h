/* What the probes read of nvinfer's config file. */
#pragma once

#include <string>

#include "probe.h"

namespace mal::deepstream {

struct Config {
    Settings settings;
    std::string preprocess;  // path of nvdspreprocess's config; empty: nvinfer crops
};

// Throws std::runtime_error with one line that says what came, what was expected and in which file.
Config read_config(const std::string& path);

}  // namespace mal::deepstream
