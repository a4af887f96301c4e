// A program that is linked with the CUDA parts starts on any machine, and says why no GPU is available.
#include <gtest/gtest.h>

#include "kernels/cuda/cuda.h"

namespace ringfold::test {
namespace {

TEST(Cuda, AProgramStartsWithoutADriverAndSaysWhyThereIsNoGpu) {
  const std::string& reason = kernels::cuda::why_no_gpu();
  if (reason.empty()) {
    EXPECT_NE(kernels::cuda::describe_gpu(), "");
    EXPECT_NE(kernels::cuda::find_reducer(DataType::kF32, ReduceKind::kSum).fold, nullptr);
    return;
  }
  EXPECT_TRUE(reason.find("driver") != std::string::npos || reason.find("GPU") != std::string::npos ||
              reason.find("CUDA") != std::string::npos)
      << reason;
  EXPECT_EQ(kernels::cuda::describe_gpu(), "");
  EXPECT_EQ(kernels::cuda::find_reducer(DataType::kF32, ReduceKind::kSum).fold, nullptr);
  EXPECT_EQ(kernels::cuda::find_codec(CodecKind::kInt8).encode, nullptr);
  GTEST_SKIP() << "kernels do not run here: " << reason;
}

}  // namespace
}  // namespace ringfold::test
