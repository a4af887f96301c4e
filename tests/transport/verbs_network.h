// What the double of libibverbs simulates: devices' objects, and how a write gets from one queue pair to another.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <infiniband/verbs.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "tests/transport/verbs_double.h"

namespace ringfold::transport::test {

struct VerbsDouble::Network {
  // ---- objects; `verbs` is what the transport sees of one ----
  struct Pipe {
    int ends[2] = {-1, -1};
    Pipe() { EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0); }
    ~Pipe() {
      close(ends[0]);
      close(ends[1]);
    }
  };

  struct Context {
    ibv_context verbs{};
    Pipe events;  // of ibv_async_event
  };
  struct Channel {
    ibv_comp_channel verbs{};
    Pipe events;  // of ibv_cq*
  };
  struct Queue {
    ibv_cq verbs{};
    std::deque<ibv_wc> done;
    bool armed = false;
    int events = 0, acknowledged = 0;
  };
  struct Region {
    ibv_mr verbs{};
    int access = 0;
    std::byte* seen = nullptr;  // of memory of another device: its file, mapped
    std::byte* at(uint64_t address) const {
      auto* data = reinterpret_cast<std::byte*>(address);
      return seen == nullptr ? data : seen + (data - static_cast<std::byte*>(verbs.addr));
    }
  };
  struct Flight {
    ibv_send_wr wr{};
    std::vector<ibv_sge> parts;
    std::vector<std::byte> inlined;
    std::chrono::steady_clock::time_point due;
    bool signaled = false;
  };
  struct QueuePair {
    ibv_qp verbs{};
    uint32_t destination = 0, access = 0;
    ibv_qp_cap cap{};
    std::deque<uint64_t> receives;
    std::deque<Flight> flights;
    std::deque<std::pair<uint64_t, bool>> sends;  // wr_id, signaled: what takes room until it is known to be done
  };
  // The object around what the transport sees.
  template <typename T, typename V>
  static T* from(V* verbs) {
    return reinterpret_cast<T*>(reinterpret_cast<char*>(verbs) - offsetof(T, verbs));
  }

  // ---- the network ----
  explicit Network(const Settings& s) : settings(s), random(s.seed), devices(static_cast<size_t>(s.devices)) {
    for (size_t i = 0; i < devices.size(); ++i) {
      ibv_device& d = devices[i];
      std::snprintf(d.name, sizeof d.name, "double%zu", i);
      d.transport_type = s.iwarp ? IBV_TRANSPORT_IWARP : IBV_TRANSPORT_IB;
      list.push_back(&d);
    }
    list.push_back(nullptr);
  }

  const Settings settings;
  mutable std::recursive_mutex mutex;
  std::mt19937 random;
  std::vector<ibv_device> devices;
  std::vector<ibv_device*> list;
  std::map<uint32_t, Region*> regions;  // by key
  std::map<uint32_t, QueuePair*> pairs;
  std::vector<Context*> contexts;
  uint32_t next = 17;
  Live live;
  uint64_t polls = 0;
  int dma_bufs = 0, dma_bufs_ever = 0;
  std::vector<std::string> complaints;
  // faults
  int fail_in = -1, refuse_sends_in = -1, refuse_sends_error = 0, receives_accepted = -1, receives_error = 0;
  int regions_left = -1, regions_error = 0, pairs_left = -1, pairs_error = 0;
  size_t most_registered = SIZE_MAX;
  ibv_wc_status fail_with = IBV_WC_SUCCESS;
  bool held = false, cut = false, removed = false, replace_note = false;
  uint32_t note = 0;

  std::thread wire;
  std::atomic<bool> ends{false};

  void complain(std::string what) { complaints.push_back(std::move(what)); }
  void push(ibv_cq* verbs, const ibv_wc& wc);
  void complete(QueuePair& q, uint64_t id, ibv_wc_status status);
  // To the error state: `first` is what the oldest write ends with, all else is flushed.
  void break_pair(QueuePair& q, ibv_wc_status first);
  const Region* region(uint32_t key, uint64_t address, size_t bytes, const ibv_pd* pd) const;
  void deliver(QueuePair& q);
  void tell_of(QueuePair& p, const Flight& f, size_t bytes);
  int post(QueuePair& q, ibv_send_wr* wr, ibv_send_wr** bad);
  void run_wire();
  void tell(ibv_event_type type, int device = -1);
};

}  // namespace ringfold::transport::test
