// Links over RDMA: InfiniBand and RoCE, through libibverbs. What belongs to a put, and why, is told in link.cc; how
// devices, ports and GIDs are chosen in address.h; docs/rdma.md has the whole.
//
// Wiring needs no connection manager: the bootstrap, which has proved the key to everybody, carries the numbers of
// the queue pairs and the key to one block of memory of each rank. iWARP, which would need one, has no write with
// immediate data either, and is refused.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ringfold/transport.h"
#include "transports/verbs/kernel.h"

namespace ringfold::verbs {

struct Library;

struct Options {
  // Equal on all ranks: the two ends of a link compare.
  int slots = 8;                  // 1 to 256
  size_t slot_bytes = 128 << 10;  // largest put, 256 bytes to 64 MiB, in whole cache lines
  // "mlx5_0", "mlx5_0:1" (a port); in order of preference. Empty: all that are active.
  std::vector<std::string> devices;
  int gid_index = -1;  // of RoCE and routed InfiniBand; -1: chosen
  int rails = 1;       // ports over which the puts of a link take turns, at most kMostRails
  // From this size on puts from ringfold::allocate are sent from where they are; smaller ones are copied, which
  // retires them at once.
  size_t region_bytes = 8 << 10;
  int inline_bytes = 256;  // asked of the device: up to here a put is copied into its work request
  int traffic_class = 0;   // of RoCE v2: the IP header's byte; lossless networks give it a meaning
  int service_level = 0;   // of InfiniBand
  int ack_timeout = 16;    // an unanswered packet is sent again after 4.096 us * 2^ack_timeout (0.27 s), 1 to 31,
  int retries = 7;         // so often, before its peer is lost: 1 to 7
  // stop() waits so long for peers to confirm what was sent to them.
  std::chrono::milliseconds drain{500};
  const Library* api = nullptr;  // null: rdma-core's; not null: a test's
  std::string root;              // stands before /sys and /dev: a test's
};

inline constexpr int kMostRails = 4;

// What is there, for people.
struct PortReport {
  std::string device;
  int port = 0;
  std::string state;              // "active", "down", ...
  std::string link;               // "RoCE", "InfiniBand"
  std::string netdev;             // the network interface under RoCE
  int mtu = 0;                    // active, bytes
  double gbps = 0;                // signalling rate
  bool dma_buf = false;           // its device can register GPU memory
  std::vector<std::string> gids;  // "1: 10.77.0.1 (RoCE v2)"
  std::vector<Finding> findings;  // if it is not usable why not, else what could be better
  bool usable = false;
  std::string name() const { return device + ":" + std::to_string(port); }
};
struct Survey {
  std::vector<PortReport> ports;
  Finding none;  // why there is no port at all
  bool usable() const;
};
RINGFOLD_API Survey survey(const Options& options = {});

// Registers `bytes` of new memory with every usable port's device, as links do, and gives them back. Not ok: why that
// fails, and what to do.
RINGFOLD_API Status try_memory(size_t bytes, const Options& options = {});
// What a link of one peer and lane registers.
RINGFOLD_API size_t link_bytes(const Options& options);

class RINGFOLD_API Transport : public transport::Transport {
 public:
  // "rxe0:1 to rxe0:1, RoCE v2, 10.77.0.1 to 10.77.0.2, one subnet, MTU 4096"; "" before add_peer().
  virtual std::string route(int peer) const = 0;
  // After all ranks have added each other: do bytes really get through? Returns when every peer's greeting is here,
  // or at `until`; by peer, why not ("": it does).
  virtual std::vector<std::string> probe(std::chrono::steady_clock::time_point until) = 0;
};

// Rank `rank` of `size`. kUnavailable, with the reason, where there is no usable port. All ranks give the same nonce.
RINGFOLD_API Result<std::unique_ptr<Transport>> make(int rank, int size, uint64_t communicator_nonce,
                                                     const Options& options = {});

}  // namespace ringfold::verbs
