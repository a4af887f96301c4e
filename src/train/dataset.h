// What models are trained on. Samples are asked for by number, in any order, and written into a batch.
//   Fashion-MNIST: 60,000 + 10,000 grey images of 28 x 28, in ten classes.
//   Text: windows of bytes; each byte is to be predicted from those before it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::train {

inline constexpr size_t kImageSide = 28;
inline constexpr size_t kImageElems = kImageSide * kImageSide;
inline constexpr int kClasses = 10;
inline constexpr int kByteValues = 256;

// All these are immutable once made; any thread may read.
struct Images {
  std::vector<uint8_t> pixels;  // size() images, row by row
  std::vector<uint8_t> labels;  // below kClasses
  size_t size() const { return labels.size(); }
  // Writes the samples' pixels, scaled to mean 0 and variance 1 over the training set, and their labels.
  void fill(std::span<const uint32_t> samples, float* pixels_out, int64_t* labels_out) const;
};
// What a grey value becomes: (value / 255 - kPixelMean) / kPixelDeviation.
inline constexpr float kPixelMean = 0.2860F, kPixelDeviation = 0.3530F;

struct Text {
  std::shared_ptr<const std::string> bytes;
  size_t begin = 0, end = 0;  // the part of `bytes` that this is
  size_t context = 128;
  // Windows lie one after another; what is left at the end and would not fill one is not used.
  size_t size() const { return end - begin > context ? (end - begin - 1) / context : 0; }
  // Of each sample `context` bytes, and as targets the bytes that follow each of them.
  void fill(std::span<const uint32_t> samples, int64_t* bytes_out, int64_t* next_out) const;
};

// Either kind of samples.
class Samples {
 public:
  Samples(Images images) : kind_(std::move(images)) {}  // NOLINT
  Samples(Text text) : kind_(std::move(text)) {}        // NOLINT
  size_t size() const;
  bool is_text() const { return std::holds_alternative<Text>(kind_); }
  // Of one sample: the dimensions of the input (f32 of an image, int64 of text), and the number of targets.
  std::vector<int64_t> input_dims() const;
  size_t targets() const;
  // `inputs_out`: float or int64_t, as above.
  void fill(std::span<const uint32_t> samples, void* inputs_out, int64_t* targets_out) const;
  // SHA-256 over what the samples are made of, in hexadecimal.
  std::string digest() const;

 private:
  std::variant<Images, Text> kind_;
};

struct Dataset {
  Samples train;
  Samples test;
};

// From the folder `dir`, compressed or not. `limit` > 0: only the first so many of either set. A missing file's
// message says which package has it and how another folder is named.
Result<Dataset> load_fashion_mnist(const std::string& dir, size_t limit = 0);

// The file `path`, or where that is empty the King James Bible (4.4 MB), from Debian's package bible-kjv. The last
// tenth is for testing. `limit` > 0: only the first so many windows of either part. kInvalid when either part has no
// window.
Result<Dataset> load_text(const std::string& path, size_t context, size_t limit = 0);
Result<Dataset> split_text(std::string bytes, size_t context, size_t limit = 0);

}  // namespace ringfold::train
