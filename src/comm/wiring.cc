#include "comm/wiring.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/log.h"
#include "comm/text.h"
#include "transports/loopback/loopback.h"
#include "transports/shm/shm.h"
#include "transports/tcp/tcp.h"
#include "transports/ucx/ucx.h"
#include "transports/verbs/verbs.h"

namespace ringfold::comm {
namespace {

template <typename O>
O with_sizes(const Config& config, O options) {
  if (config.slot_bytes != 0) options.slot_bytes = static_cast<size_t>(config.slot_bytes.value());
  if (config.slots != 0) options.slots = static_cast<int>(config.slots.value());
  return options;
}

// How long ranks wait for each other's greeting by RDMA: a packet that is lost is sent again after 0.27 s, seven
// times.
constexpr auto kProbe = std::chrono::seconds(5);

uint64_t nonce_of(const std::string& job, const std::string& name) {
  uint64_t h = 0xcbf29ce484222325ULL;
  for (char c : job + "/" + name) h = (h ^ static_cast<uint8_t>(c)) * 0x100000001b3ULL;
  return h;
}

// Finds out, pair by pair, what works; every rank of the communicator runs the same rounds of exchanges.
class Wirer {
 public:
  Wirer(Session& session, const std::vector<int>& members, int me, const std::string& name, uint32_t epoch,
        base::Deadline deadline)
      : session_(session),
        members_(members),
        me_(me),
        name_(name),
        epoch_(epoch),
        deadline_(deadline),
        nonce_(nonce_of(session.control->job(), name)),
        size_(static_cast<int>(members.size())) {}

  Result<Wiring> run() {
    number_hosts();
    wiring_.route.assign(static_cast<size_t>(size_), -1);
    wiring_.route[me_] = 0;
    wiring_.me = me_;
    if (size_ > 1) {
      const std::string& wanted = session_.config.transport;
      if (session_.in_process && (wanted == "auto" || wanted == "loopback")) {
        RINGFOLD_TRY(wire_loopback());
      } else {
        if (wanted == "loopback") {
          return Status(Code::kInvalid,
                        "the loopback transport joins ranks of one process only (Communicator::init_local)");
        }
        if (wanted == "auto" || wanted == "shm") RINGFOLD_TRY(wire_shared_memory());
        // Only between hosts, unless somebody asks: where shared memory does not do it on one host, a device would
        // send the bytes to itself.
        const bool hosts = wiring_.cores.size() > 1;
        if (wanted == "verbs" || (wanted == "auto" && hosts)) RINGFOLD_TRY(wire_verbs(wanted == "verbs"));
        if (wanted == "auto" || wanted == "tcp") RINGFOLD_TRY(wire_tcp());
        if (wanted == "ucx") RINGFOLD_TRY(wire_ucx());
      }
      RINGFOLD_TRY(agree_on_sizes());
      report();
    } else {
      wiring_.tile_bytes = wiring_.message_tile_bytes = 1 << 20;
      wiring_.slots = 8;
    }
    return std::move(wiring_);
  }

 private:
  Result<std::vector<std::string>> exchange(const std::string& step, std::string_view blob) {
    return session_.control->exchange("wire/" + name_ + "/" + step, members_, blob, deadline_,
                                      Control::WhenGone::kFail);
  }
  const PeerInfo& info(int member) const { return session_.control->peer(members_[member]); }

  void number_hosts() {
    std::map<std::string, int> numbers;
    for (int m = 0; m < size_; ++m) {
      wiring_.host_of.push_back(numbers.try_emplace(info(m).host_id, static_cast<int>(numbers.size())).first->second);
    }
    std::vector<base::Processors> processors(numbers.size());
    for (int m = 0; m < size_; ++m) {
      auto& host = processors[static_cast<size_t>(wiring_.host_of[m])];
      host.limit = host.mask.empty() ? info(m).processors.limit : host.limit;
      host.add(info(m).processors);
    }
    for (const auto& host : processors) wiring_.cores.push_back(std::max(1, static_cast<int>(host.usable())));
  }

  template <typename O>
  O sized(O options) const {
    return with_sizes(session_.config, std::move(options));
  }

  Status wire_loopback() {
    auto made = loopback::make(me_, size_, nonce_, sized(loopback::Options{}));
    if (!made.ok()) return made.status();
    auto addresses = exchange("loopback", (*made)->address());
    if (!addresses.ok()) return addresses.status();
    for (int m = 0; m < size_; ++m) {
      if (m == me_) continue;
      RINGFOLD_TRY((*made)->add_peer(m, (*addresses)[m]));
      wiring_.route[m] = 0;
    }
    wiring_.transports.push_back(*std::move(made));
    return {};
  }

