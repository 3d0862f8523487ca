/* Both probes over many objects: odd boxes, many sources that come and go, lost results, dropped buffers.

       soak OBJECTS [rois]

   As in nvinfer one thread brings buffers and another one takes them on. Built with ASan and UBSan, or run under
   valgrind, it also proves that nothing leaks; with TSan, that the threads do not disturb each other. Prints the
   counts. */
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include "fake_deepstream.h"
#include "probe.h"

namespace {

using mal::deepstream::MaskProbe;
using mal::deepstream::Settings;

constexpr unsigned kGie = 17, kSources = 5, kMapSide = 12;

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1); \
        } \
    } while (0)

struct Expected {
    NvDsObjectMeta* object;
    NvOSD_RectParams rect;
    float* data;
};

float coordinate(std::mt19937& random, float low, float high) {
    switch (random() % 40) {
        case 0: return 0;
        case 1: return -high;
        case 2: return std::numeric_limits<float>::quiet_NaN();
        case 3: return std::numeric_limits<float>::infinity();
        case 4: return 1e30f;
        default: return std::uniform_real_distribution<float>(low, high)(random);
    }
}

// nvinfer's queue between its two threads; a null pointer ends it.
template <typename Item>
class Queue {
public:
    void put(Item item) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return items_.size() < 4; });
        items_.push_back(std::move(item));
        changed_.notify_all();
    }

    Item take() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return !items_.empty(); });
        Item item = std::move(items_.front());
        items_.pop_front();
        changed_.notify_all();
        return item;
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Item> items_;
};

fake::Output output(std::mt19937& random, unsigned kind) {
    fake::Output made{std::vector<float>(kMapSide * kMapSide), kMapSide, kMapSide, 0.5f};
    for (float& value : made.logits) value = static_cast<float>(random() % 2001) / 1000 - 1;
    if (kind == 1) made.logits[7] = std::numeric_limits<float>::quiet_NaN();
    if (kind == 2) made.height = 0;  // a shape that is none
    return made;
}

}  // namespace

int main(int count, char** words) {
    const long wanted = count > 1 ? std::atol(words[1]) : 1000;
    const bool rois = count > 2 && !std::strcmp(words[2], "rois");
    Settings settings;
    settings.gie_id = kGie;
    settings.on_gie_id = 1;
    settings.expansion = 0.3f;
    settings.crop = rois ? mal::deepstream::Crop::exact : mal::deepstream::Crop::clipped;
    if (rois) settings.most_crops = 12;  // a few batches have more objects than nvdspreprocess has room for
    settings.longest_side = 64;
    settings.every = 3;
    settings.polygons = true;
    std::mt19937 random(7);
    long objects = 0, foreign = 0, dropped = 0;
    {
        MaskProbe probe(settings);
        struct Waiting {
            std::unique_ptr<fake::Batch> batch;
            std::vector<Expected> expected;
        };
        const auto finish = [&](const Waiting& waiting) {
            probe.after(waiting.batch->meta());
            for (const Expected& each : waiting.expected) {
                CHECK(!std::memcmp(&each.object->rect_params, &each.rect, 4 * sizeof(float)));  // left to height
                CHECK(!mal::deepstream::find_saved(*each.object, kGie));
                const NvOSD_MaskParams& mask = each.object->mask_params;
                if (!mask.data || mask.data == each.data) continue;
                CHECK(mask.size == mask.width * mask.height * sizeof(float) && mask.threshold == 0);
                CHECK(mask.width >= 1 && mask.width <= 64 && mask.height >= 1 && mask.height <= 64);
                for (unsigned i = 0; i < mask.width * mask.height; ++i) CHECK(mask.data[i] >= 0);
            }
        };
        Queue<std::unique_ptr<Waiting>> queue;
        std::thread output_thread([&] {
            while (const auto waiting = queue.take()) finish(*waiting);
        });
        for (int number = 0; objects < wanted; ++number) {
            auto waiting = std::make_unique<Waiting>();
            waiting->batch = std::make_unique<fake::Batch>();
            Waiting& now = *waiting;
            if (random() % 40 == 0) probe.forget_tracks(random() % kSources);  // a source goes, another one comes
            if (random() % 400 == 0) probe.forget_tracks();
            for (unsigned source = 0; source < kSources; ++source) {
                if (random() % 10 == 0) continue;  // this source has no frame in the batch
                // A source that starts anew counts from 0 again.
                const unsigned wide = source == 1 ? 641 : 1920, high = source == 1 ? 363 : 1080;
                NvDsFrameMeta* frame = now.batch->add_frame(source, source == 2 ? number % 50 : number, wide, high);
                if (random() % 200 == 0) frame->batch_id = 1000;  // a frame without a surface
                for (unsigned i = random() % 8; i > 0; --i) {
                    const std::uint64_t track = random() % 3 ? random() % 12 : UNTRACKED_OBJECT_ID;
                    const int gie = random() % 9 ? 1 : 2;
                    NvDsObjectMeta* object = now.batch->add_object(
                        frame, coordinate(random, -100, 2000), coordinate(random, -100, 1100),
                        coordinate(random, -5, 300), coordinate(random, -5, 300), track, gie);
                    if (gie == 2) ++foreign;
                    if (random() % 4 == 0) {  // a mask of somebody before us
                        object->mask_params.data = static_cast<float*>(g_malloc0(4 * sizeof(float)));
                        object->mask_params.size = 16;
                        object->mask_params.width = object->mask_params.height = 2;
                    }
                    now.expected.push_back({object, object->rect_params, object->mask_params.data});
                    ++objects;
                }
            }
            probe.before(now.batch->meta(), now.batch->surface());
            std::vector<NvDsObjectMeta*> inferred;
            std::vector<fake::Output> outputs;
            const bool lost = random() % 50 == 0;  // nvinfer has dropped the batch, with a line in its log
            const auto crops = fake::crops_of(*now.batch, 1, static_cast<float>(1 + random() % 16));
            for (const fake::Crop& crop : crops) {
                if (lost || random() % 30 == 0) continue;
                fake::Output made = output(random, random() % 50);
                if (rois) {
                    inferred.push_back(crop.object);
                    outputs.push_back(std::move(made));
                } else {
                    fake::hang_on_object(now.batch->meta(), crop.object, random() % 30 ? kGie : kGie + 1, std::move(made));
                }
            }
            if (rois && !inferred.empty()) fake::hang_on_rois(now.batch->meta(), inferred, kGie, outputs);
            if (random() % 100 == 0) {  // a flush: the buffer never reaches the src pad
                ++dropped;
                continue;
            }
            queue.put(std::move(waiting));
            const MalMaskMetrics now_so_far = probe.metrics();  // as an application does, from a thread of its own
            CHECK(now_so_far.wanted >= now_so_far.masks + now_so_far.reused);
        }
        queue.put(nullptr);
        output_thread.join();
        const MalMaskMetrics got = probe.metrics();
        const guint64 accounted = got.masks + got.reused + got.misses + got.unusable;
        CHECK(got.wanted >= accounted);
        std::printf("objects %ld foreign %ld dropped_buffers %ld wanted %lu masks %lu reused %lu misses %lu unusable "
                    "%lu\n", objects, foreign, dropped, got.wanted, got.masks, got.reused, got.misses, got.unusable);
    }
    CHECK(fake::user_metas_out == 0);
    return 0;
}
