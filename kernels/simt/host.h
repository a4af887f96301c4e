// The executor of the kernel bodies on a CPU, and with it what they may ask of any executor (kernels/cuda/device.cuh
// is the other one).
//
// A *block* has threads() and warps(), which run a function for each of its threads or warps, and index() and count()
// among the blocks of a launch. A *warp* is 32 lanes in step. A value that each lane has its own of is a Reg, and
// what the lanes do with them is in each(); what stands outside of each() is the same for all lanes. On a GPU a Reg
// is a register and each() calls once; here a Reg is 32 values and each() is a loop, so shuffles need no threads.
//
// Here a block is one thread, which runs its warps one after another; blocks of a launch run at the same time.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "kernels/simt/memory.h"

namespace ringfold::kernels::simt {

class HostWarp {
 public:
  static constexpr int kLanes = 32;
  template <class T>
  struct Reg {
    T& operator[](int lane) { return value[lane]; }
    const T& operator[](int lane) const { return value[lane]; }
    T value[kLanes] = {};
  };

  template <class F>
  void each(F f) {
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
  }
  // What lane ^ mask has.
  template <class T>
  Reg<T> exchange(const Reg<T>& v, int mask) {
    Reg<T> r;
    for (int lane = 0; lane < kLanes; ++lane) r[lane] = v[lane ^ mask];
    return r;
  }
  // What lane from(lane) has.
  template <class T, class F>
  Reg<T> fetch(const Reg<T>& v, F from) {
    Reg<T> r;
    for (int lane = 0; lane < kLanes; ++lane) r[lane] = v[from(lane)];
    return r;
  }
  // Bit i: lane i says so.
  uint32_t ballot(const Reg<bool>& v) {
    uint32_t bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= uint32_t{v[lane]} << lane;
    return bits;
  }
  uint32_t sum(const Reg<uint32_t>& v) {
    uint32_t all = 0;
    for (int lane = 0; lane < kLanes; ++lane) all += v[lane];
    return all;
  }
  // True for lanes of which no higher one has the same value.
  Reg<bool> last_of_equals(const Reg<uint32_t>& v) {
    Reg<bool> last;
    for (int lane = 0; lane < kLanes; ++lane) {
      last[lane] = true;
      for (int higher = lane + 1; higher < kLanes; ++higher) last[lane] &= v[higher] != v[lane];
    }
    return last;
  }
  void sync() {}
  // 4 KiB of the warp's own.
  uint32_t* scratch() { return scratch_; }

 private:
  uint32_t scratch_[1024];
};

class HostBlock {
 public:
  HostBlock(size_t index, size_t count, size_t warps) : index_(index), count_(count), warps_(warps) {}
  size_t index() const { return index_; }
  size_t count() const { return count_; }
  template <class F>
  void threads(F f) {
    for (size_t t = 0; t < 32 * warps_; ++t) f(t, 32 * warps_);
  }
  // f(warp, index of the warp among those of all blocks, their number)
  template <class F>
  void warps(F f) {
    HostWarp warp;
    for (size_t w = 0; w < warps_; ++w) f(warp, index_ * warps_ + w, count_ * warps_);
  }
  // One answer of all threads: false if any said so. Orders what they did before it and after it.
  bool all(bool yes) { return yes; }
  void sync() {}

 private:
  size_t index_, count_, warps_;
};

// A launch: `body` for each of `blocks` blocks, on threads of their own.
template <class Body>
void launch_on_host(size_t blocks, size_t warps, const Body& body) {
  std::vector<std::thread> threads;
  for (size_t b = 1; b < blocks; ++b) {
    threads.emplace_back([&, b] {
      HostBlock block(b, blocks, warps);
      body(block);
    });
  }
  HostBlock first(0, blocks, warps);
  body(first);
  for (auto& thread : threads) thread.join();
}

}  // namespace ringfold::kernels::simt
