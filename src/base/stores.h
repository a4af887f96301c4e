// Which kind of stores: ordinary ones, which leave what they write in the cache, or streaming ones, which go around
// it.
//
// An ordinary store needs the line for itself. Where another core holds a copy, because it has read what lay there
// before, that takes a message to this core for each line, one after another: 2.3 GB/s on two cores of a Zen 5 with
// caches of their own, whatever the size, where streaming stores reach 28 to 40 GB/s and the reader is not slower
// afterwards. On two threads of one core, which share their caches, ordinary stores reach 50 GB/s and streaming ones
// 20 to 28. Beyond the caches streaming stores spare the read of each line. Nobody tells a process which it has
// (under a hypervisor it changes), so Stores measures: it times the pieces that are written anyway, keeps to the kind
// that has been faster, and tries the other now and then.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace ringfold::base {

// A counter of some hundreds of millions a second or more, cheaper to read than a clock, for ratios only.
inline uint64_t ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t t;
  asm volatile("mrs %0, cntvct_el0" : "=r"(t));
  return t;
#else
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
}

// The choice for writes of one sort: of one plan's folds, say. One thread at a time.
class Stores {
 public:
  static constexpr size_t kLeast = 2048;  // smaller pieces are written with ordinary stores, without a look at this
  // Timing a piece and judging by it takes 60 ns (Intel Xeon), as long as copying 2 KiB does. So ordinary stores are
  // timed once in so many bytes; streaming ones always, as a first choice of these is often wrong: of small pieces
  // the first in each page is the one that costs its fault.
  static constexpr size_t kTimedBytes = 32 << 10;

  // `cached`: what is written, and all that is worked on meanwhile, finds room in the last-level cache. Somebody will
  // want it from there, which does not show in these times, so streaming stores must be much faster to be chosen.
  explicit Stores(bool cached = true) : gain_(cached ? 3.0F : 1.1F) {}

  // Calls write(streaming), and times it at times.
  template <typename Write>
  void write(size_t bytes, Write&& write) {
    if (!timed(bytes)) return write(false);
    const bool streaming = next();
    const uint64_t begin = ticks();
    write(streaming);
    took(streaming, static_cast<float>(ticks() - begin) / static_cast<float>(bytes));
  }

  // What write() is made of. Is this piece to be timed? If not, it is written with ordinary stores.
  bool timed(size_t bytes) {
    if (bytes < kLeast) return false;
    if (untimed_ >= bytes) {
      untimed_ -= static_cast<uint32_t>(bytes);
      return false;
    }
    if (!streaming_ && tried_ == 2 * kFirstTries && tries_ == 0) untimed_ = kTimedBytes;
    return true;
  }
  // A piece cost so much for each byte, in any unit.
  bool next();
  void took(bool streaming, float cost);
  bool streaming() const { return streaming_; }

 private:
  static constexpr uint32_t kFirstTries = 3;  // of each kind; the least counts, as first touches cost page faults
  static constexpr float kChange = 2.5F;      // of the chosen kind's cost, that makes the other worth a try
  static constexpr uint32_t kPeriod = 64;     // pieces between tries of the other kind, times how much slower it was

  void decide();

  float gain_;
  std::array<float, 2> cost_{};  // by kind
  float decided_ = 0;            // cost of the chosen kind when it was chosen
  uint32_t tried_ = 0;           // first tries
  uint32_t since_ = 0;           // pieces since the last try of the other kind
  uint32_t tries_ = 0;           // of the other kind, to come
  uint32_t untimed_ = 0;         // bytes that may be written before the next piece is timed
  bool streaming_ = false;
};

// A choice for each magnitude of sizes.
class StoresBySize {
 public:
  Stores& of(size_t bytes) { return by_size_[std::min<size_t>(std::bit_width(bytes), by_size_.size() - 1)]; }

 private:
  std::array<Stores, 24> by_size_;
};

}  // namespace ringfold::base
