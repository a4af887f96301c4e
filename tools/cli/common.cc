#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdio>
#include <cstring>

#include "tools/cli/cli.h"

namespace ringfold::cli {

std::string own_path() {
  std::array<char, PATH_MAX> path{};
  const auto length = ::readlink("/proc/self/exe", path.data(), path.size());
  return length > 0 ? std::string(path.data(), static_cast<size_t>(length)) : "ringfold";
}

long long parse_size(std::string_view text) {
  long long value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value < 0) return -1;
  const std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  if (unit.empty() || unit == "B") return value;
  constexpr std::string_view kUnits = "KMGT";
  const auto at = kUnits.find(static_cast<char>(unit[0] & ~0x20));
  const auto rest = unit.substr(1);
  if (at == kUnits.npos || !(rest.empty() || rest == "B" || rest == "iB")) return -1;
  const int shift = 10 * (static_cast<int>(at) + 1);
  return value > (LLONG_MAX >> shift) ? -1 : value << shift;
}

std::string size_text(unsigned long long bytes) {
  constexpr std::array<const char*, 5> kUnits = {"", "K", "M", "G", "T"};
  size_t unit = 0;
  while (unit + 1 < kUnits.size() && bytes >= 1024 && bytes % 1024 == 0) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{}{}", bytes, kUnits[unit]);
}

bool write_file(const std::string& path, std::string_view text) {
  if (path == "-") {
    if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return true;
    fmt::print(stderr, "ringfold: cannot write to standard output: {}\n", std::strerror(errno));
    return false;
  }
  std::FILE* file = std::fopen(path.c_str(), "w");
  bool good = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (file != nullptr) good = std::fclose(file) == 0 && good;
  if (!good) fmt::print(stderr, "ringfold: cannot write {}: {}\n", path, std::strerror(errno));
  return good;
}

}  // namespace ringfold::cli
