// Ranks as threads.
#pragma once

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "ringfold/communicator.h"

namespace ringfold::test {

// Runs body(comm) for each of `ranks` communicators of one group, each on its own thread.
template <typename Body>
void on_ranks(int ranks, Body body, double timeout_s = 60) {
  Options options;
  options.timeout_s = timeout_s;
  auto comms = Communicator::init_local(ranks, options);
  ASSERT_TRUE(comms.ok()) << comms.status().to_string();
  std::vector<std::thread> threads;
  for (auto& comm : *comms) threads.emplace_back([&body, &comm] { body(comm); });
  for (auto& thread : threads) thread.join();
}

}  // namespace ringfold::test
