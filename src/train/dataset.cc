#include "train/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "train/digest.h"
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

// The package keeps the text in a format of its own, and has a program that prints it, one verse a line.
Result<std::string> read_bible() {
  constexpr const char* kProgram = "/usr/bin/bible";
  std::error_code error;
  if (!std::filesystem::exists(kProgram, error)) {
    return Status(
        Code::kUnavailable,
        fmt::format("{} does not exist: install the package bible-kjv (Debian), or name a file of text with "
                    "--data",
                    kProgram));
  }
  std::FILE* pipe = ::popen("/usr/bin/bible -f gen1:1-rev22:21", "re");
  if (!pipe) return Status(Code::kIo, fmt::format("cannot run {}: {}", kProgram, std::strerror(errno)));
  std::string text;
  std::array<char, 1 << 16> piece;  // NOLINT: written by fread
  for (size_t got; (got = std::fread(piece.data(), 1, piece.size(), pipe)) > 0;) text.append(piece.data(), got);
  const int status = ::pclose(pipe);
  if (status != 0 || text.empty())
    return Status(Code::kIo, fmt::format("{} failed (status {}) after {} bytes: is bible-kjv-text installed?",
                                         kProgram, status, text.size()));
  return text;
}

constexpr std::array<float, 256> scaled_pixels() {
  std::array<float, 256> table{};
  for (size_t i = 0; i < table.size(); ++i)
    table[i] = (static_cast<float>(i) / 255.0F - kPixelMean) / kPixelDeviation;
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

size_t Samples::size() const {
  return std::visit([](const auto& samples) { return samples.size(); }, kind_);
}

std::vector<int64_t> Samples::input_dims() const {
  if (const auto* text = std::get_if<Text>(&kind_)) return {static_cast<int64_t>(text->context)};
  return {1, kImageSide, kImageSide};
}

size_t Samples::targets() const {
  const auto* text = std::get_if<Text>(&kind_);
  return text ? text->context : 1;
}

void Samples::fill(std::span<const uint32_t> samples, void* inputs_out, int64_t* targets_out) const {
  if (const auto* text = std::get_if<Text>(&kind_)) {
    text->fill(samples, static_cast<int64_t*>(inputs_out), targets_out);
  } else {
    std::get<Images>(kind_).fill(samples, static_cast<float*>(inputs_out), targets_out);
  }
}

std::string Samples::digest() const {
  Sha256 hash;
  if (const auto* text = std::get_if<Text>(&kind_)) {
    hash.add(std::as_bytes(std::span(*text->bytes).subspan(text->begin, text->end - text->begin)));
  } else {
    hash.add(std::as_bytes(std::span(std::get<Images>(kind_).pixels)));
    hash.add(std::as_bytes(std::span(std::get<Images>(kind_).labels)));
  }
  return hash.hex();
}

void Text::fill(std::span<const uint32_t> samples, int64_t* bytes_out, int64_t* next_out) const {
  for (uint32_t s : samples) {
    const char* window = bytes->data() + begin + s * context;
    for (size_t i = 0; i < context; ++i) {
      *bytes_out++ = static_cast<uint8_t>(window[i]);
      *next_out++ = static_cast<uint8_t>(window[i + 1]);
    }
  }
}

Result<Dataset> load_fashion_mnist(const std::string& dir, size_t limit) {
  auto train = load(dir, "train", limit);
  if (!train.ok()) return train.status();
  auto test = load(dir, "t10k", limit);
  if (!test.ok()) return test.status();
  return Dataset{std::move(*train), std::move(*test)};
}

Result<Dataset> split_text(std::string bytes, size_t context, size_t limit) {
  const auto all = std::make_shared<const std::string>(std::move(bytes));
  const size_t cut = all->size() - all->size() / 10;
  const auto part = [&](size_t begin, size_t end) {
    Text text{all, begin, end, context};
    if (limit > 0 && text.size() > limit) text.end = begin + limit * context + 1;
    return text;
  };
  const Text train = part(0, cut), test = part(cut, all->size());
  if (train.size() == 0 || test.size() == 0) {
    return Status(Code::kInvalid,
                  fmt::format("{} bytes of text are too few: with a context of {} bytes, training and the "
                              "last tenth, for testing, need at least {}",
                              all->size(), context, 10 * (context + 1)));
  }
  return Dataset{train, test};
}

Result<Dataset> load_text(const std::string& path, size_t context, size_t limit) {
  std::string bytes;
  if (path.empty()) {
    auto bible = read_bible();
    if (!bible.ok()) return bible.status();
    bytes = std::move(*bible);
  } else {
    std::error_code error;
    std::ifstream file(path, std::ios::binary);
    if (!file || std::filesystem::is_directory(path, error)) {
      return Status(Code::kIo,
                    fmt::format("cannot read the text {}: {}", path, std::strerror(file ? EISDIR : errno)));
    }
    bytes.assign(std::istreambuf_iterator<char>(file), {});
    if (file.bad()) return Status(Code::kIo, fmt::format("cannot read the text {} to its end", path));
  }
  auto data = split_text(std::move(bytes), context, limit);
  if (data.ok()) return data;
  return Status(data.status().code(), (path.empty() ? "the Bible" : path) + ": " + data.status().message());
}

}  // namespace ringfold::train
