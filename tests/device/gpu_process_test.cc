// Ranks that are processes, on real GPUs: memory goes from one to the other as file descriptors, and streams wait for
// each other through it. Skipped, with the reason, where there is no GPU. Processes are forked, so only children may
// start the driver.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>
#include <vector>

#include "device/stream.h"
#include "tests/comm/ranks.h"

namespace ringfold::test {
namespace {

int gpus() {
  int count = 0;
  const auto* d = device::driver();
  return d != nullptr && d->init(0) == 0 && d->device_count(&count) == 0 ? count : 0;
}

bool wait(const device::Moment& moment) {
  for (const auto until = base::Deadline::after(std::chrono::seconds(30)); !until.passed();) {
    auto over = moment.over();
    EXPECT_TRUE(over.ok()) << over.status().to_string();
    if (!over.ok() || *over) return over.ok();
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return false;
}

class GpusOfProcesses : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const pid_t probe = ::fork();
    ASSERT_GE(probe, 0);
    if (probe == 0) ::_exit(gpus() > 0 ? 0 : 77);
    int status = 0;
    ASSERT_EQ(::waitpid(probe, &status, 0), probe);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) GTEST_SKIP() << "no CUDA driver, or none that sees a GPU";
  }
};

TEST_P(GpusOfProcesses, SumValuesExactly) {
  const std::string way = GetParam();
  const Variable how("RINGFOLD_NVLINK", way == "switch" ? "auto" : way);
  const Variable multicast("RINGFOLD_MULTICAST", way == "switch" ? "on" : "off");  // where there are two GPUs on one
  processes(2, patient(), [](Communicator& comm) {
    const int ordinal = comm.rank() % gpus();
    auto context = device::primary_context(ordinal);
    ASSERT_TRUE(context.ok()) << context.status().to_string();
    auto stream = device::OwnStream::make(*context);
    ASSERT_TRUE(stream.ok());
    for (const size_t count : {size_t{1}, size_t{1000}, size_t{100'000}, size_t{5'000'011}}) {
      auto memory = allocate(count * 4, Device{ordinal});
      auto host = device::pin(*context, count * 4);
      ASSERT_TRUE(memory.ok() && host.ok());
      auto* values = reinterpret_cast<float*>(host->get());
      for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i % 1000) + static_cast<float>(comm.rank());
      CallOptions on;
      on.stream = (*stream)->handle();
      auto* bytes = static_cast<std::byte*>(*memory);
      expect_ok((*stream)->to_device(bytes, host->get(), count * 4));
      Work work = comm.all_reduce(*memory, *memory, count, DataType::kF32, kSum, on);
      expect_ok((*stream)->to_host(host->get(), bytes, count * 4));
      auto end = (*stream)->now();
      ASSERT_TRUE(end.ok() && wait(*end));
      expect_ok(work);
      for (size_t i = 0; i < count; ++i) ASSERT_EQ(values[i], 2 * static_cast<float>(i % 1000) + 1) << i;
      // Once more where the memory lies, if the system lets processes open it: with a GPU each, without a copy.
      const Status shared = comm.share_memory(bytes, count * 4);
      if (!shared.ok()) {
        EXPECT_EQ(shared.code(), Code::kUnavailable) << shared.to_string();
        std::printf("%s\n", shared.to_string().c_str());
      } else {
        expect_ok(comm.all_reduce(bytes, bytes, count, DataType::kF32, kSum, on));
        expect_ok((*stream)->to_host(host->get(), bytes, count * 4));
        auto again = (*stream)->now();
        ASSERT_TRUE(again.ok() && wait(*again));
        for (size_t i = 0; i < count; ++i) ASSERT_EQ(values[i], 4 * static_cast<float>(i % 1000) + 2) << i;
        expect_ok(comm.unshare_memory(bytes));
      }
      deallocate(*memory);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(By, GpusOfProcesses, testing::Values("auto", "switch", "copies", "off"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace ringfold::test
