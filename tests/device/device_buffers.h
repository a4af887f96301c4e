// The buffers of a call on device memory, with the oracle of tests/exec/call.h; and what must hold after every test.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/comm/ranks.h"
#include "tests/device/cuda_double.h"

namespace ringfold::test {

struct OnDevice {
  bool input = true, output = true;
};

// Of one rank; made on a thread that has a device. In place both are on the device if one is.
class DeviceBuffers {
 public:
  DeviceBuffers(const Call& call, int rank, OnDevice where = {});
  ~DeviceBuffers();
  DeviceBuffers(const DeviceBuffers&) = delete;
  DeviceBuffers& operator=(const DeviceBuffers&) = delete;

  const void* input() const { return input_; }
  void* output() const { return output_; }
  // "": the result is right, and nothing else was written.
  std::string check();

 private:
  // A copy of host memory on the device, with guards around it.
  struct Copy {
    std::byte* memory = nullptr;
    size_t bytes = 0;
    Copy() = default;
    Copy(const std::byte* host, size_t size);
    ~Copy();
    bool guarded() const;
    std::byte* data() const;
  };
  static constexpr size_t kGuard = 256;

  Buffers host_;
  size_t output_bytes_ = 0;
  std::unique_ptr<Copy> first_, second_;
  const std::byte* input_ = nullptr;
  std::byte* output_ = nullptr;
};

// Sees to it that nothing is left behind, and that no rule of the driver was broken. Calls are staged, or go from GPU
// to GPU where they can if RINGFOLD_TEST_NVLINK says so (meson.build).
class DeviceTest : public testing::Test {
 protected:
  DeviceTest();
  void TearDown() override;
  // Runs `play` on all ranks, each with a device.
  static void each(Ranks& ranks, const std::function<void(Communicator&)>& play);
  // Starts the call, waits for it, checks the result.
  static void perform(Communicator& comm, const Call& call, OnDevice where = {});
  void forget_what_is_left() { before_ = cuda::live(); }

 private:
  const Variable nvlink_;
  cuda::Live before_;
};

}  // namespace ringfold::test
