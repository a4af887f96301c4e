// The suite that every transport passes. A transport's tests instantiate it, in this namespace, for its fabrics:
//
//   INSTANTIATE_TEST_SUITE_P(Tcp, Conformance, testing::Values(FabricKind{"ipv4", make_ipv4}), fabric_name);
//
// The tests of conformance.cc drive all ranks from one thread; of those on sleeping and waking (conformance_sleep.cc)
// some give every rank a thread of its own, and are skipped for fabrics that cannot do that.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "ringfold/transport.h"

namespace ringfold::transport::test {

// The transports of ranks 0..n-1 of one communicator, wired: every rank has add_peer()ed every other one.
struct Fabric {
  std::shared_ptr<void> keep;  // what must outlive the transports: a hub, a virtual network
  std::vector<std::unique_ptr<Transport>> ranks;
  std::function<void()>
      pass_time;  // lets virtual time pass; called by every waiting loop. Null: time passes by itself

  Fabric() = default;
  Fabric(Fabric&&) = default;
  Fabric& operator=(Fabric&&) = delete;
  ~Fabric() { ranks.clear(); }
};

struct FabricKind {
  std::string name;                   // letters, digits, underscores
  std::function<Fabric(int n)> make;  // fails the running test (ADD_FAILURE) and returns fewer ranks when it cannot
  bool threads = true;                // each rank may be driven by its own thread
  bool exact_credit = true;           // each release gives one credit; false: a byte stream's flow control, in pieces
};
inline void PrintTo(const FabricKind& kind, std::ostream* out) { *out << kind.name; }
inline std::string fabric_name(const testing::TestParamInfo<FabricKind>& info) { return info.param.name; }

// Wires transports that need nothing but each other's addresses: every add_peer() of every pair.
void wire(const std::vector<std::unique_ptr<Transport>>& ranks);

// The fabric of what make(rank) gives for each of `n` ranks, wired; a test that cannot have it fails.
template <typename Make>
Fabric make_fabric(int n, Make&& make) {
  Fabric fabric;
  for (int r = 0; r < n; ++r) {
    auto made = make(r);
    if (!made.ok()) {
      ADD_FAILURE() << made.status().to_string();
      return fabric;
    }
    fabric.ranks.push_back(*std::move(made));
  }
  wire(fabric.ranks);
  return fabric;
}

// The content of message `k` of stream `stream`: every byte depends on its place, so shifted or stale bytes show.
std::vector<std::byte> pattern(uint64_t stream, uint64_t k, size_t bytes);

// Progresses all ranks until `done`; false after `limit`.
bool pump(Fabric& fabric, const std::function<bool()>& done,
          std::chrono::milliseconds limit = std::chrono::seconds(20));

class Conformance : public testing::TestWithParam<FabricKind> {
 protected:
  // Makes the fabric of this test. Use with ASSERT_NO_FATAL_FAILURE.
  void build(int n);
  Transport& rank(int r) { return *fabric_->ranks[static_cast<size_t>(r)]; }
  bool pump_until(const std::function<bool()>& done, std::chrono::milliseconds limit = std::chrono::seconds(20)) {
    return pump(*fabric_, done, limit);
  }
  // One message, waiting for credit.
  void send(Link* link, const std::vector<std::byte>& data, const Preamble* preamble = nullptr);
  // The oldest arrival's bytes and preamble; waits for it, fetches it when it is remote, and releases it.
  struct Message {
    std::vector<std::byte> data;
    std::optional<Preamble> preamble;
  };
  Message receive(Link* link);

  std::unique_ptr<Fabric> fabric_;
};

}  // namespace ringfold::transport::test
