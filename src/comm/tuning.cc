#include "comm/tuning.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "algo/algo.h"
#include "base/log.h"
#include "kernels/codec.h"
#include "kernels/reducer.h"
#include "model/coding.h"
#include "model/probe.h"
#include "ringfold/version.h"

namespace ringfold::comm {
namespace {

model::Candidates candidates(const std::vector<int>& host_of, bool coded) {
  const int n = static_cast<int>(host_of.size());
  return {[host_of, coded](Collective c) {
            return coded ? plan::algorithms_for_codecs(c, host_of) : algo::algorithms_for(c);
          },
          [host_of, coded, n](Collective c, std::string_view algorithm, int lanes) {
            return algo::make(algorithm, {c, n, 0}, {lanes, host_of, coded});
          },
          [](Collective c, std::string_view algorithm) { return algo::is_canonical(c, algorithm); }};
}

// What a table for a call of `bytes` answers for. Playing gigabytes takes most of the time of a table for all sizes,
// so who calls with less does not wait for that. (16 ranks on 2 cores of an Intel Xeon, all_reduce: 0.5 s for all
// sizes.)
uint64_t most_of_table(uint64_t bytes) {
  for (const uint64_t most : {(1ULL << 20) - 1, (32ULL << 20) - 1}) {
    if (bytes <= most) return most;
  }
  return model::kNoLimit;
}

// A codec must win by more than the model errs by in the middle, or the plain way is taken.
constexpr double kClearly = 0.95;

// A neighbour copies one tile of a broadcast out of its slot while the next is copied into another, as with messages
// (shm's RingLink::piece). (Intel Xeon, ordinary memory just written: 8 KiB 1.55 us instead of 1.90 in one tile, 32
// KiB 3.3 instead of 5.4, 256 KiB 16.9 instead of 21; from 1 MiB on there is nothing in it. What is read in place, as
// a sender alone can know, takes 0.58 us instead of 0.43 for 8 KiB, 1.0 to 1.1 times from 32 KiB on.)
uint64_t tile_to_neighbour(uint64_t bytes) {
  if (bytes < 8 << 10 || bytes >= 1 << 20) return ~uint64_t{0};
  return bytes <= 16 << 10 ? 4 << 10 : 16 << 10;
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

std::string Choices::wanted(Collective collective, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  const auto known = [](Collective c) { return algo::algorithms_for(c); };
  std::string found;
  auto rules = model::parse_override(options_.override_text, known);
  if (!rules.ok()) return found;
  for (const model::Rule& rule : *rules) {
    const auto names = known(collective);
    const bool has = rule.collective ? *rule.collective == collective
                                     : std::find(names.begin(), names.end(), rule.algorithm) != names.end();
    if (has && rule.from <= bytes && bytes < rule.to) found = rule.algorithm;
  }
  return found == model::kAuto ? "" : found;
}

const Result<model::Tuner>& Choices::tuner(Collective collective, const Codec& codec, uint64_t bytes) {
  const std::tuple key(collective, to_string(codec), most_of_table(bytes));
  auto it = tuners_.find(key);
  if (it == tuners_.end()) {
    auto options = options_;
    options.collectives = {collective};
    options.most_bytes = std::get<2>(key);
    auto cluster = cluster_;
    if (codec) {
      options.override_text.clear();  // it may ask for what codecs do not know
      cluster = model::with_codec(cluster_, codec, collective);
    }
    const auto from = candidates(cluster_.host_of, static_cast<bool>(codec));
    it = tuners_.emplace(key, model::Tuner::build(cluster, from, options)).first;
    if (!it->second.ok()) log::warn("no tuning for {}: {}", name_of(collective), it->second.status().message());
  }
  return it->second;
}

model::Choice Choices::best(Collective collective, uint64_t bytes, const Codec& codec) {
  const auto& t = tuner(collective, codec, bytes);
  return t.ok() ? t->choose(collective, bytes) : model::Choice{.reason = t.status().message()};
}

plan::Choice Choices::choose(Collective collective, uint64_t bytes, const Codec& codec) {
  std::lock_guard lock(mutex_);
  if (cluster_.ranks() < 2) return plan::simplest_choice(collective);
  Codec used = codec;
  used.when_faster = false;
  const auto take = [&](const model::Choice& best, const std::string& why, const Codec& with) {
    plan::Choice choice = plan::simplest_choice(collective);
    if (!best.algorithm.empty()) choice = {best.algorithm, best.lanes, why + best.reason};
    choice.codec = with;
    if (collective == Collective::kBroadcast && cluster_.two_neighbours())
      choice.tile_bytes = tile_to_neighbour(bytes);
    return choice;
  };
  if (!codec) return take(best(collective, bytes, {}), "", {});
  if (!codec.when_faster) {
    return take(best(collective, bytes, used), fmt::format("{} was asked for; ", to_string(used)), used);
  }
  const model::Choice plain = best(collective, bytes, {});
  // Neighbours read values in place. The model, whose figures are those of messages, does not know how cheap that is.
  const auto coded_links = cluster_.hosts() > 1 ? model::LinkClass::kOtherHost : model::LinkClass::kSameHost;
  const auto& transport = cluster_.transports[static_cast<int>(coded_links)];
  if (transport == "shm" || transport == "loopback") return take(plain, "no codec is faster than memory; ", {});
  if (!cluster_.measured) return take(plain, "plain, as nobody has measured the links (tune() does); ", {});
  const model::Choice coded = best(collective, bytes, used);
  const auto why = fmt::format("{} {} against plain {}; ", to_string(used), model::seconds_text(coded.predicted_s),
                               model::seconds_text(plain.predicted_s));
  const bool faster = !coded.algorithm.empty() && coded.predicted_s < kClearly * plain.predicted_s;
  return faster ? take(coded, why, used) : take(plain, why, {});
}

std::string Choices::ranges(Collective collective) {
  std::lock_guard lock(mutex_);
  if (cluster_.ranks() < 2) return "";
  const auto& t = tuner(collective, {}, model::kNoLimit);
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
  Result<double> encode(CodecKind kind, uint64_t bytes) override { return code(kind, bytes, true); }
  Result<double> decode(CodecKind kind, uint64_t bytes) override { return code(kind, bytes, false); }

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
  Result<double> code(CodecKind kind, uint64_t bytes, bool encode) {
    Codec codec(kind);
    if (kind == CodecKind::kTopK) codec.keep = Codec::kGroup / 100;
    const auto kernels = kernels::find_cpu_codec(codec);
    const uint64_t elems = bytes / sizeof(float);
    std::byte* at = next(3 * bytes);
    if (!filled_) {  // any bytes are a code, and these are ordinary values
      auto* all = reinterpret_cast<float*>(data_.data());
      for (uint64_t i = 0; i < data_.size() / sizeof(float); ++i) all[i] = static_cast<float>(i % 251) - 125.0f;
      filled_ = true;
    }
    auto* values = reinterpret_cast<float*>(at);
    std::byte* codes = at + 2 * bytes;
    const auto start = base::Clock::now();
    if (encode) {
      kernels.encode(codec, values, elems, codes, {});
    } else {
      kernels.decode_add(codec, codes, elems, values);
    }
    return seconds_since(start);
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
  bool filled_ = false;
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