  // Where ranks take turns on processors small puts are copied: a sender need not wait for its receiver's turn then.
  // (4 ranks on 2 cores of an Intel Xeon, streams of 1 to 3.5 KiB: 1.4 us a message instead of 3.9.)
  shm::Options shm_options() const {
    shm::Options options;
    const int host = wiring_.host_of[me_];
    if (std::count(wiring_.host_of.begin(), wiring_.host_of.end(), host) > wiring_.cores[static_cast<size_t>(host)])
      options.region_bytes = 4 << 10;
    return options;
  }

  // A pair uses shared memory when both sides can open the other's segment.
  Status wire_shared_memory() {
    std::unique_ptr<transport::Transport> shm;
    bool neighbours = false;
    for (int m = 0; m < size_; ++m) neighbours |= m != me_ && wiring_.host_of[m] == wiring_.host_of[me_];
    if (neighbours) {
      auto made = shm::make(me_, size_, nonce_, sized(shm_options()));
      if (made.ok()) {
        shm = *std::move(made);
      } else {
        why_not_ = made.status().message();
      }
    }
    auto addresses = exchange("shm", shm ? shm->address() : std::string());
    if (!addresses.ok()) return addresses.status();
    std::string works(static_cast<size_t>(size_), '0');
    for (int m = 0; m < size_; ++m) {
      if (m == me_ || !shm || (*addresses)[m].empty() || wiring_.host_of[m] != wiring_.host_of[me_]) continue;
      if (Status s = shm->add_peer(m, (*addresses)[m]); s.ok()) {
        works[m] = '1';
      } else {
        why_not_ = fmt::format("rank {}: {}", m, s.message());
      }
    }
    auto all = exchange("shm-works", works);
    if (!all.ok()) return all.status();
    bool used = false;
    for (int m = 0; m < size_; ++m) {
      if (m == me_ || (*all)[m].size() != works.size()) continue;
      if (works[m] == '1' && (*all)[m][me_] == '1') {
        wiring_.route[m] = 0;
        used = true;
      } else if (session_.config.transport.value() == "shm") {
        return {Code::kUnavailable,
                fmt::format("RINGFOLD_TRANSPORT=shm, but shared memory does not reach rank {} on {}: {}", m,
                            info(m).host, why_not_.empty() ? "another host" : why_not_)};
      }
    }
    if (used) wiring_.transports.push_back(std::move(shm));
    return {};
  }

  // A pair uses RDMA when both sides have a port for the other and bytes really get through.
  Status wire_verbs(bool required) {
    std::unique_ptr<verbs::Transport> rdma;
    std::vector<std::string> reasons(static_cast<size_t>(size_));
    std::string general = "the peer has no RDMA";
    if (std::count(wiring_.route.begin(), wiring_.route.end(), -1) > 0) {
      auto made = verbs::make(me_, size_, nonce_, rdma_options(session_.config));
      if (made.ok()) {
        rdma = *std::move(made);
      } else {
        if (made.status().code() == Code::kInvalid) return made.status();
        general = made.status().message();
      }
    }
    auto addresses = exchange("verbs", rdma ? rdma->address() : std::string());
    if (!addresses.ok()) return addresses.status();
    std::string works(static_cast<size_t>(size_), '0');
    for (int m = 0; m < size_; ++m) {
      if (m == me_ || wiring_.route[m] >= 0) continue;
      if (!rdma || (*addresses)[m].empty()) {
        reasons[m] = general;
      } else if (Status s = rdma->add_peer(m, (*addresses)[m]); !s.ok()) {
        reasons[m] = s.message();
      } else {
        works[m] = '1';
      }
    }
    // Nobody greets a peer that is not ready for it.
    if (auto ready = exchange("verbs-ready", works); !ready.ok()) return ready.status();
    if (rdma) {
      const auto greeted = rdma->probe(std::min(deadline_.at, base::Clock::now() + kProbe));
      for (int m = 0; m < size_; ++m) {
        if (works[m] != '1' || greeted[m].empty()) continue;
        works[m] = '0';
        reasons[m] = greeted[m];
      }
    }
    auto all = exchange("verbs-works", works);
    if (!all.ok()) return all.status();
    bool used = false;
    for (int m = 0; m < size_; ++m) {
      if (m == me_ || wiring_.route[m] >= 0 || (*all)[m].size() != works.size()) continue;
      if (works[m] == '1' && (*all)[m][me_] == '1') {
        wiring_.route[m] = static_cast<int>(wiring_.transports.size());
        used = true;
        log::info("{}: rank {} by RDMA: {}", name_, m, rdma->route(m));
        continue;
      }
      const std::string why = reasons[m].empty() ? "it does not reach this rank" : reasons[m];
      if (required) {
        return {Code::kUnavailable, fmt::format("RINGFOLD_TRANSPORT=verbs, but RDMA does not reach rank {} on {}: {}",
                                                m, info(m).host, why)};
      }
      why_no_rdma_ = fmt::format("rank {}: {}", m, why);
    }
    if (used) wiring_.transports.push_back(std::move(rdma));
    return {};
  }

