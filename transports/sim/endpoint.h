// The transport of one process in one communicator of the simulated network.
#pragma once

#include <deque>
#include <optional>
#include <utility>

#include "transports/sim/sim.h"

namespace ringfold::sim {

// One direction of one link. Both ends refer to it, and so do the events on their way.
struct Pipe {
  struct Packet {
    std::vector<std::byte> data;
    const std::byte* source = nullptr;  // by reference: still the sender's, and must equal `data` until released
    bool remote = false;
    bool to_landing = false;
    std::optional<transport::Preamble> preamble;
  };
  // The sender's side.
  bool ready = false;  // the receiver has opened it
  bool sender_up = true;
  bool cut = false;                 // what is put from here on is lost: no arrival has a gap before it
  uint64_t issued = 0, credit = 0;  // credit: releases that the sender knows of
  std::deque<bool> referred;        // of puts credit .. issued-1
  base::TimePoint free_at{}, last_arrival{}, last_release{};
  std::deque<Packet> wire;
  // The receiver's side.
  std::deque<Packet> arrived;
  bool claimed = false;  // the owner has seen the front one
  std::byte* landing = nullptr;
  size_t landing_bytes = 0;
  bool asked = false;    // with that landing, for the next arrival
  bool landed = false;   // the front one lies in it
  bool refused = false;  // it could not be fetched, and its copy is on its way
};

class SimLink final : public transport::Link {
 public:
  SimLink(Endpoint* owner, std::shared_ptr<Pipe> out, std::shared_ptr<Pipe> in)
      : owner_(owner), out_(std::move(out)), in_(std::move(in)) {}
  bool writable() override;
  void put(const std::byte* data, size_t bytes, const transport::Preamble* preamble) override;
  size_t piece(const std::byte* data, size_t bytes) override;
  std::byte* reserve(size_t bytes) override;
  void commit(size_t bytes, const transport::Preamble* preamble) override;
  uint64_t issued() const override { return out_->issued; }
  uint64_t retired() override;
  bool announced(transport::Arrival* arrival, size_t expected) override;
  bool arrived(transport::Arrival* arrival, std::byte* landing, size_t expected) override;
  Status fetch(std::byte* destination) override;
  void release() override;

 private:
  friend class Endpoint;
  void dispatch(Pipe::Packet packet);
  static void land(Pipe& pipe);

  Endpoint* const owner_;
  const std::shared_ptr<Pipe> out_, in_;
  bool up_ = true;
  std::optional<size_t> reserved_;
  std::vector<std::byte> building_;
};

class Endpoint final : public transport::Transport {
 public:
  Endpoint(World* world, int process, uint64_t nonce);
  ~Endpoint() override;

  std::string_view name() const override { return "sim"; }
  transport::Capabilities capabilities() const override;
  std::string address() const override;
  Status add_peer(int peer, std::string_view address) override;
  transport::Link* open(int peer, int lane) override;
  bool wanted(int lane) const override { return (wanted_ >> lane & 1) != 0; }
  void progress() override;
  const transport::Failures& failures() const override { return failures_; }
  bool prepare_to_sleep() override { return true; }
  void awake() override {}
  int wake_fd() const override { return -1; }
  void stop() override { leave(false); }
  transport::Counters counters() const override { return counters_; }

  // Ends all traffic; killed: abruptly.
  void leave(bool killed);
  // The links to a process break.
  void lose(int process);

 private:
  friend class SimLink;
  struct Peer {
    int process = -1;
    std::optional<Status> ended;
    bool expired = false;  // what it left has had time to be taken
    bool gone = false;
    std::map<int, std::unique_ptr<SimLink>> links;  // by lane
  };
  Endpoint* find(int process) const;
  void peer_ended(int process, const Status& why, bool expired);
  void complain(std::string what) const;
  std::shared_ptr<Pipe> out_pipe(int process, int lane);
  base::Duration delay() { return world_->between(world_->options().min_delay, world_->options().max_delay); }

  World* const world_;
  const int process_;
  const uint64_t nonce_;
  bool left_ = false;
  uint64_t wanted_ = 0;
  std::map<int, Peer> peers_;
  std::map<std::pair<int, int>, std::shared_ptr<Pipe>> pipes_;  // outgoing, by process and lane; made by either end
  transport::Failures failures_;
  transport::Counters counters_;
};

}  // namespace ringfold::sim
