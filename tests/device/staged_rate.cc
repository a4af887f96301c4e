// What staging costs (comm/staging.h): an all_reduce of device memory of two processes, beside the two things that it
// cannot be faster than, the same call on host memory and the copies to the host and back.
//   gpu_staged_rate [MIB]
// Exit status: 0, or 1 where something is wrong, 2 where it is not one of two ranks, 77 where there is no GPU.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "device/stream.h"
#include "ringfold/ringfold.hpp"

namespace {

using namespace ringfold;

int gpus() {
  int count = 0;
  const auto* d = device::driver();
  return d != nullptr && d->init(0) == 0 && d->device_count(&count) == 0 ? count : 0;
}

void must(const Status& s, const char* what) {
  if (s.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, s.to_string().c_str());
  std::exit(1);
}
template <typename T>
T taken(Result<T> made, const char* what) {
  must(made.ok() ? Status() : made.status(), what);
  return *std::move(made);
}

void wait(device::OwnStream& stream) {
  const device::Moment end = taken(stream.now(), "event");
  while (!taken(end.over(), "event")) std::this_thread::sleep_for(std::chrono::microseconds(20));
}

// Seconds of the slower rank, the median of five.
double seconds_of(Communicator& comm, const std::function<void()>& body) {
  std::vector<double> all;
  for (int i = 0; i < 6; ++i) {
    must(comm.barrier().wait(), "barrier");
    const auto begin = std::chrono::steady_clock::now();
    body();
    double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    must(comm.all_reduce(&s, &s, 1, DataType::kF64, kMax).wait(), "all_reduce");
    if (i > 0) all.push_back(s);
  }
  std::sort(all.begin(), all.end());
  return all[2];
}

int rank_main(size_t bytes) {
  Communicator comm = taken(Communicator::init(), "init");
  const int ordinal = comm.rank() % gpus();
  const device::Context context = taken(device::primary_context(ordinal), "context");
  void* const on_gpu = taken(allocate(bytes, Device{ordinal}), "device memory");
  device::Pinned host = taken(device::pin(context, bytes), "pinned memory"),
                 back = taken(device::pin(context, bytes), "pinned memory");
  auto in = taken(device::OwnStream::make(context), "stream"),
       out = taken(device::OwnStream::make(context), "stream");
  auto* const values = reinterpret_cast<float*>(host.get());
  const size_t count = bytes / sizeof(float);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(comm.rank() + 1);
  auto* const device = static_cast<std::byte*>(on_gpu);
  must(in->to_device(device, host.get(), bytes), "copy");
  wait(*in);

  must(comm.all_reduce(on_gpu, on_gpu, count, DataType::kF32).wait(), "all_reduce");
  must(in->to_host(back.get(), device, bytes), "copy");
  wait(*in);
  for (size_t i = 0; i < count; ++i) {
    if (reinterpret_cast<float*>(back.get())[i] == 3) continue;
    std::fprintf(stderr, "element %zu is wrong\n", i);
    return 1;
  }
  const double staged = seconds_of(
      comm, [&] { must(comm.all_reduce(on_gpu, on_gpu, count, DataType::kF32, kAvg).wait(), "all_reduce"); });
  const double loopback = seconds_of(
      comm, [&] { must(comm.all_reduce(values, values, count, DataType::kF32, kAvg).wait(), "all_reduce"); });
  // Both ways at the same time, as staging does.
  const double copies = seconds_of(comm, [&] {
    must(in->to_host(back.get(), device, bytes / 2), "copy");
    must(out->to_device(device + bytes / 2, host.get() + bytes / 2, bytes / 2), "copy");
    must(in->to_host(back.get() + bytes / 2, device, bytes / 2), "copy");
    must(out->to_device(device + bytes / 2, host.get() + bytes / 2, bytes / 2), "copy");
    wait(*in);
    wait(*out);
  });
  deallocate(on_gpu);
  if (comm.rank() != 0) return 0;
  const double bound = std::max(loopback, copies), gigabytes = static_cast<double>(bytes) / 1e9;
  std::printf(
      "staged all_reduce, 2 processes, %zu MiB: %.2f GB/s, %.1f %% of the slower of the call on host memory (%.2f "
      "GB/s) "
      "and the copies (%.2f GB/s; goal: 90 %%)\n",
      bytes >> 20, gigabytes / staged, 100 * bound / staged, gigabytes / loopback, gigabytes / copies);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (std::getenv("RINGFOLD_RANK") == nullptr) {
    std::fprintf(stderr, "start it by `ringfold run -n 2`, with RINGFOLD_NVLINK=off\n");
    return 2;
  }
  if (gpus() == 0) {
    std::puts("SKIPPED: no CUDA driver, or none that sees a GPU");
    return 77;
  }
  const size_t mib = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 256;
  return rank_main(mib << 20);
}
