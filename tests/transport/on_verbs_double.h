// Ranks over verbs on a network in the process.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/transport/conformance.h"
#include "tests/transport/verbs_double.h"
#include "transports/verbs/verbs.h"

namespace ringfold::transport::test {

inline Fabric fabric_on(const std::shared_ptr<VerbsDouble>& network, int n, const verbs::Options& options) {
  Fabric f = make_fabric(n, [&](int r) { return verbs::make(r, n, 99, options_on(*network, options)); });
  f.keep = network;
  return f;
}

class OnVerbsDouble : public testing::Test {
 protected:
  void build(int n, const VerbsDouble::Settings& settings = {}, const verbs::Options& options = {}) {
    network_ = std::make_shared<VerbsDouble>(settings);
    fabric_ = std::make_unique<Fabric>(fabric_on(network_, n, options));
    ASSERT_EQ(fabric_->ranks.size(), static_cast<size_t>(n));
  }
  Transport& rank(int r) { return *fabric_->ranks[static_cast<size_t>(r)]; }
  bool pump(const std::function<bool()>& done) {
    return transport::test::pump(*fabric_, done, std::chrono::seconds(5));
  }
  // Links between ranks 0 and 1, up.
  void open() {
    there_ = rank(0).open(1, 0);
    here_ = rank(1).open(0, 0);
    ASSERT_TRUE(pump([&] { return there_->writable() && here_->writable(); }));
  }
  void expect_failure(int of, int peer, Code code, const std::string& words) {
    ASSERT_TRUE(pump([&] { return rank(of).failure() != nullptr; }));
    EXPECT_EQ(rank(of).failure()->peer, peer);
    EXPECT_EQ(rank(of).failure()->status.code(), code) << rank(of).failure()->status.to_string();
    EXPECT_NE(rank(of).failure()->status.message().find(words), std::string::npos)
        << rank(of).failure()->status.message();
    EXPECT_FALSE(rank(of).prepare_to_sleep());
    rank(of).awake();
  }
  ~OnVerbsDouble() override {
    fabric_.reset();  // before the network, which looks for what was left
  }

  std::shared_ptr<VerbsDouble> network_;
  std::unique_ptr<Fabric> fabric_;
  Link *there_ = nullptr, *here_ = nullptr;
  std::vector<std::byte> data_ = std::vector<std::byte>(100 << 10);
};

}  // namespace ringfold::transport::test
