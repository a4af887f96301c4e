// The transport: a completion queue per device, a few queue pairs per peer, and their links. How peers find each
// other is in wiring.cc, what completions mean in completions.cc, the rest in transport.cc.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "transports/verbs/direct.h"
#include "transports/verbs/link.h"
#include "transports/verbs/ports.h"
#include "transports/verbs/verbs.h"

namespace ringfold::verbs {

inline constexpr size_t kMostPorts = 4;  // that a rank offers: each costs a queue pair per peer until one is chosen

struct Peer {
  std::vector<std::unique_ptr<QueuePair>> queue_pairs;  // by port; those that are not used are gone
  std::vector<QueuePair*> rails;
  std::string route;
  uint64_t control = 0;
  uint32_t control_key = 0;
  std::array<std::unique_ptr<Link>, transport::kLanes> links;
  unsigned opened = 0;   // lanes that it has opened
  unsigned stopped = 0;  // rails on which it has said that it stops
  unsigned doubted = 0;  // rails whose port may have lost it, of which nothing was asked yet
  bool greeted = false;
  bool direct = false;  // writes go straight into its memory, or come from it
  bool failed = false;
  Status why;  // of a failure before any link was opened

  bool connected() const { return !rails.empty(); }
  bool left() const { return connected() && stopped == (1u << rails.size()) - 1; }
  bool has_links() const {
    return direct || std::any_of(links.begin(), links.end(), [](auto& l) { return l != nullptr; });
  }
  bool pending() const {
    return std::any_of(links.begin(), links.end(), [](auto& l) { return l && l->pending(); });
  }
  bool quiet() const {
    return std::all_of(rails.begin(), rails.end(), [](auto* q) { return q->completed() == q->posted(); });
  }
};

class VerbsTransport final : public Transport, public Hub, public DirectHub {
 public:
  VerbsTransport(int rank, int size, uint64_t communicator, const Options& options);
  ~VerbsTransport() override;
  Status create(const Library& library);

  std::string_view name() const override { return "verbs"; }
  transport::Capabilities capabilities() const override { return {slot_bytes, static_cast<int>(slots), false, true}; }
  std::string address() const override { return address_.to_string(); }
  Status add_peer(int peer, std::string_view address) override;
  transport::Link* open(int peer, int lane) override;
  bool wanted(int lane) const override { return (wanted_ >> lane & 1) != 0; }
  void progress() override;
  const transport::Failures& failures() const override { return failures_; }
  bool prepare_to_sleep() override;
  void awake() override;
  int wake_fd() const override { return epoll_; }
  void stop() override {
    if (stopped_) return;
    drain();
    abandon();
  }
  void abandon() override;
  transport::Direct* direct() override { return direct_possible_ ? &direct_ : nullptr; }
  transport::Counters counters() const override { return Hub::counters; }
  std::string route(int peer) const override { return at(peer).route; }
  std::vector<std::string> probe(std::chrono::steady_clock::time_point until) override;

 private:
  Peer& at(int peer) { return peers_[static_cast<size_t>(peer)]; }
  const Peer& at(int peer) const { return peers_[static_cast<size_t>(peer)]; }
  RingPlace& control(int peer, int lane, bool outgoing) {
    const size_t index = static_cast<size_t>(peer) * transport::kLanes + static_cast<size_t>(lane);
    return reinterpret_cast<RingPlace*>(control_.data())[index + (outgoing ? peers_.size() * transport::kLanes : 0)];
  }

  size_t windows_offset() const { return 2 * peers_.size() * transport::kLanes * sizeof(RingPlace); }
  Window* window(int peer, bool outgoing) {
    const size_t index = static_cast<size_t>(peer) + (outgoing ? peers_.size() : 0);
    return reinterpret_cast<Window*>(control_.data() + windows_offset()) + index;
  }
  size_t offers_offset() const { return windows_offset() + 2 * peers_.size() * sizeof(Window); }
  Offer& offer_of(int peer, int lane, bool outgoing) {
    const size_t index = static_cast<size_t>(peer) * transport::kLanes + static_cast<size_t>(lane);
    return reinterpret_cast<Offer*>(control_.data() +
                                    offers_offset())[index + (outgoing ? peers_.size() * transport::kLanes : 0)];
  }
  size_t control_bytes() const { return offers_offset() + 2 * peers_.size() * transport::kLanes * sizeof(Offer); }

  // ---- Hub ----
  void poll() override;
  void fail(int peer, Status status) override;
  const Memory* registered(const std::byte* data, size_t bytes) override {
    return regions_.find(data, bytes, devices_);
  }
  bool offer(int peer, int lane, const Offer& offer) override;

  // ---- DirectHub ----
  Way way_to(int peer) override;
  uint32_t control_key(const QueuePair& rail) override { return control_.local_key(&rail.device()); }
  const std::vector<Device*>& all_devices() override { return devices_; }
  void lose(int peer, Status why) override { fail(peer, std::move(why)); }

  // ---- completions.cc ----
  void handle(const ibv_wc& wc);
  void handle_note(int peer, QueuePair& rail, const ibv_wc& wc);
  void handle_error(int peer, QueuePair& rail, const ibv_wc& wc);
  void poll_events(Device& device);
  void doubt(const Device& device, int port);
  void ask(int peer);
  static constexpr uint64_t kOfDevice = uint64_t{1}
                                        << 32;  // beside a device's index: its own events, not completions
  // ---- the rest ----
  bool say(Peer& peer, QueuePair& rail, Note::Kind kind);
  void open_next();
  void announce(int peer, int lane);
  void write_control(int peer, size_t offset, const std::byte* data, size_t bytes, const Note& note);
  void repay_all();
  void bury();
  void drain();

  const int rank_;
  const Options options_;
  Address address_;
  Host host_;
  std::vector<Device*> devices_;  // with usable ports
  std::vector<Peer> peers_;
  // Where peers put the places of their rings, then where this rank's are sent from; the same of windows, and of
  // offers.
  Memory control_;
  Regions regions_;
  Direct direct_;
  bool direct_possible_ = false;
  std::deque<std::pair<int, int>> opening_;  // peers and lanes of links whose memory is to be registered
  int epoll_ = -1;
  unsigned wanted_ = 0;
  bool leaving_ = false;  // a peer has stopped and is not buried
  bool stopped_ = false;
  bool may_sleep_ = true;  // unless prepare_to_sleep() has just said no
  uint64_t ticks_ = 0, seen_ = 0;
  transport::Failures failures_;
};

}  // namespace ringfold::verbs
