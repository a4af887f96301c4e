// ringfold::allocate and the registry that transports ask about addresses.
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <random>
#include <thread>
#include <vector>

#include "base/region.h"
#include "tests/support/expect_log.h"

namespace ringfold {
namespace {

size_t open_fds() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

TEST(Region, MemoryIsZeroedAlignedAndGivenBack) {
  deallocate(*allocate(1));  // the directory stays
  const size_t fds = open_fds();
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{4096}, size_t{100000}, size_t{3} << 20}) {
    auto memory = allocate(bytes);
    ASSERT_TRUE(memory.ok()) << memory.status().to_string();
    const size_t align = bytes >= (2 << 20) ? 2 << 20 : 4096;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(*memory) % align, 0u);
    auto* data = static_cast<unsigned char*>(*memory);
    for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(data[i], 0);
    for (size_t i = 0; i < bytes; ++i) data[i] = 1;
    deallocate(*memory);
  }
  EXPECT_EQ(open_fds(), fds);
}

TEST(Region, MoreThanThereIsIsAnError) {
  for (size_t bytes : {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 8})
    EXPECT_EQ(allocate(bytes).status().code(), Code::kUnavailable);
  EXPECT_EQ(allocate_buffer<char>(SIZE_MAX).status().code(), Code::kUnavailable);
}

TEST(Region, GivingBackTwiceOrSomethingElseIsLoggedAndHarmless) {
  auto memory = allocate(10000);
  ASSERT_TRUE(memory.ok());
  deallocate(nullptr);
  test::expect_log("this is not memory from ringfold::allocate");
  int other = 0;
  deallocate(&other);
  deallocate(static_cast<char*>(*memory) + 1);
  static_cast<char*>(*memory)[9999] = 1;
  deallocate(*memory);
  deallocate(*memory);
}

TEST(Region, AnAddressIsFoundExactlyInItsRegion) {
  region::Finder finder;
  auto a = allocate_buffer<std::byte>(8192);
  auto b = allocate_buffer<std::byte>(10000);
  ASSERT_TRUE(a.ok() && b.ok());
  for (const auto& [memory, bytes] : {std::pair{a->get(), size_t{8192}}, std::pair{b->get(), size_t{10000}}}) {
    const auto* region = finder.find(memory, bytes);
    ASSERT_NE(region, nullptr);
    EXPECT_EQ(region->base, memory);
    const uint64_t id = region->id;
    ASSERT_NE(finder.find(memory + bytes - 1, 1), nullptr);
    EXPECT_EQ(finder.find(memory + bytes - 1, 1)->id, id);
    EXPECT_EQ(finder.find(memory, bytes + 1), nullptr) << "reaches out of the region";
    EXPECT_EQ(finder.find(memory - 1, 2), nullptr);
  }
  int elsewhere = 0;
  EXPECT_EQ(finder.find(&elsewhere, 4), nullptr);
  const std::byte* gone = a->get();
  EXPECT_NE(finder.find(gone, 1), nullptr);
  a->reset();
  EXPECT_EQ(finder.find(gone, 1), nullptr) << "an old answer outlived its region";
  EXPECT_NE(finder.find(b->get(), 1), nullptr);
}

TEST(Region, ThreadsAllocateAndLookUpAtOnce) {
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&wrong, t] {
      std::mt19937_64 random(t);
      region::Finder finder;
      std::vector<Buffer<std::byte>> held;
      for (int i = 0; i < 300; ++i) {
        if (held.size() < 8) {
          auto memory = allocate_buffer<std::byte>(1 + random() % 20000);
          if (!memory.ok()) {
            ++wrong;
            return;
          }
          held.push_back(std::move(*memory));
        } else {
          std::swap(held[random() % held.size()], held.back());
          held.pop_back();
        }
        const auto& memory = held[random() % held.size()];
        const auto* region = finder.find(memory.get(), 1);
        if (region == nullptr || region->base != memory.get()) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace ringfold
