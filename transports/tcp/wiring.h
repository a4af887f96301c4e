// How connections come about: the listener, dialling, the handshake on both sides.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ringfold/transport.h"
#include "transports/tcp/tcp.h"

namespace ringfold::transport::tcp {

struct Identity {
  int rank = 0, size = 0;
  uint64_t nonce = 0;
  uint32_t epoch = 0;
};

// A connection on which both sides have proved the key and agreed what it is for. The receiver of this owns `fd`,
// which is non-blocking and registered (edge-triggered, for reading and writing) with the epoll set under a null
// pointer.
struct Connection {
  int peer = -1, lane = 0, stream = 0;
  int fd = -1;  // -1: no connection, but the word that `peer` has opened this lane
  std::string ends;
};

// Never blocks: advance() does what can be done now. Not thread-safe.
class Wiring {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // Listens. Descriptors are registered with `epoll` under a null pointer.
  static Result<std::unique_ptr<Wiring>> make(const Identity& identity, const Options& options, int epoll,
                                              Counters& counters);
  virtual ~Wiring() = default;

  virtual std::string address() const = 0;
  virtual Status add_peer(int peer, std::string_view address) = 0;
  // The connections of this link are wanted: dialled by the higher rank, accepted by the lower.
  virtual void open(int peer, int lane) = 0;
  // Is a connection wanted that is not there yet, or has a stranger come in?
  virtual bool busy() const = 0;
  // When advance() has something to do although nothing happens.
  virtual std::optional<Time> next_time() const = 0;
  virtual std::vector<Connection> advance(Time now) = 0;
  // Peers that proved the key but are set up in another way, or that do not listen any more: no retry mends that.
  virtual const Failures& failures() const = 0;
};

}  // namespace ringfold::transport::tcp
