// Fashion-MNIST: 60,000 + 10,000 grey images of 28 x 28, in ten classes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::train {

inline constexpr size_t kImageSide = 28;
inline constexpr size_t kImageElems = kImageSide * kImageSide;
inline constexpr int kClasses = 10;

// Immutable once loaded; any thread may read.
struct Images {
  std::vector<uint8_t> pixels;  // size() images, row by row
  std::vector<uint8_t> labels;  // below kClasses
  size_t size() const { return labels.size(); }
  // Writes the samples' pixels, scaled to mean 0 and variance 1 over the training set, and their labels.
  void fill(std::span<const uint32_t> samples, float* pixels_out, int64_t* labels_out) const;
};

struct Dataset {
  Images train;
  Images test;
};

// From the folder `dir`, compressed or not. `limit` > 0: only the first so many of either set. A missing file's
// message says which package has it and how another folder is named.
Result<Dataset> load_fashion_mnist(const std::string& dir, size_t limit = 0);

}  // namespace ringfold::train
