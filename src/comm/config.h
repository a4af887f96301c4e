// Every setting of Ringfold in one structure, and the one place where environment variables become settings.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::comm {

// Environment variables as a value, so that tests can pass their own.
using Environment = std::map<std::string, std::string, std::less<>>;
Environment process_environment();
// "" when the variable is not set: an empty variable counts as unset everywhere.
std::string_view lookup(const Environment& environment, std::string_view name);

enum class Source : uint8_t { kDefault, kEnvironment, kCaller };
std::string_view name_of(Source source);

// A value that knows who chose it. Assigning to it is the caller's choice, which wins over the environment's.
template <typename T>
class Setting {
 public:
  Setting(T value) : value_(std::move(value)) {}  // NOLINT: a value is a setting
  Setting& operator=(T value) {
    set(std::move(value), Source::kCaller);
    return *this;
  }
  void set(T value, Source source) {
    value_ = std::move(value);
    source_ = source;
  }
  const T& value() const { return value_; }
  operator const T&() const { return value_; }  // NOLINT
  Source source() const { return source_; }

 private:
  T value_;
  Source source_ = Source::kDefault;
};

struct Config {
  Setting<std::string> transport{"auto"};
  Setting<std::string> algorithm{"auto"};            // the planner checks the rest of the text
  Setting<std::string> codec{"none"};                // of f32 sums; parse_codec() checks it
  Setting<double> timeout{300.0};                    // seconds; every other time limit is derived from it
  Setting<std::string> key_file{""};                 // "": the user's own, see load_key()
  Setting<std::vector<std::string>> interfaces{{}};  // names, addresses or CIDR blocks; empty: probe
  Setting<std::string> log_level{"warn"};
  Setting<bool> deterministic{false};
  Setting<std::string> progress{"auto"};               // background progress thread: auto, on, off
  Setting<int64_t> tcp_streams{1};                     // connections per peer and lane
  Setting<std::vector<std::string>> rdma_devices{{}};  // "mlx5_0" or "mlx5_0:1", in order of preference; empty: all
  Setting<int64_t> rdma_gid{-1};                       // index in the port's table; -1: chosen by what reaches a peer
  Setting<int64_t> rdma_rails{1};                      // ports over which a link's puts take turns
  Setting<int64_t> rdma_traffic_class{0};
  Setting<int64_t> rdma_service_level{0};
  Setting<int64_t> rdma_ack_timeout{16};  // 4.096 us * 2^16
  Setting<int64_t> rdma_retries{7};
  Setting<int64_t> tile_bytes{0};             // 0: the planner chooses
  Setting<int64_t> slot_bytes{0};             // 0: the transport chooses
  Setting<int64_t> slots{0};                  // 0: the transport chooses
  Setting<int64_t> message_buffer{64 << 20};  // bytes of unexpected messages kept per peer
  Setting<std::string> cache_dir{""};         // tuner results; "": $XDG_CACHE_HOME/ringfold
  Setting<bool> listen_any{false};            // listen on the wildcard address
  Setting<std::string> cuda{"auto"};          // the driver's library, or off; the device layer reads it itself
  Setting<std::string> nvlink{"auto"};        // from GPU to GPU on one host: auto, copies, off
  Setting<std::string> multicast{"auto"};     // sums in the switch between GPUs: auto, on, off
  Setting<std::string> gpu_direct{"auto"};    // from GPU to GPU by RDMA: auto, off
  Setting<int64_t> stage_bytes{0};            // of a piece of a call on device memory; 0: 2 MiB
  Setting<std::string> launcher{"auto"};      // whose variables to believe, see launch.h

  // The defaults, with what `environment` says. kInvalid names the variable, the value and what is allowed. A
  // RINGFOLD_* variable that nobody knows is worth an info line with the nearest name.
  static Result<Config> from_environment(const Environment& environment);

  struct Row {
    std::string name, value, source, meaning;
    std::string to_string() const { return name + "=" + value + " (" + source + ")"; }
  };
  // All settings in a fixed order, for `ringfold info` and `explain`.
  std::vector<Row> rows() const;
  // Refuses what a caller may have set and the environment could not have.
  Status check() const;
};

}  // namespace ringfold::comm
