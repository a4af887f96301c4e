// ParameterServer: the server side on one rank. Its model lies in n shards; rank r serves shard r, and with
// `replicas` also the shards of the ranks before it. Rank 0 also runs the Sequencer.
//
// The protocol, on a communicator of its own (tags in parentheses; w a worker, k a shard, each at all of its
// servers):
//
//   w -> server of k   gradient of shard k (slice + k)            while backward of others goes on, whatever the
//   order w -> rank 0        ask: "my gradient is complete" (header) rank 0 -> w        grant: ticket, next item
//   (grant)           when the sequencer lets it go w -> server of k   push: ticket, rate, ... (header) server of k
//   -> w   parameters of shard k (parameters + k)     once all updates up to the ticket are applied
//
// or, from a replica, only the word that it has applied them: a worker goes on when every server of every shard has
// its update. Replicas hold the same bits, and take over when ranks are lost (asgd.h).
//
// Servers are threads: a rank that computes would answer only between two steps, and the slowest rank would set the
// pace again. The thread sleeps until a message comes; it costs the worker beside it what applying updates costs.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "ringfold/communicator.h"
#include "ringfold/memory.h"
#include "sync/sequencer.h"
#include "sync/server_shard.h"
#include "sync/shard.h"

namespace ringfold::sync {

namespace wire {
enum Tag : int64_t { kHeader = 1, kGrant = 2, kSlice = 1 << 20, kParameters = 2 << 20, kApplied = 3 << 20 };
enum Kind : uint32_t { kAsk, kPush, kStop };
struct Header {
  Kind kind = kAsk;
  uint32_t shard = 0;
  Push push;        // kPush
  double loss = 0;  // kAsk: of the item's samples, for the log
  double samples = 0;
};
struct Reply {
  uint64_t ticket = 0;
  uint64_t item = 0;
  uint32_t closes = 1;
  uint32_t more = 0;
};
}  // namespace wire

struct ServerOptions {
  OptimizerOptions optimizer;
  DelayCompensation compensation;
  Sequencer::Options order;  // its `workers` is the number of ranks
  int replicas = 0;          // of each shard, besides the first; below the number of ranks
  double timeout_s = 300;    // a worker that holds up the others for so long ends the job
};

// Threads: make, stop and destructor on the worker's thread; the rest on any, and consistent only while no worker of
// the job is between asking and its parameters.
class ParameterServer {
 public:
  // `initial`: the whole model, of which the server takes its shards. The communicator is the server's (messages of
  // others would confuse it) and outlives it.
  static Result<std::unique_ptr<ParameterServer>> make(Communicator& comm, std::span<const float> initial,
                                                       const ServerOptions& options);
  // Ends the thread. Collective calls on the communicator are not needed; no messages may be under way.
  ~ParameterServer();

  // Server number i of shard k, 0 <= i <= replicas: its rank.
  static int server_of(int shard, int i, int ranks) { return (shard + i) % ranks; }
  Part part(int shard) const { return part_of(elems_, shard, comm_.size()); }

  // At rank 0, while no worker computes: what is to be done.
  void begin(std::vector<uint64_t> items);
  void set_bound(uint64_t steps);
  // The shards of this rank, its own first; and which of the model's the one at that place is.
  std::vector<ServerShard>& shards() { return shards_; }
  int number_of(size_t place) const { return (comm_.rank() - static_cast<int>(place) + comm_.size()) % comm_.size(); }
  // What has been sent to other ranks.
  uint64_t sent_bytes() const { return sent_bytes_; }
  // Rank 0: losses and samples since the last call; the sequencer's records.
  std::pair<double, double> take_losses();
  std::vector<uint64_t> histogram() const;
  std::vector<int> order() const;
  uint64_t tickets() const;
  void set_tickets(uint64_t tickets);
  // Why the thread has ended, if it has.
  Status status() const;
  void stop();

 private:
  struct Incoming {  // a gradient of one worker for one shard
    Buffer<float> slice;
    Work receive;
    bool held = false;  // its push has come, and waits for its turn
    Push push;
  };
  ParameterServer(Communicator& comm, const ServerOptions& options, size_t elems);
  void post(size_t shard, size_t worker);
  void serve();
  Status serve_one(const wire::Header& header, int source);
  Status grant();
  Status apply_in_order(size_t shard);
  Status reply(size_t shard, int worker);
  Status watch();

  Communicator& comm_;
  const ServerOptions options_;
  const size_t elems_;
  mutable std::mutex mutex_;
  std::vector<ServerShard> shards_;
  std::vector<std::vector<Incoming>> incoming_;  // by place in shards_, by worker
  std::vector<std::vector<Work>> replies_;
  std::unique_ptr<Sequencer> sequencer_;  // rank 0
  std::vector<wire::Reply> grants_;
  std::vector<Work> grant_works_;
  double loss_ = 0, samples_ = 0;
  double waiting_since_s_ = 0;
  std::atomic<uint64_t> sent_bytes_ = 0;
  Status status_;
  std::thread thread_;
};

}  // namespace ringfold::sync
