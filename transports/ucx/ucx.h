// Links over UCX: the portable way to whatever network UCX knows (InfiniBand, RoCE, Slingshot, several rails, its own
// shared memory and TCP). Taken when it is asked for by name.
//
// UCX is loaded at run time: without libucp.so.0 make() says so and all else works. Its settings are UCX's own, UCX_*
// in the environment (UCX_TLS, UCX_NET_DEVICES, ...), read when the first transport of the process is made. Where the
// environment is silent, this transport sets what it needs; settings() tells.
//
// Trust. UCX opens ports and queue pairs of its own, which ask nobody for a key. Workers' addresses travel over the
// authenticated bootstrap only, and messages without the communicator's tag are dropped, but UCX itself parses what
// comes from anybody who reaches the network: use it where the network is trusted.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ringfold/transport.h"

namespace ringfold::transport::ucx {

struct Options {
  size_t slot_bytes = 1 << 20;  // largest put, 64 bytes to 16 MiB; equal on all ranks
  int slots = 16;               // puts before the receiver must release one, 1 to 1024; equal on all ranks
};

// Rank `rank` of `size`. kUnavailable when UCX is missing, or finds nothing to talk over: the message says what to
// do.
RINGFOLD_API Result<std::unique_ptr<Transport>> make(int rank, int size, uint64_t communicator_nonce, uint32_t epoch,
                                                     const Options& options = {});

// For `ringfold info` and `doctor`: is UCX there? Loads it, but opens no device.
struct Presence {
  bool there = false;
  std::string text;  // its version, or why not
};
Presence presence();

// The settings of UCX that are not its defaults: what the environment says, and what this transport adds.
struct Setting {
  std::string name, value, why;  // "UCX_TLS", "rc_v,ud_v", "environment"
};
std::vector<Setting> settings();

// Settings of the environment that cannot work here, and what to set instead.
struct Remark {
  std::string text, mend;
};
std::vector<Remark> remarks();

}  // namespace ringfold::transport::ucx
