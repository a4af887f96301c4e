// The C interface on device memory and streams, through libringfold.so.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <thread>

#include "ringfold/ringfold.h"
#include "tests/device/cuda_double.h"

namespace {

namespace cuda = ringfold::test::cuda;

const bool kChosen = ::setenv("RINGFOLD_CUDA", RF_CUDA_DOUBLE, 1) == 0;

TEST(CInterfaceOnDevices, SumsInTheOrderOfAStream) {
  ASSERT_TRUE(kChosen);
  ringfold_comm* comms[2];
  ASSERT_EQ(ringfold_comm_init_local(comms, 2, nullptr), RINGFOLD_OK) << ringfold_last_error();
  std::thread ranks[2];
  for (int r = 0; r < 2; ++r) {
    ranks[r] = std::thread([comm = comms[r], r] {
      cuda::set_device(r);
      auto* stream = cuda::make_stream();
      void* memory = nullptr;
      ASSERT_EQ(ringfold_allocate_on_device(&memory, 4, -1), RINGFOLD_OK) << ringfold_last_error();
      auto* value = reinterpret_cast<int*>(cuda::alias(memory));
      int seen = 0;
      cuda::launch(stream, [=] { *value = 40 + r; });
      ringfold_call_options options = RINGFOLD_CALL_OPTIONS_INIT;
      options.stream = stream;
      ringfold_work* work = nullptr;
      ASSERT_EQ(ringfold_all_reduce(comm, memory, memory, 1, RINGFOLD_I32, RINGFOLD_SUM, &options, &work),
                RINGFOLD_OK)
          << ringfold_last_error();
      ringfold_work_destroy(work);
      cuda::launch(stream, [&] { seen = *value; });
      ASSERT_TRUE(cuda::synchronize(stream));
      EXPECT_EQ(seen, 81);
      ringfold_deallocate(memory);
      cuda::destroy(stream);
    });
  }
  for (auto& rank : ranks) rank.join();
  for (auto* comm : comms) ringfold_comm_destroy(comm);
  void* none = nullptr;
  EXPECT_EQ(ringfold_allocate_on_device(&none, 4, 99), RINGFOLD_INVALID);
  EXPECT_EQ(none, nullptr);
}

}  // namespace
