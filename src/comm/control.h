// The control mesh of a job: every rank can send small messages to every other, and learns at once when one is gone.
// Communicators bootstrap, agree on failures and reconfigure over it. It carries no payload of collectives.
//
// One connection per pair of ranks, one thread per process that sleeps while there is nothing to do. There are no
// heartbeats: a process that ends is noticed because the system closes its connections, a host that vanishes by the
// system's keep-alive, and one that is stopped by the deadlines of the calls that wait for it (agreement.h).
//
// Threads: all public calls from any thread. Callbacks run on the control thread, one at a time, with no lock held;
// they may call everything here except exchange(), and must not block.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/handshake.h"
#include "base/processors.h"
#include "comm/interfaces.h"
#include "comm/launch.h"
#include "ringfold/status.h"

namespace ringfold::comm {

// What a rank knows of another one (or of itself). Immutable once connected.
struct PeerInfo {
  int rank = -1;
  std::string host;             // name, for people
  std::string host_id;          // equal for ranks that run under one kernel: they may share memory
  std::string stack_id;         // equal for ranks that share one network stack: they reach each other by loopback
  base::Processors processors;  // that it may use
  int64_t pid = 0;
  std::string version;
  std::vector<Candidate> candidates;  // where it listens
  // The addresses that worked between us: what a transport should listen on, and connect to. For this rank itself:
  // the address that most peers use.
  std::string my_address, address;
};

// What is known of each rank. An entry may be replaced while others read the old one, which stays as it is.
class Peers {
 public:
  explicit Peers(std::vector<PeerInfo> first);
  size_t size() const { return now_.size(); }
  PeerInfo& operator[](size_t rank) { return *now_[rank].load(std::memory_order_acquire); }
  const PeerInfo& operator[](size_t rank) const { return *now_[rank].load(std::memory_order_acquire); }
  void replace(size_t rank, PeerInfo info);  // one thread at a time

 private:
  std::deque<PeerInfo> all_;
  std::vector<std::atomic<PeerInfo*>> now_;
};

class Control {
 public:
  using OnMessage = std::function<void(int from, std::string_view bytes)>;
  using OnLost = std::function<void(int peer, const Status& why)>;
  static constexpr size_t kMaxMessage = 16 << 20;

  // Meets the other ranks and connects to all of them. The key comes from `config` (see load_key).
  static Result<std::unique_ptr<Control>> connect(const Launch& launch, const Config& config,
                                                  base::Deadline deadline);
  static Result<std::unique_ptr<Control>> connect(const Launch& launch, const Config& config, const base::Key& key,
                                                  base::Deadline deadline);
  // Tells the peers that this rank leaves the job, and waits a second at most until they know.
  virtual ~Control() = default;

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(peers_.size()); }
  const PeerInfo& peer(int rank) const { return peers_[static_cast<size_t>(rank)]; }
  const std::string& job() const { return job_; }  // a name that no other job has

  // What an exchange does about members that are gone: fail if one has not given its blob; fail in any case; or take
  // "" for what they have not given.
  enum class WhenGone : uint8_t { kFailWithoutBlob, kFail, kGoOn };
  // All-gather of small blobs among `members`, which includes this rank and is the same list everywhere; the result
  // is in the list's order. Calls with the same key match in the order in which each rank makes them. kPeerLost as
  // soon as a member is known to be gone without having given its blob, kTimeout naming who did not come.
  Result<std::vector<std::string>> exchange(const std::string& key, std::span<const int> members,
                                            std::string_view blob, base::Deadline deadline,
                                            WhenGone when_gone = WhenGone::kFailWithoutBlob);

  // The communicator `name` has failed: its own exchanges, KIND/NAME/..., and those by which others are made of it by
  // split, wire and figures/NAME/NUMBER:COLOR.0..., fail with kPeerLost from now on. A member that has heard of the
  // failure may have left off, and not come to the one that this rank waits in. Not those of the kind "ready": all
  // who prepare a communicator say how it went. What has been made of it goes on, and may be reconfigured.
  void end_exchanges_of(const std::string& name);