  Status wire_tcp() {
    std::vector<int> rest;
    for (int m = 0; m < size_; ++m) {
      if (wiring_.route[m] < 0) rest.push_back(m);
    }
    std::unique_ptr<transport::Transport> tcp;
    if (!rest.empty()) {
      transport::tcp::Options options = sized(transport::tcp::Options{});
      options.key = session_.key;
      options.streams = static_cast<int>(session_.config.tcp_streams);
      std::vector<const PeerInfo*> peers;
      for (int m : rest) peers.push_back(&info(m));
      options.listen_address = session_.in_process ? "127.0.0.1" : listen_address(info(me_), peers);
      auto made = transport::tcp::make(me_, size_, nonce_, epoch_, options);
      if (!made.ok()) return made.status();
      tcp = *std::move(made);
    }
    auto addresses = exchange("tcp", tcp ? tcp->address() : std::string());
    if (!addresses.ok()) return addresses.status();
    for (int m : rest) {
      RINGFOLD_TRY(tcp->add_peer(m, (*addresses)[m]));
      wiring_.route[m] = static_cast<int>(wiring_.transports.size());
    }
    if (tcp) wiring_.transports.push_back(std::move(tcp));
    return {};
  }

  // Asked for by name, so it must reach everybody; which rank it does not, and why, all ranks say.
  Status wire_ucx() {
    auto made = transport::ucx::make(me_, size_, nonce_, epoch_, sized(transport::ucx::Options{}));
    auto addresses = exchange("ucx", made.ok() ? "=" + (*made)->address() : "!" + made.status().message());
    if (!addresses.ok()) return addresses.status();
    RINGFOLD_TRY(first_refusal(*addresses));
    std::string refusal = "=";
    for (int m = 0; m < size_ && refusal == "="; ++m) {
      if (m == me_) continue;
      if (Status s = (*made)->add_peer(m, std::string_view((*addresses)[m]).substr(1)); !s.ok())
        refusal = "!" + s.message();
      wiring_.route[m] = 0;
    }
    auto all = exchange("ucx-works", refusal);
    if (!all.ok()) return all.status();
    RINGFOLD_TRY(first_refusal(*all));
    wiring_.transports.push_back(*std::move(made));
    return {};
  }

  Status first_refusal(const std::vector<std::string>& answers) const {
    for (int m = 0; m < size_; ++m) {
      if (answers[m].starts_with('=')) continue;
      return {Code::kUnavailable, fmt::format("RINGFOLD_TRANSPORT=ucx, but rank {} on {} cannot use it: {}", m,
                                              info(m).host, answers[m].empty() ? "no answer" : answers[m].substr(1))};
    }
    return {};
  }

