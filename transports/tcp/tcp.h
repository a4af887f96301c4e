// Links over TCP, IPv4 or IPv6: for ranks on other hosts, and for the same host where shared memory is not to be had.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/handshake.h"
#include "ringfold/transport.h"

namespace ringfold::transport::tcp {

struct Options {
  // What peers must prove; required.
  std::optional<base::Key> key;
  // The address of one interface; connections to peers of the same family leave from it, too. A wildcard is taken
  // only when it is written here, and then publish_address must say where peers find this rank.
  std::string listen_address = "127.0.0.1";
  std::string publish_address;  // "": listen_address
  // Equal on all ranks, as the two ends of a link compare: the largest put (to 4 MiB), the puts that may wait for the
  // kernel to take them, and the connections of one link (to 16), over which puts of stripe_bytes and more are split.
  size_t slot_bytes = 1 << 20;
  int slots = 8;
  int streams = 1;
  size_t stripe_bytes = 64 << 10;
  // SO_SNDBUF, SO_RCVBUF; 0 leaves them to the system, which adapts them to the path.
  int send_buffer = 0;
  int receive_buffer = 0;
  std::string congestion;  // "cubic", "bbr", ...; "": see congestion.h
  // A peer's host that is silent for so long is lost; 0: the system's rules (hours). Probes go out while a link is
  // idle.
  std::chrono::milliseconds user_timeout{0};
  // Connections that have not proved the key yet: how many at once, and for how long each.
  int half_open = 32;
  std::chrono::milliseconds handshake_timeout{10000};
};

// Rank `rank` of `size`. Listens at once, on a port of the system's choice. All ranks of one communicator give the
// same nonce and epoch, and others give other ones: a connection that was meant for another communicator is turned
// away.
RINGFOLD_API Result<std::unique_ptr<Transport>> make(int rank, int size, uint64_t communicator_nonce, uint32_t epoch,
                                                     const Options& options);

}  // namespace ringfold::transport::tcp
