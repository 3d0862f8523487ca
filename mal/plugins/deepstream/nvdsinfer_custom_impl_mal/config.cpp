#include "config.h"

#include <glib.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <stdexcept>

namespace mal::deepstream {
namespace {

const char kOurs[] = "mal", kTheirs[] = "property";
const std::set<std::string> kKeys = {"expansion", "preprocess-config", "longest-side", "every", "attach-polygons"};

class Reader {
public:
    explicit Reader(const std::string& path) : path_(path), file_(g_key_file_new(), g_key_file_free) {
        GError* error = nullptr;
        if (!g_key_file_load_from_file(file_.get(), path.c_str(), G_KEY_FILE_NONE, &error)) fail(error);
    }

    void check_ours() const {
        if (!g_key_file_has_group(file_.get(), kOurs))
            fail("has no [mal] group; take the config that `mal export --target deepstream` wrote");
        gchar** keys = g_key_file_get_keys(file_.get(), kOurs, nullptr, nullptr);
        std::string unknown;
        for (gchar** key = keys; *key; ++key)
            if (!kKeys.count(*key)) unknown = *key;
        g_strfreev(keys);
        if (!unknown.empty()) fail("[mal] has no key " + unknown);
    }

    bool has(const char* group, const char* key) const { return g_key_file_has_key(file_.get(), group, key, nullptr); }

    double number(const char* group, const char* key, double least, double most, double missing) const {
        if (!has(group, key)) return missing;
        GError* error = nullptr;
        const double value = g_key_file_get_double(file_.get(), group, key, &error);
        if (error) fail(error);
        if (!(value >= least && value <= most))
            fail("[" + std::string(group) + "] " + key + " is " + shortest(value) + "; expected " + shortest(least) +
                 " to " + shortest(most));
        return value;
    }

    unsigned whole(const char* group, const char* key, unsigned least, unsigned most, unsigned missing) const {
        const double value = number(group, key, least, most, missing);
        if (value != std::floor(value)) fail(std::string(key) + " must be a whole number");
        return static_cast<unsigned>(value);
    }

    std::string text(const char* group, const char* key) const {
        if (!has(group, key)) return "";
        const std::unique_ptr<gchar, void (*)(void*)> value(g_key_file_get_string(file_.get(), group, key, nullptr),
                                                            g_free);
        return value ? value.get() : "";
    }

    std::vector<int> numbers(const char* group, const char* key) const {
        if (!has(group, key)) return {};
        GError* error = nullptr;
        gsize count = 0;
        gint* values = g_key_file_get_integer_list(file_.get(), group, key, &count, &error);
        if (error) fail(error);
        std::vector<int> found(values, values + count);
        g_free(values);
        return found;
    }

    [[noreturn]] void fail(const std::string& what) const { throw std::runtime_error(path_ + ": " + what); }

private:
    static std::string shortest(double value) {
        char text[G_ASCII_DTOSTR_BUF_SIZE];
        return g_ascii_formatd(text, sizeof text, "%.10g", value);
    }

    [[noreturn]] void fail(GError* error) const {
        const std::string what = error->message;
        g_error_free(error);
        fail(what);
    }

    std::string path_;
    std::unique_ptr<GKeyFile, void (*)(GKeyFile*)> file_;
};

// Both pools of nvdspreprocess lend a batch's memory until its GstBuffer is freed, and block while they are empty: a
// buffer that needs more than is left would wait for itself. Half is left for it, as a sink keeps the buffer before it.
unsigned find_most_crops(const std::string& path) {
    const Reader reader(path);
    const auto shape = reader.numbers(kTheirs, "network-input-shape");
    if (shape.empty() || shape[0] < 1) reader.fail("[property] needs network-input-shape");
    const unsigned pools = std::min(reader.whole(kTheirs, "scaling-buf-pool-size", 2, 1024, 6),
                                    reader.whole(kTheirs, "tensor-buf-pool-size", 2, 1024, 6));
    return pools / 2 * static_cast<unsigned>(shape[0]);
}

}  // namespace

Config read_config(const std::string& path) {
    const Reader reader(path);
    reader.check_ours();
    Config config;
    Settings& settings = config.settings;
    if (!reader.has(kOurs, "expansion")) reader.fail("[mal] needs expansion, a constant of the model");
    settings.expansion = reader.number(kOurs, "expansion", 0, 10, 0);
    settings.longest_side = reader.whole(kOurs, "longest-side", 0, 4096, 0);
    settings.every = reader.whole(kOurs, "every", 1, 10000, 1);
    settings.polygons = reader.whole(kOurs, "attach-polygons", 0, 1, 0);
    settings.gie_id = reader.whole(kTheirs, "gie-unique-id", 1, G_MAXINT, 0);
    if (!settings.gie_id) reader.fail("[property] needs a gie-unique-id");
    settings.on_gie_id = static_cast<int>(reader.number(kTheirs, "operate-on-gie-id", -1, G_MAXINT, -1));
    settings.on_class_ids = reader.numbers(kTheirs, "operate-on-class-ids");

    config.preprocess = reader.text(kOurs, "preprocess-config");
    if (!config.preprocess.empty() && !g_path_is_absolute(config.preprocess.c_str())) {
        const std::unique_ptr<gchar, void (*)(void*)> folder(g_path_get_dirname(path.c_str()), g_free);
        config.preprocess = std::string(folder.get()) + "/" + config.preprocess;
    }
    if (!config.preprocess.empty()) {
        settings.crop = Crop::exact;
        settings.most_crops = find_most_crops(config.preprocess);
    } else {
        settings.crop = Crop::clipped;
    }
    return config;
}

}  // namespace mal::deepstream
