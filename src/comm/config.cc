#include "comm/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "base/log.h"
#include "comm/text.h"

extern char** environ;  // NOLINT: POSIX's name

namespace ringfold::comm {
namespace {

// ---- one kind of value: how it is read, written and checked; the message says what is allowed ----

Status bad(std::string_view name, std::string_view value, std::string_view allowed) {
  return {Code::kInvalid, fmt::format("{}=\"{}\" is not valid: it must be {}", name, value, allowed)};
}

struct Choice {
  std::vector<std::string_view> words;
  std::string allowed() const { return fmt::format("one of {}", join(words, ", ")); }
  bool parse(std::string_view text, std::string* out) const {
    *out = text;
    return valid(*out);
  }
  bool valid(const std::string& v) const { return std::find(words.begin(), words.end(), v) != words.end(); }
  static std::string print(const std::string& v) { return v; }
};

struct Text {
  static std::string allowed() { return "a text"; }
  static bool parse(std::string_view text, std::string* out) { return out->assign(text), true; }
  static bool valid(const std::string&) { return true; }
  static std::string print(const std::string& v) { return v; }
};

struct Words {
  static std::string allowed() { return "a list with commas"; }
  static bool parse(std::string_view text, std::vector<std::string>* out) {
    out->clear();
    while (!text.empty()) {
      auto comma = std::min(text.find(','), text.size());
      if (comma > 0) out->emplace_back(text.substr(0, comma));
      text.remove_prefix(std::min(comma + 1, text.size()));
    }
    return true;
  }
  static bool valid(const std::vector<std::string>&) { return true; }
  static std::string print(const std::vector<std::string>& v) { return fmt::format("{}", join(v, ",")); }
};

struct Switch {
  static std::string allowed() { return "1 or 0 (also on, off, true, false, yes, no)"; }
  static bool parse(std::string_view text, bool* out) {
    for (auto word : {"1", "on", "true", "yes"}) {
      if (text == word) return *out = true;
    }
    *out = false;
    return text == "0" || text == "off" || text == "false" || text == "no";
  }
  static bool valid(bool) { return true; }
  static std::string print(bool v) { return v ? "1" : "0"; }
};

struct Seconds {
  double low, high;
  std::string allowed() const { return fmt::format("seconds from {} to {}", low, high); }
  bool parse(std::string_view text, double* out) const {
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
    return error == std::errc() && end == text.data() + text.size() && valid(*out);
  }
  bool valid(double v) const { return std::isfinite(v) && v >= low && v <= high; }
  static std::string print(double v) { return fmt::format("{}", v); }
};

struct Whole {
  int64_t low, high;
  bool bytes = false;  // accepts K, M and G, and 0 for "choose for me"
  std::string allowed() const {
    return bytes ? fmt::format("0 or bytes from {} to {} (K, M and G are understood)", print(low), print(high))
                 : fmt::format("a number from {} to {}", low, high);
  }
  bool parse(std::string_view text, int64_t* out) const {
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
    if (error != std::errc()) return false;
    std::string_view unit(end, text.data() + text.size() - end);
    int shift = 0;
    if (bytes && unit.size() == 1) {
      auto at = std::string_view("kKmMgG").find(unit[0]);
      if (at == unit.npos) return false;
      shift = 10 * (1 + static_cast<int>(at) / 2);
    } else if (!unit.empty()) {
      return false;
    }
    if (*out < std::min<int64_t>(low, 0) || *out > std::numeric_limits<int64_t>::max() >> shift) return false;
    *out <<= shift;
    return valid(*out);
  }
  bool valid(int64_t v) const { return (bytes && v == 0) || (v >= low && v <= high); }
  std::string print(int64_t v) const {
    if (!bytes || v == 0 || v % 1024 != 0) return fmt::format("{}", v);
    int unit = 0;
    for (; unit < 3 && v % 1024 == 0; ++unit) v /= 1024;
    return fmt::format("{}{}", v, std::array{"", "K", "M", "G"}[unit]);
  }
};

// ---- the table of settings ----

template <typename C, typename Visit>
void for_each_setting(C& c, const Visit& visit) {
  constexpr int64_t kKi = 1024, kMi = kKi * kKi, kGi = kKi * kMi;
  visit("RINGFOLD_TRANSPORT", c.transport, Choice{{"auto", "shm", "verbs", "tcp", "ucx", "loopback"}},
        "how bytes move between ranks");
  visit("RINGFOLD_ALGORITHM", c.algorithm, Text{}, "algorithm, or auto to let the tuner choose");
  visit("RINGFOLD_CODEC", c.codec, Text{},
        "encoding of f32 sums on links: none, int8, int4, ..., auto: only where it is faster");
  visit("RINGFOLD_TIMEOUT", c.timeout, Seconds{0.001, 1e9}, "seconds after which a call gives up");
  visit("RINGFOLD_KEY_FILE", c.key_file, Text{}, "file with the key that all ranks share");
  visit("RINGFOLD_INTERFACE", c.interfaces, Words{}, "interface names, addresses or CIDR blocks to use");
  visit("RINGFOLD_LOG", c.log_level, Choice{{"trace", "debug", "info", "warn", "error", "off"}}, "log level");
  visit("RINGFOLD_DETERMINISTIC", c.deterministic, Switch{}, "same bits whatever the size, algorithm and transport");
  visit("RINGFOLD_PROGRESS", c.progress, Choice{{"auto", "on", "off"}}, "background progress thread");
  visit("RINGFOLD_TCP_STREAMS", c.tcp_streams, Whole{1, 64}, "TCP connections per peer");
  visit("RINGFOLD_RDMA_DEVICE", c.rdma_devices, Words{}, "RDMA devices to use, as NAME or NAME:PORT; empty: all");
  visit("RINGFOLD_RDMA_GID", c.rdma_gid, Whole{-1, 1023}, "index of the GID; -1: chosen by what reaches the peer");
  visit("RINGFOLD_RDMA_RAILS", c.rdma_rails, Whole{1, 4}, "RDMA ports over which the traffic with a peer is spread");
  visit("RINGFOLD_RDMA_TRAFFIC_CLASS", c.rdma_traffic_class, Whole{0, 255}, "traffic class of RoCE packets");
  visit("RINGFOLD_RDMA_SERVICE_LEVEL", c.rdma_service_level, Whole{0, 15}, "service level of InfiniBand packets");
  visit("RINGFOLD_RDMA_ACK_TIMEOUT", c.rdma_ack_timeout, Whole{1, 31},
        "an RDMA packet without an answer is sent again after 4.096 us times 2 to this power");
  visit("RINGFOLD_RDMA_RETRIES", c.rdma_retries, Whole{1, 7}, "how often, before the peer is lost");
  visit("RINGFOLD_TILE", c.tile_bytes, Whole{256, kGi, true}, "bytes of a tile; 0: chosen by the planner");
  visit("RINGFOLD_SLOT", c.slot_bytes, Whole{4 * kKi, kGi, true}, "bytes of a slot; 0: chosen by the transport");
  visit("RINGFOLD_SLOTS", c.slots, Whole{0, 1024}, "slots of a link; 0: chosen by the transport");
  visit("RINGFOLD_MESSAGE_BUFFER", c.message_buffer, Whole{64 * kKi, 64 * kGi, true},
        "bytes of messages kept per peer until somebody receives them");
  visit("RINGFOLD_CACHE_DIR", c.cache_dir, Text{}, "where the tuner keeps what it measured");
  visit("RINGFOLD_LISTEN_ANY", c.listen_any, Switch{}, "listen on the wildcard address instead of chosen ones");
  visit("RINGFOLD_CUDA", c.cuda, Text{}, "CUDA driver: auto for libcuda.so.1, off, or the path of a library");
  visit("RINGFOLD_NVLINK", c.nvlink, Choice{{"auto", "copies", "off"}},
        "collectives from GPU to GPU on one host; copies: without kernels that wait; off, on all ranks: through the "
        "host");
  visit(
      "RINGFOLD_MULTICAST", c.multicast, Choice{{"auto", "on", "off"}},
      "sums in the switch between GPUs (NVLS), in an order of its own; auto: from 4 ranks on; the same on all ranks");
  visit("RINGFOLD_GPU_DIRECT", c.gpu_direct, Choice{{"auto", "off"}},
        "collectives that only move bytes from GPU to GPU by RDMA; off, on all ranks: through the host");
  visit("RINGFOLD_STAGE", c.stage_bytes, Whole{4 * kKi, kGi, true},
        "bytes of a piece of a call on device memory, the same on all ranks; 0: 2M");
  visit("RINGFOLD_LAUNCHER", c.launcher,
        Choice{{"auto", "ringfold", "torchrun", "slurm", "openmpi", "mpich", "pmix", "kubernetes", "none"}},
        "whose variables give rank and size");
}

// Variables of `ringfold run` (launch.cc reads them).
constexpr std::array<std::string_view, 8> kLaunchNames = {
    "RINGFOLD_SERVICE",    "RINGFOLD_RANK",       "RINGFOLD_SIZE",      "RINGFOLD_LOCAL_RANK",
    "RINGFOLD_LOCAL_SIZE", "RINGFOLD_RENDEZVOUS", "RINGFOLD_HOST_NAME", "RINGFOLD_RESTARTED"};

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      size_t replace = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replace});
    }
  }
  return row.back();
}

