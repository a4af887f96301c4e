// Activations and gradients between ranks: named messages with credits by name (ringfold/pipeline_runner.h says why).
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "ringfold/communicator.h"
#include "ringfold/memory.h"
#include "ringfold/pipeline_runner.h"

namespace ringfold::pipeline {

// What a message is: of the forward or the backward pass, the stage that made it, and the micro-batch.
struct Name {
  bool gradient = false;
  int stage = 0;
  int micro_batch = 0;
  friend auto operator<=>(const Name&, const Name&) = default;
  std::string to_string() const;
};

struct Envelope {
  Name name;
  int peer = 0;
  Boundary boundary;
  Codec codec;
  base::Deadline deadline;
};

// What messages need of a communicator, so that they also run on a simulated network.
class Port {
 public:
  virtual ~Port() = default;
  virtual Work send(const void* data, size_t count, DataType type, int peer, int64_t tag,
                    const CallOptions& options) = 0;
  virtual Work recv(void* data, size_t count, DataType type, int peer, int64_t tag, const CallOptions& options) = 0;
};

// Memory for messages, given back when the last reference goes, and kept. Any thread.
using Memory = std::shared_ptr<std::byte>;
class Pool : public std::enable_shared_from_this<Pool> {
 public:
  Result<Memory> take(size_t bytes);
  size_t peak_bytes() const;

 private:
  struct Free {
    size_t bytes = 0;
    void operator()(std::byte* memory) const;
  };
  using Block = std::unique_ptr<std::byte[], Free>;
  mutable std::mutex mutex_;
  std::map<size_t, std::vector<Block>> free_;  // by size
  size_t bytes_ = 0, peak_ = 0;                // in use
};

// Threads: one at a time; what it starts is completed by any.
class Exchange {
 public:
  explicit Exchange(std::shared_ptr<Port> port);
  // Waits for what flush() waits for.
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // Sends `memory` when the receiver has posted its receive; keeps it until then.
  void send(const Envelope& envelope, Memory memory);
  // Posts a receive and gives its sender the credit. One at a time under a name.
  Status post(const Envelope& envelope);
  // Has it come (or failed)? Drives.
  bool arrived(const Name& name);
  // Drives until it has.
  Status wait(const Name& name);
  // After arrived() or wait(): the message.
  Result<Memory> take(const Name& name);
  // Waits until everything sent is taken. The first error of a send.
  Status flush();
  // The first error of a send so far.
  Status status() const;

  Result<Memory> memory(size_t bytes) { return pool_->take(bytes); }
  size_t peak_bytes() const { return pool_->peak_bytes(); }
  size_t unsent() const;

 private:
  struct Outgoing;
  struct Sends;  // shared with the callbacks of what is under way
  struct Incoming {
    Memory memory;
    Work work;
  };
  void forget_sent();

  std::shared_ptr<Port> port_;
  std::shared_ptr<Pool> pool_;
  std::shared_ptr<Sends> sends_;
  std::list<std::shared_ptr<Outgoing>> outgoing_;
  std::map<Name, Incoming> incoming_;
};

}  // namespace ringfold::pipeline
