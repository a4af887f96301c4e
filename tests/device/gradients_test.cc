// Gradients that are made on a device: reduced where they are, and on the host when they are reduced.
#include <cstring>

#include "sync/bucket.h"
#include "tests/device/device_buffers.h"

namespace ringfold::test {
namespace {

// As a training program's tensors are.
class OnDouble final : public sync::DeviceGradients {
 public:
  ~OnDouble() override { cuda::free(memory_); }
  Result<float*> make(size_t elems) override {
    cuda::free(memory_);
    memory_ = cuda::allocate(elems * sizeof(float));
    elems_ = elems;
    zero();
    return static_cast<float*>(memory_);
  }
  void zero() override { std::memset(seen(), 0, elems_ * sizeof(float)); }
  void wait() override { ++waits; }
  void fetch(float* to, size_t offset, size_t elems) override {
    std::memcpy(to, seen() + offset, elems * sizeof(float));
  }
  float* seen() const { return reinterpret_cast<float*>(cuda::alias(memory_)); }
  int waits = 0;

 private:
  void* memory_ = nullptr;
  size_t elems_ = 0;
};

class GradientsOnADevice : public DeviceTest {};

TEST_F(GradientsOnADevice, AreReducedThereAndThenOnTheHost) {
  const Variable nvlink("RINGFOLD_NVLINK", "auto");
  constexpr size_t kCounts[] = {5000, 7, 30'000};
  for (const bool scatter : {false, true}) {
    Ranks ranks(2);
    each(ranks, [&](Communicator& comm) {
      auto device = std::make_shared<OnDouble>();
      sync::BucketOptions options{.bucket_bytes = 32 << 10, .first_bucket_bytes = 8 << 10};
      options.scatter = scatter;
      auto made = sync::BucketReducer::make(comm, kCounts, options);
      ASSERT_TRUE(made.ok());
      EXPECT_EQ((*made)->device_gradient(0), nullptr);
      made->reset();
      options.device = device;
      made = sync::BucketReducer::make(comm, kCounts, options);
      ASSERT_TRUE(made.ok());
      sync::BucketReducer& reducer = **made;
      for (int step = 1; step <= 3; ++step) {
        const int through_host = cuda::calls("cuMemcpyHtoDAsync");
        reducer.begin();
        for (size_t p = std::size(kCounts); p-- > 0;) {
          auto* gradient = reinterpret_cast<float*>(cuda::alias(reducer.device_gradient(p)));
          EXPECT_EQ(gradient[kCounts[p] - 1], 0.0f);
          for (size_t i = 0; i < kCounts[p]; ++i) {
            gradient[i] += static_cast<float>(static_cast<size_t>(step * (comm.rank() + 1)) * (i % 50) + p);
          }
          reducer.ready(p);
        }
        expect_ok(reducer.finish());
        EXPECT_EQ(cuda::calls("cuMemcpyHtoDAsync"), through_host);
        std::vector<bool> mine(reducer.all().size(), !scatter);
        for (size_t b = 0; scatter && b < reducer.buckets(); ++b) {
          std::fill_n(mine.begin() + static_cast<std::ptrdiff_t>(reducer.block(b).offset), reducer.block(b).elems,
                      true);
        }
        for (size_t p = 0; p < std::size(kCounts); ++p) {
          for (size_t i = 0; i < kCounts[p]; ++i) {
            if (!mine[reducer.offset(p) + i]) continue;
            const auto mean = static_cast<float>(static_cast<size_t>(3 * step) * (i % 50) + 2 * p) / 2;
            ASSERT_EQ(reducer.gradient(p)[i], mean) << p << ", " << i;
          }
        }
      }
      EXPECT_EQ(device->waits, 3 * static_cast<int>(reducer.buckets()));
    });
  }
}

}  // namespace
}  // namespace ringfold::test