void report_unknown(const Environment& environment) {
  std::vector<std::string_view> known(kLaunchNames.begin(), kLaunchNames.end());
  Config config;
  for_each_setting(config,
                   [&](std::string_view name, auto&, const auto&, std::string_view) { known.push_back(name); });
  for (auto it = environment.lower_bound("RINGFOLD_"); it != environment.end(); ++it) {
    std::string_view name = it->first;
    if (!name.starts_with("RINGFOLD_")) break;
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    auto nearest = *std::min_element(known.begin(), known.end(),
                                     [&](auto a, auto b) { return edit_distance(a, name) < edit_distance(b, name); });
    log::info("{} is not a setting of Ringfold and is ignored; the nearest is {}", name, nearest);
  }
}

}  // namespace

Environment process_environment() {
  Environment result;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    std::string_view text(*entry);
    if (auto at = text.find('='); at != text.npos) result.emplace(text.substr(0, at), text.substr(at + 1));
  }
  return result;
}

std::string_view lookup(const Environment& environment, std::string_view name) {
  auto it = environment.find(name);
  return it == environment.end() ? std::string_view() : std::string_view(it->second);
}

std::string_view name_of(Source source) {
  constexpr std::array<std::string_view, 3> kNames = {"default", "environment", "caller"};
  return kNames[static_cast<size_t>(source)];
}

Result<Config> Config::from_environment(const Environment& environment) {
  Config config;
  Status status;
  for_each_setting(config, [&](std::string_view name, auto& setting, const auto& kind, std::string_view) {
    auto text = lookup(environment, name);
    if (text.empty() || !status.ok()) return;
    auto value = setting.value();
    if (!kind.parse(text, &value)) {
      status = bad(name, text, kind.allowed());
    } else {
      setting.set(std::move(value), Source::kEnvironment);
    }
  });
  if (!status.ok()) return status;
  report_unknown(environment);
  return config;
}

std::vector<Config::Row> Config::rows() const {
  std::vector<Row> result;
  for_each_setting(*this,
                   [&](std::string_view name, const auto& setting, const auto& kind, std::string_view meaning) {
                     result.push_back({std::string(name), kind.print(setting.value()),
                                       std::string(name_of(setting.source())), std::string(meaning)});
                   });
  return result;
}

Status Config::check() const {
  Status status;
  for_each_setting(*this, [&](std::string_view name, const auto& setting, const auto& kind, std::string_view) {
    if (status.ok() && !kind.valid(setting.value())) status = bad(name, kind.print(setting.value()), kind.allowed());
  });
  return status;
}

}  // namespace ringfold::comm
