#include "comm/tuning.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <cstring>

#include "algo/algo.h"
#include "base/log.h"
#include "kernels/reducer.h"
#include "model/probe.h"
#include "ringfold/version.h"

namespace ringfold::comm {
namespace {

model::Candidates candidates(const std::vector<int>& host_of) {
  const int n = static_cast<int>(host_of.size());
  return {[](Collective c) { return algo::algorithms_for(c); },
          [host_of, n](Collective c, std::string_view algorithm, int lanes) {
            return algo::make(algorithm, {c, n, 0}, {lanes, host_of});
          },
          [](Collective c, std::string_view algorithm) { return algo::is_canonical(c, algorithm); }};
}

}  // namespace

Status Choices::check(const std::string& override_text) {
  auto rules = model::parse_override(override_text, [](Collective c) { return algo::algorithms_for(c); });
  return rules.ok() ? Status() : rules.status();
}

void Choices::set(model::ClusterModel cluster, std::string override_text, uint64_t tile_bytes, int slots) {
  std::lock_guard lock(mutex_);
  cluster_ = std::move(cluster);
  options_.override_text = std::move(override_text);
  options_.cutting.tile_bytes = tile_bytes;
  options_.cutting.slots = slots;
  tuners_.clear();
}

const Result<model::Tuner>& Choices::tuner(Collective collective) {
  auto it = tuners_.find(collective);
  if (it == tuners_.end()) {
    auto options = options_;
    options.collectives = {collective};
    it = tuners_.emplace(collective, model::Tuner::build(cluster_, candidates(cluster_.host_of), options)).first;
    if (!it->second.ok()) log::warn("no tuning for {}: {}", name_of(collective), it->second.status().message());
  }
  return it->second;
}

plan::Choice Choices::choose(Collective collective, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  if (cluster_.ranks() > 1) {
    if (const auto& t = tuner(collective); t.ok()) {
      const model::Choice c = t->choose(collective, bytes);
      if (!c.algorithm.empty()) return {c.algorithm, c.lanes, c.reason};
    }
  }
  return plan::simplest_choice(collective);
}

std::string Choices::ranges(Collective collective) {
  std::lock_guard lock(mutex_);
  if (cluster_.ranks() < 2) return "";
  const auto& t = tuner(collective);
  return t.ok() ? t->to_string() : t.status().to_string() + "\n";
}

std::string Choices::figures() {
  std::lock_guard lock(mutex_);
  if (cluster_.ranks() < 2) return "one rank: nothing to choose\n";
  return (cluster_.measured ? "" : "default figures; `ringfold tune` measures\n") + cluster_.to_string();
}

model::ClusterModel Choices::cluster() {
  std::lock_guard lock(mutex_);
  return cluster_;
}

model::ClusterModel cluster_of(const Session& session, const std::vector<int>& members, const Wiring& wiring) {
  std::string same, other;
  for (size_t m = 0; m < members.size(); ++m) {
    if (members[m] == session.control->rank() || wiring.transports.empty()) continue;
    auto name = std::string(wiring.transports[static_cast<size_t>(wiring.route[m])]->name());
    const bool here = wiring.host_of[m] == wiring.host_of[wiring.me];
    (here ? same : other) = name;
  }
  return model::default_cluster(wiring.host_of, wiring.cores, same.empty() ? "shm" : same,
                                other.empty() ? "tcp" : other);
}

model::CacheKey cache_key(const Session& session, const std::vector<int>& members,
                          const model::ClusterModel& cluster) {
  model::CacheKey key;
  key.hosts.resize(static_cast<size_t>(cluster.hosts()));
  for (size_t m = 0; m < members.size(); ++m) {
    auto& host = key.hosts[static_cast<size_t>(cluster.host_of[m])];
    host.name = session.control->peer(members[m]).host;
    host.cores = cluster.cores[static_cast<size_t>(cluster.host_of[m])];
    ++host.ranks;
  }
  for (const auto& t : cluster.transports) key.transports.push_back(t);
  key.version = RINGFOLD_VERSION;
  return key;
}

std::string cache_directory(const Config& config) {
  if (!config.cache_dir.value().empty()) return config.cache_dir;
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && *xdg != '\0')
    return std::string(xdg) + "/ringfold";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0')
    return std::string(home) + "/.cache/ringfold";
  return "";
}

