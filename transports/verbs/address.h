// What ranks tell each other about their ports, and how two of them choose what joins them.
//
// A rank offers all of its ports. Both ends of a pair look at both offers in the same order (the lower rank's first)
// and so make the same choice without asking: ports whose addresses lie in one subnet before those that a router
// would have to join, RoCE v2 before v1 (which no router forwards), link-local addresses last, then the faster. What
// this says is only what should work: the greeting of Transport::probe() shows whether it does.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::verbs {

enum class GidKind : uint8_t { kInfiniBand, kRoceV1, kRoceV2 };

struct Gid {
  std::array<uint8_t, 16> bytes{};
  int index = 0;
  GidKind kind = GidKind::kInfiniBand;
  int prefix = 0;  // bits of the subnet's part; 0: not known
  bool ipv4() const;
  bool link_local() const;
  std::string to_string() const;  // "10.77.0.1", "fe80::1"
};

struct Port {
  std::string device;
  int number = 1;
  bool ethernet = true;
  uint16_t lid = 0;
  int mtu = 0;
  int mbps = 0;
  uint32_t control_key = 0;  // remote key of the control block on this device
  std::vector<Gid> gids;
  std::vector<uint32_t> queue_pairs;  // by peer; the own place is 0
  std::string name() const { return device + ":" + std::to_string(number); }
};

struct Address {
  uint64_t communicator = 0;
  int rank = 0, size = 0;
  int slots = 0;
  size_t slot_bytes = 0;
  uint64_t control = 0;  // address of the control block
  std::vector<Port> ports;

  std::string to_string() const;
  static Result<Address> parse(std::string_view text);
};

// Two ports that join a pair of ranks: indices into their lists.
struct Route {
  int mine = 0, theirs = 0;       // ports
  int my_gid = 0, their_gid = 0;  // of their lists; -1: no GID is needed
  int mtu = 0;
  std::string why;
};

// The best routes from `mine` to `theirs`, each port in one at most, all of one quality; at most `rails`.
// kUnavailable says why there is none.
Result<std::vector<Route>> choose_routes(const Address& mine, const Address& theirs, int rails);

}  // namespace ringfold::verbs
