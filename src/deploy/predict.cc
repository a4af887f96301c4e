#include "deploy/predict.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "train/idx.h"

namespace ringfold::deploy {
namespace {

using LineJson = nlohmann::ordered_json;

Result<std::string> read_all(const std::string& path) {
  std::error_code error;
  if (path == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path, error))
    return Status(Code::kIo, fmt::format("cannot read {}: {}", path, std::strerror(file ? EISDIR : errno)));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// "P5", width, height, largest value, one white space, the values. Comments run from # to the end of a line.
Result<std::vector<float>> read_pgm(const std::string& path, const std::string& bytes) {
  const auto bad = [&](const std::string& why) {
    return Status(Code::kInvalid, fmt::format("{} is no image that fits: {}", path, why));
  };
  size_t at = 2;
  const auto number = [&]() -> long {
    while (at < bytes.size() && (std::isspace(static_cast<unsigned char>(bytes[at])) || bytes[at] == '#')) {
      if (bytes[at] == '#') at = std::min(bytes.find('\n', at), bytes.size() - 1);
      ++at;
    }
    long value = -1;
    for (; at < bytes.size() && std::isdigit(static_cast<unsigned char>(bytes[at])) && value < 100000; ++at)
      value = std::max(value, 0L) * 10 + (bytes[at] - '0');
    return value;
  };
  const long width = number(), height = number(), most = number();
  if (width != static_cast<long>(train::kImageSide) || height != width)
    return bad(
        fmt::format("it has {} x {} pixels, not {} x {}", width, height, train::kImageSide, train::kImageSide));
  if (most < 1 || most > 255) return bad(fmt::format("its largest value is {}, not between 1 and 255", most));
  if (bytes.size() != at + 1 + train::kImageElems)
    return bad(
        fmt::format("{} bytes of pixels, not {}", bytes.size() - std::min(bytes.size(), at + 1), train::kImageElems));
  std::vector<float> pixels;
  for (const char c : bytes.substr(at + 1)) {
    if (static_cast<uint8_t>(c) > most) return bad("a pixel is above its largest value");
    pixels.push_back(static_cast<float>(static_cast<uint8_t>(c)) * 255.0F / static_cast<float>(most));
  }
  return pixels;
}

Result<std::vector<float>> read_images(const std::string& path) {
  char magic[2] = {};
  std::ifstream(path, std::ios::binary).read(magic, 2);
  if (std::string_view(magic, 2) == "P5") {
    auto bytes = read_all(path);
    if (!bytes.ok()) return bytes.status();
    return read_pgm(path, *bytes);
  }
  auto idx = train::read_idx(path, 3);
  if (!idx.ok()) return idx.status();
  if (idx->dims[1] != train::kImageSide || idx->dims[2] != train::kImageSide || idx->dims[0] == 0) {
    return Status(Code::kInvalid,
                  fmt::format("{} holds {} images of {} x {}, not some of {} x {}", path, idx->dims[0], idx->dims[1],
                              idx->dims[2], train::kImageSide, train::kImageSide));
  }
  return std::vector<float>(idx->elems.begin(), idx->elems.end());
}

Status predict_images(const train::Predictor& predictor, const std::string& path, bool json) {
  const auto pixels = read_images(path);
  if (!pixels.ok()) return pixels.status();
  const auto all = predictor.classify(*pixels);
  if (!all.ok()) return all.status();
  for (size_t i = 0; i < all->size(); ++i) {
    const auto& p = (*all)[i];
    const auto best = static_cast<int>(std::max_element(p.begin(), p.end()) - p.begin());
    const char* name = train::class_name(best);
    if (json) {
      fmt::print(
          "{}\n",
          LineJson{{"file", path}, {"index", i}, {"class", best}, {"name", name}, {"probabilities", p}}.dump());
    } else {
      fmt::print("{}{}: {} ({:.1f} %)\n", path, all->size() > 1 ? fmt::format("[{}]", i) : "", name,
                 100 * p[static_cast<size_t>(best)]);
    }
  }
  return {};
}

Status predict_text(const train::Predictor& predictor, const std::string& path, const PredictOptions& options) {
  const auto bytes = read_all(path);
  if (!bytes.ok()) return bytes.status();
  const auto score = predictor.score(*bytes);
  if (!score.ok()) return Status(score.status().code(), path + ": " + score.status().message());
  std::string more;
  if (options.text.bytes > 0) {
    auto made = predictor.go_on(*bytes, options.text);
    if (!made.ok()) return made.status();
    more = std::move(*made);
  }
  if (options.json) {
    const LineJson line = {{"file", path}, {"bytes", bytes->size()}, {"bits_per_byte", *score}, {"text", more}};
    fmt::print("{}\n", line.dump(-1, ' ', false, LineJson::error_handler_t::replace));
    return {};
  }
  fmt::print("{}: {:.4f} bits per byte\n", path, *score);
  if (!more.empty()) {
    std::fwrite(more.data(), 1, more.size(), stdout);
    std::fputc('\n', stdout);
  }
  return {};
}

}  // namespace

Status predict_files(const train::Predictor& predictor, const PredictOptions& options) {
  for (const std::string& path : options.files) {
    RINGFOLD_TRY(predictor.about().model.is_text() ? predict_text(predictor, path, options)
                                                   : predict_images(predictor, path, options.json));
  }
  return std::fflush(stdout) == 0 ? Status() : Status(Code::kIo, "cannot write the predictions");
}

}  // namespace ringfold::deploy