  // Messages between two ranks arrive whole and in order. Sending to a rank that is gone does nothing: on_lost says
  // so.
  void send(int peer, std::string_view topic, std::string_view bytes);
  // Messages that came before are delivered first, then the losses so far. One subscriber per topic.
  void subscribe(const std::string& topic, OnMessage on_message, OnLost on_lost);
  // When it returns, no callback of this topic runs or will run (except the one it is called from). Later messages of
  // the topic are dropped.
  void unsubscribe(const std::string& topic);
  // Runs `task` on the control thread at `when`, as a callback of `topic`: not if that has been unsubscribed by then.
  void run_at(const std::string& topic, base::TimePoint when, std::function<void()> task);

  // Ok while the peer is connected; otherwise why not.
  Status alive(int peer) const;
  // Did it leave in order, rather than die?
  bool has_left(int peer) const;

  // Processes that have come in the place of lost ranks (Launch::open). Until a rank is admitted it counts as lost,
  // so that nothing that was begun with the process before waits for the new one.
  struct Arrival {
    int rank = -1;
    bool ready = false;  // it is connected to all that it could reach
  };
  std::vector<Arrival> arrivals() const;
  // From here on the rank is alive, if it is still there.
  void admit(int rank);
  // Of a process that has come back itself: a rank that it is connected to, and that has not been taken in yet, has
  // arrived. Nothing if it is lost.
  void expect(int rank);
  // This process is one, and not admitted yet.
  virtual bool came_back() const { return false; }
  virtual bool open() const { return false; }

 protected:
  Control(int rank, std::vector<PeerInfo> peers) : rank_(rank), peers_(std::move(peers)), losses_(peers_.size()) {}

  // ---- what an implementation offers; any thread ----
  virtual void transmit(int peer, std::string_view topic, std::string_view bytes) = 0;
  virtual void post(std::function<void()> task) = 0;
  virtual void post_at(base::TimePoint when, std::function<void()> task) = 0;
  virtual bool on_control_thread() const = 0;
  // ---- what it reports, on the control thread ----
  void deliver(int from, std::string_view topic, std::string_view bytes);
  void lose(int peer, Status why, bool left);
  void arrive(int peer, PeerInfo info);
  void ready(int peer);

  int rank_;
  Peers peers_;
  std::string job_;

 private:
  struct Event {
    enum class Kind : uint8_t { kMessage, kLoss, kTask } kind;
    int peer = -1;
    std::string bytes;
    Status why;
    std::function<void()> task;
  };
  struct Topic {
    std::shared_ptr<const std::pair<OnMessage, OnLost>> subscriber;  // null: nobody yet
    std::deque<Event> events;
    bool running = false;
  };
  struct Loss {
    Status why;
    bool left = false;
  };

  void drain(const std::string& name);
  bool may_keep(size_t bytes, std::string_view topic);
  bool ended(std::string_view key) const;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::shared_ptr<Topic>, std::less<>> topics_;
  std::set<std::string, std::less<>> retired_;                           // unsubscribed
  std::map<std::string, std::map<int, std::deque<std::string>>> blobs_;  // of exchanges, by key and rank
  std::set<std::string> ended_;                                          // "NAME/"
  std::vector<std::optional<Loss>> losses_;
  struct Guest {
    PeerInfo info;
    bool ready = false;
  };
  std::map<int, Guest> guests_;  // that wait to be admitted
  size_t kept_bytes_ = 0;        // of messages and blobs that nobody has asked for yet
  bool overflowed_ = false;
};

// Ranks as threads of one process: `size` controls that reach each other through memory, with one thread for all
// their callbacks. For tests and the loopback transport. The hub must outlive its controls.
class LocalHub {
 public:
  explicit LocalHub(int size);
  ~LocalHub();
  std::unique_ptr<Control> control(int rank);  // once per rank
  // As if the rank's process had died: the others lose it, and nothing it sent later arrives.
  void kill(int rank);

  class Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace ringfold::comm
