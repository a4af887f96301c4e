// Ranks as threads of one process. The rings of transports/shm on ordinary memory; large puts are by reference: the
// receiver reads the sender's memory in place.
#pragma once

#include <memory>

#include "ringfold/transport.h"

namespace ringfold::loopback {

struct Options {
  int slots = 8;                  // a power of two, 1 to 64
  size_t slot_bytes = 128 << 10;  // largest put
  size_t reference_bytes =
      4 << 10;  // puts from this size on are read in place; below, a copy is cheaper than waiting
  // stop() gives a peer thread that is reading this rank's memory so long to finish, before that memory may go away.
  int stop_wait_ms = 500;
};

// Where the ranks 0..size-1 of one communicator meet. Any thread may call. The hub may go before its transports.
class RINGFOLD_API Hub {
 public:
  // kInvalid for impossible options.
  static Result<std::unique_ptr<Hub>> create(int size, const Options& options = {});
  // The hub's end: its transports share the state and keep it.
  ~Hub();
  // The transport of `rank`, to be made once; what add_peer() takes is the address of another transport of this hub.
  Result<std::unique_ptr<transport::Transport>> make(int rank);

  struct State;
  explicit Hub(std::shared_ptr<State> state);

 private:
  std::shared_ptr<State> state_;
};

// The same through a hub that all ranks of this process with one communicator nonce share, for callers that cannot
// hand a hub around. The hub goes with the last of its transports. Sizes and options must agree.
RINGFOLD_API Result<std::unique_ptr<transport::Transport>> make(int rank, int size, uint64_t communicator_nonce,
                                                                const Options& options = {});

}  // namespace ringfold::loopback
