#include "model/cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>
#include <tuple>

#include "base/log.h"

namespace ringfold::model {
namespace {

constexpr uintmax_t kMostBytes = 4 << 20;

uint64_t hash_of(std::string_view text) {  // FNV-1a: against accidents, not against intent
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

// One line. Names are quoted, so no name can look like a part of the line.
std::string text_of(CacheKey key) {
  std::sort(key.hosts.begin(), key.hosts.end(), [](const auto& a, const auto& b) {
    return std::tie(a.name, a.ranks, a.cores) < std::tie(b.name, b.ranks, b.cores);
  });
  std::string text = fmt::format("ringfold {:?}", key.version);
  for (const auto& transport : key.transports) text += fmt::format(", transport {:?}", transport);
  for (const auto& host : key.hosts) text += fmt::format(", host {:?} {}/{}", host.name, host.ranks, host.cores);
  return text;
}

// The file: "ringfold-figures 1 CHECKSUM", a line with the key, and the model's text; the checksum is of what follows
// its line.
std::string file_text(const CacheKey& key, std::string_view model) {
  const std::string body = fmt::format("{}\n{}\n", text_of(key), model);
  return fmt::format("ringfold-figures 1 {:016x}\n{}", hash_of(body), body);
}

// The model's text in a file, if the file is whole and of this key.
std::optional<std::string_view> model_text(const CacheKey& key, std::string_view file) {
  const size_t head = file.find('\n');
  const size_t line = head == std::string_view::npos ? head : file.find('\n', head + 1);
  if (line == std::string_view::npos || file.back() != '\n' || line + 1 == file.size()) return std::nullopt;
  const std::string_view model = file.substr(line + 1, file.size() - line - 2);
  if (file != file_text(key, model)) return std::nullopt;
  return model;
}

std::string path_of(const std::string& directory, const CacheKey& key) {
  return (std::filesystem::path(directory) / file_name(key)).string();
}

Status write_all(int file, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(file, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return {Code::kIo, std::strerror(errno)};
    text.remove_prefix(static_cast<size_t>(written));
  }
  if (::fsync(file) != 0) return {Code::kIo, std::strerror(errno)};
  return {};
}

}  // namespace

std::string file_name(const CacheKey& key) { return fmt::format("figures-{:016x}.txt", hash_of(text_of(key))); }

bool load_figures(const std::string& directory, const CacheKey& key, ClusterModel& cluster) {
  const std::string path = path_of(directory, key);
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return false;
  const uintmax_t bytes = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  std::string text(error || bytes > kMostBytes ? 0 : bytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  const auto model = model_text(key, text);
  if (!model) {
    log::info("{} is damaged or of another version, and ignored: links count as not measured", path);
    return false;
  }
  const auto saved = cluster_from_text(*model);
  if (!saved.ok()) {
    log::info("{} is ignored: {}", path, saved.status().message());
    return false;
  }
  std::copy(std::begin(saved->links), std::end(saved->links), cluster.links);
  cluster.node = saved->node;
  cluster.codecs = saved->codecs;
  cluster.measured = saved->measured;
  return true;
}

Status save_figures(const std::string& directory, const CacheKey& key, const ClusterModel& cluster) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  const std::string path = path_of(directory, key);
  std::string temporary = path + ".XXXXXX";
  const int file = ::mkostemp(temporary.data(), O_CLOEXEC);
  if (file < 0) return {Code::kIo, fmt::format("cannot write to {}: {}", directory, std::strerror(errno))};
  Status status = write_all(file, file_text(key, to_text(cluster)));
  if (::close(file) != 0 && status.ok()) status = {Code::kIo, std::strerror(errno)};
  if (status.ok() && std::rename(temporary.c_str(), path.c_str()) != 0) status = {Code::kIo, std::strerror(errno)};
  if (status.ok()) return {};
  ::unlink(temporary.c_str());
  return {Code::kIo, fmt::format("cannot write {}: {}", path, status.message())};
}

}  // namespace ringfold::model
