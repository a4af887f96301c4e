// A reliable connection to one peer over one port: posts writes, keeps receives posted, and knows how far the device
// has come.
//
// Accounting. Completions come in order, so one that is asked for now and then tells of everything before it; its
// wr_id carries the number of its request. A request that fails, and everything after it, completes without being
// asked, so the completion queue holds all requests of all queue pairs at once.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "ringfold/transport.h"
#include "transports/verbs/address.h"
#include "transports/verbs/device.h"
#include "transports/verbs/verbs.h"

namespace ringfold::verbs {

// Work requests that a queue pair holds.
struct Depth {
  int send = 0, receive = 0;
};

class QueuePair {
 public:
  // `tag` comes back in the upper half of every wr_id. Receives are posted from the beginning.
  static Result<std::unique_ptr<QueuePair>> make(Device& device, int port, uint32_t tag, const Depth& depth,
                                                 const Options& options, transport::Counters& counters);
  ~QueuePair();
  QueuePair(const QueuePair&) = delete;
  QueuePair& operator=(const QueuePair&) = delete;

  struct Target {
    uint32_t number = 0;  // the peer's queue pair
    uint32_t my_psn = 0, their_psn = 0;
    const Port *here = nullptr, *there = nullptr;
    const Route* route = nullptr;
  };
  Status connect(const Target& target, const Options& options);
  // Everything posted that is not done yet ends as flushed.
  void flush();

  // ---- sending ----
  // A write with immediate data, or silent: without, and unseen by the peer. At most two parts; inlined: they are
  // copied now.
  struct Write {
    std::array<ibv_sge, 2> parts{};
    int count = 0;
    uint64_t to = 0;
    uint32_t key = 0;
    uint32_t immediate = 0;
    bool inlined = false;
    bool signaled = false;
    bool silent = false;
  };
  int room() const { return depth_.send - static_cast<int>(posted_ - completed_); }
  // Precondition: room() > 0. 0, or the system's error: nothing was posted then.
  int post(const Write& write);
  size_t inline_bytes() const { return inline_bytes_; }
  uint64_t posted() const { return posted_; }
  uint64_t completed() const { return completed_; }
  // The device has come to the request with this number (its lower half).
  void complete(uint32_t number) { completed_ += static_cast<uint32_t>(number - static_cast<uint32_t>(completed_)); }

  // ---- receiving ----
  // One receive was used; new ones are posted in batches. 0 or the system's error.
  int received();

  Device& device() const { return device_; }
  int port() const { return port_; }
  uint32_t number() const { return qp_->qp_num; }
  const ibv_qp* qp() const { return qp_; }
  uint32_t tag() const { return tag_; }

  static constexpr uint64_t kReceive = uint64_t{1} << 63;  // in wr_id
  static uint32_t tag_of(uint64_t wr_id) { return static_cast<uint32_t>(wr_id >> 32) & 0x7fffffff; }

 private:
  QueuePair(Device& device, int port, uint32_t tag, const Depth& depth, transport::Counters& counters);
  int post_receives(int count);

  Device& device_;
  const int port_;
  const uint32_t tag_;
  const Depth depth_;
  transport::Counters& counters_;
  ibv_qp* qp_ = nullptr;
  size_t inline_bytes_ = 0;
  uint64_t posted_ = 0, completed_ = 0;
  int unsignaled_ = 0;  // since the last request whose completion was asked for
  int used_ = 0;        // receives to post again
};

}  // namespace ringfold::verbs
