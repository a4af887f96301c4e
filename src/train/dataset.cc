#include "train/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "train/idx.h"

namespace ringfold::train {
namespace {

Result<IdxArray> read_file(const std::string& dir, const std::string& name, size_t rank) {
  std::error_code error;
  for (const char* extension : {".gz", ""}) {
    const std::string path = dir + "/" + name + extension;
    if (std::filesystem::exists(path, error)) return read_idx(path, rank);
  }
  return Status(Code::kUnavailable,
                fmt::format("{}/{}.gz does not exist: install the package dataset-fashion-mnist (Debian), or "
                            "name the folder that has the files with --data",
                            dir, name));
}

Result<Images> load(const std::string& dir, const std::string& set, size_t limit) {
  auto pixels = read_file(dir, set + "-images-idx3-ubyte", 3);
  if (!pixels.ok()) return pixels.status();
  auto labels = read_file(dir, set + "-labels-idx1-ubyte", 1);
  if (!labels.ok()) return labels.status();
  const auto& dims = pixels->dims;
  if (dims[1] != kImageSide || dims[2] != kImageSide) {
    return Status(Code::kInvalid,
                  fmt::format("{}: images of {} x {}, not {} x {}", dir, dims[1], dims[2], kImageSide, kImageSide));
  }
  if (dims[0] != labels->dims[0]) {
    return Status(Code::kInvalid, fmt::format("{}: {} {} images but {} labels", dir, dims[0], set, labels->dims[0]));
  }
  if (dims[0] == 0) return Status(Code::kInvalid, fmt::format("{}: no {} images", dir, set));
  const auto bad = std::find_if(labels->elems.begin(), labels->elems.end(), [](uint8_t l) { return l >= kClasses; });
  if (bad != labels->elems.end()) {
    return Status(Code::kInvalid, fmt::format("{}: {} label {} is {}, above {}", dir, set,
                                              bad - labels->elems.begin(), *bad, kClasses - 1));
  }
  Images images{std::move(pixels->elems), std::move(labels->elems)};
  if (limit > 0 && limit < images.size()) {
    images.labels.resize(limit);
    images.pixels.resize(limit * kImageElems);
  }
  return images;
}

// Mean and deviation of all training pixels, in units of the largest value.
constexpr float kMean = 0.2860F, kDeviation = 0.3530F;

constexpr std::array<float, 256> scaled_pixels() {
  std::array<float, 256> table{};
  for (size_t i = 0; i < table.size(); ++i) table[i] = (static_cast<float>(i) / 255.0F - kMean) / kDeviation;
  return table;
}
constexpr std::array<float, 256> kScaled = scaled_pixels();

}  // namespace

void Images::fill(std::span<const uint32_t> samples, float* pixels_out, int64_t* labels_out) const {
  for (uint32_t s : samples) {
    const uint8_t* image = pixels.data() + s * kImageElems;
    pixels_out = std::transform(image, image + kImageElems, pixels_out, [](uint8_t p) { return kScaled[p]; });
    *labels_out++ = labels[s];
  }
}

Result<Dataset> load_fashion_mnist(const std::string& dir, size_t limit) {
  auto train = load(dir, "train", limit);
  if (!train.ok()) return train.status();
  auto test = load(dir, "t10k", limit);
  if (!test.ok()) return test.status();
  return Dataset{std::move(*train), std::move(*test)};
}

}  // namespace ringfold::train