  // The least of all, as both ends of a link, and all ranks of a program, must cut alike.
  Status agree_on_sizes() {
    uint64_t bytes = ~uint64_t{0};
    bool tcp = false;
    int slots = 1 << 30;
    for (auto& t : wiring_.transports) {
      bytes = std::min<uint64_t>(bytes, t->capabilities().slot_bytes);
      slots = std::min(slots, t->capabilities().slots);
      tcp |= t->name() == "tcp";
    }
    uint64_t most = most_tile(bytes, tcp, wiring_.cores.size());
    auto all = exchange("sizes", fmt::format("{} {} {}", bytes, slots, most));
    if (!all.ok()) return all.status();
    for (int m = 0; m < size_; ++m) {
      unsigned long long b = 0, tile = 0;
      int s = 0;
      if (std::sscanf((*all)[m].c_str(), "%llu %d %llu", &b, &s, &tile) != 3) {
        return {Code::kProtocol, fmt::format("rank {} sent damaged sizes", m)};
      }
      bytes = std::min<uint64_t>(bytes, b);
      slots = std::min(slots, s);
      most = std::min<uint64_t>(most, tile);
    }
    const bool chosen = session_.config.tile_bytes != 0 || session_.config.slot_bytes != 0;
    if (session_.config.tile_bytes != 0) {
      bytes = std::min<uint64_t>(bytes, static_cast<uint64_t>(session_.config.tile_bytes.value()));
    }
    auto cut = [](uint64_t tile) { return std::max<uint64_t>(8, tile / 8 * 8); };
    wiring_.message_tile_bytes = cut(bytes);
    wiring_.tile_bytes = cut(chosen ? bytes : std::min(bytes, most));
    wiring_.slots = slots;
    return {};
  }

  void report() const {
    if (!log::enabled(log::Level::kInfo)) return;
    std::map<std::string, std::vector<int>> by;
    for (int m = 0; m < size_; ++m) {
      if (m != me_) by[std::string(wiring_.transports[wiring_.route[m]]->name())].push_back(m);
    }
    std::string text;
    for (auto& [name, ranks] : by)
      text += fmt::format("{}{} to ranks {}", text.empty() ? "" : ", ", name, list_ranks(ranks));
    log::info("{}: {}{}{}", name_, text, why_not_.empty() ? "" : " (no shared memory with " + why_not_ + ")",
              why_no_rdma_.empty() ? "" : " (no RDMA with " + why_no_rdma_ + ")");
  }

  Session& session_;
  const std::vector<int>& members_;
  const int me_;
  const std::string& name_;
  const uint32_t epoch_;
  const base::Deadline deadline_;
  const uint64_t nonce_;
  const int size_;
  Wiring wiring_;
  std::string why_not_, why_no_rdma_;
};

}  // namespace

// What a rank has received of a tile it passes on when the tile is whole, so over slow links large ones cost time at
// every rank of a ring or chain. Messages have nobody to pass on to and take what the transports take.
//
// Linux cuts what is written to a socket into packets of almost 64 KiB, which it takes apart only at the device, and
// through the loopback interface not at all. A tile just over some of these ends with a packet of a few bytes: with
// 128 KiB instead of 124 all_reduce of 8 MiB, 2 ranks, takes 1.07 times as long. Within a host, where sending and
// receiving take turns on the cores, two packets are mostly better than four (all_reduce of 512 KiB, 4 ranks: 1.6
// times; but all_gather of 8 MiB 0.8 times).
uint64_t most_tile(uint64_t slot_bytes, bool tcp, size_t hosts) {
  constexpr uint64_t kMost = 256 << 10, kPacket = 62 << 10;
  if (!tcp) return std::min(slot_bytes, kMost);
  const uint64_t packets = std::min<uint64_t>(slot_bytes / kPacket, hosts > 1 ? 4 : 2);
  return packets > 0 ? packets * kPacket : slot_bytes;
}

verbs::Options rdma_options(const Config& config) {
  verbs::Options options = with_sizes(config, verbs::Options{});
  options.devices = config.rdma_devices;
  options.gid_index = static_cast<int>(config.rdma_gid);
  options.rails = static_cast<int>(config.rdma_rails);
  options.traffic_class = static_cast<int>(config.rdma_traffic_class);
  options.service_level = static_cast<int>(config.rdma_service_level);
  options.ack_timeout = static_cast<int>(config.rdma_ack_timeout);
  options.retries = static_cast<int>(config.rdma_retries);
  return options;
}

std::string listen_address(const PeerInfo& me, const std::vector<const PeerInfo*>& peers) {
  std::map<std::string, int> votes;
  for (const PeerInfo* peer : peers) {
    if (peer->host_id != me.host_id || peer->stack_id != me.stack_id) ++votes[peer->my_address];
  }
  if (votes.empty()) return dial_order({}, me.candidates, true).tries.front().interface.address;
  return std::max_element(votes.begin(), votes.end(), [](auto& a, auto& b) { return a.second < b.second; })->first;
}

Result<Wiring> wire(Session& session, const std::vector<int>& members, int me, const std::string& name,
                    uint32_t epoch, base::Deadline deadline) {
  return Wirer(session, members, me, name, epoch, deadline).run();
}

}  // namespace ringfold::comm