namespace {

constexpr int64_t kCommand = -0x7261, kData = -0x7262, kAnswer = -0x7263;  // tags

struct Command {
  enum class Kind : uint64_t { kStop, kRoundTrip, kStream } kind = Kind::kStop;
  uint64_t bytes = 0;
  uint64_t count = 0;
};

double seconds_since(base::TimePoint start) { return base::seconds_of(base::Clock::now() - start); }

class MessageProber final : public model::Prober {
 public:
  explicit MessageProber(Communicator& comm) : comm_(comm) {}

  Result<double> round_trip(int peer, uint64_t bytes) override {
    RINGFOLD_TRY(order(peer, {Command::Kind::kRoundTrip, bytes, 1}));
    const auto start = base::Clock::now();
    RINGFOLD_TRY(comm_.send(data_.data(), bytes, DataType::kU8, peer, kData).wait());
    RINGFOLD_TRY(comm_.recv(data_.data(), bytes, DataType::kU8, peer, kAnswer).wait());
    return seconds_since(start);
  }
  Result<double> stream(int peer, uint64_t bytes, int count) override {
    RINGFOLD_TRY(order(peer, {Command::Kind::kStream, bytes, static_cast<uint64_t>(count)}));
    const auto start = base::Clock::now();
    for (int i = 0; i < count; ++i) RINGFOLD_TRY(comm_.send(data_.data(), bytes, DataType::kU8, peer, kData).wait());
    RINGFOLD_TRY(comm_.recv(nullptr, 0, DataType::kU8, peer, kAnswer).wait());
    return seconds_since(start);
  }
  Result<double> reduce(uint64_t bytes) override {
    const auto reducer = kernels::find_cpu_reducer(DataType::kF32, ReduceKind::kSum);
    std::byte* at = next(2 * bytes);
    const void* in[] = {at, at + bytes};
    const auto start = base::Clock::now();
    reducer.fold(at, in, 2, bytes / 4, {});
    return seconds_since(start);
  }
  Result<double> copy(uint64_t bytes) override {
    std::byte* at = next(2 * bytes);
    const auto start = base::Clock::now();
    std::memcpy(at, at + bytes, bytes);
    return seconds_since(start);
  }

  Status stop() {
    for (int peer = 1; peer < comm_.size(); ++peer) RINGFOLD_TRY(order(peer, {}));
    return {};
  }

 private:
  void grow(uint64_t bytes) {
    if (data_.size() < bytes) data_.resize(bytes);
  }
  // Memory that was not touched lately: a gradient is not in the cache when its all_reduce begins.
  std::byte* next(uint64_t bytes) {
    grow(std::max<uint64_t>(kCold, 2 * bytes));
    if (at_ + bytes > data_.size()) at_ = 0;
    return data_.data() + std::exchange(at_, at_ + bytes);
  }
  Status order(int peer, const Command& command) {
    grow(command.bytes);
    RINGFOLD_TRY(comm_.send(&command, sizeof command, DataType::kU8, peer, kCommand).wait());
    // The peer answers when it is ready, so that its waking up is not measured.
    return comm_.recv(nullptr, 0, DataType::kU8, peer, kCommand).wait();
  }

  static constexpr uint64_t kCold = 64 << 20;
  Communicator& comm_;
  std::vector<std::byte> data_;
  uint64_t at_ = 0;
};

Status serve(Communicator& comm) {
  std::vector<std::byte> data;
  for (;;) {
    Command command;
    RINGFOLD_TRY(comm.recv(&command, sizeof command, DataType::kU8, 0, kCommand).wait());
    data.resize(std::max<size_t>(data.size(), command.bytes));
    RINGFOLD_TRY(comm.send(nullptr, 0, DataType::kU8, 0, kCommand).wait());
    if (command.kind == Command::Kind::kStop) return {};
    for (uint64_t i = 0; i < command.count; ++i) {
      RINGFOLD_TRY(comm.recv(data.data(), command.bytes, DataType::kU8, 0, kData).wait());
    }
    const bool back = command.kind == Command::Kind::kRoundTrip;
    RINGFOLD_TRY(comm.send(data.data(), back ? command.bytes : 0, DataType::kU8, 0, kAnswer).wait());
  }
}

}  // namespace

Result<model::ClusterModel> measure(Communicator& comm, const model::ClusterModel& known, double budget_s) {
  if (comm.size() < 2) return known;
  if (comm.rank() != 0) {
    RINGFOLD_TRY(serve(comm));
    return known;
  }
  MessageProber prober(comm);
  auto found = model::probe(prober, known, 0, budget_s);
  RINGFOLD_TRY(prober.stop());
  return found;
}

}  // namespace ringfold::comm
