#include "transports/shm/reads.h"

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <vector>

#include "base/stores.h"

namespace ringfold::shm {
namespace {

// In copies within a cache, of which the two through a slot are some three, as they take their lines from another.
constexpr uint64_t kMostCopies = 3;

bool measure(pid_t pid, uint64_t sample) {
  constexpr int kTimes = 8;
  std::vector<std::byte> here(kSampleBytes, std::byte{1}), landing(kSampleBytes, std::byte{2});
  uint64_t read = ~uint64_t{0}, copied = ~uint64_t{0}, calls = 0;
  for (int i = 0; i < kTimes; ++i) {
    uint64_t begin = base::ticks();
    if (!read_memory(pid, sample, landing.data(), kSampleBytes, &calls)) return false;
    read = std::min(read, base::ticks() - begin);
    begin = base::ticks();
    std::memcpy(landing.data(), here.data(), kSampleBytes);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    copied = std::min(copied, base::ticks() - begin);
  }
  return read <= kMostCopies * copied;
}

}  // namespace

bool read_memory(pid_t pid, uint64_t address, std::byte* destination, size_t bytes, uint64_t* calls) {
  while (bytes > 0) {
    const iovec local{destination, bytes};
    const iovec remote{reinterpret_cast<void*>(address), bytes};
    const ssize_t n = process_vm_readv(pid, &local, 1, &remote, 1, 0);
    ++*calls;
    if (n <= 0) return false;
    destination += n;
    address += static_cast<uint64_t>(n);
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

const std::byte* sample() {
  static const std::vector<std::byte> kSample(kSampleBytes, std::byte{1});  // written, so that its pages exist
  return kSample.data();
}

bool reads_pay(pid_t pid, uint64_t sample) {
  static const bool kPay = measure(pid, sample);
  return kPay;
}

}  // namespace ringfold::shm
