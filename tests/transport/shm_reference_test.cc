// shm: puts that the receiver reads from where they are.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <thread>
#include <vector>

#include "ringfold/memory.h"
#include "tests/transport/shm_ranks.h"

namespace ringfold::transport::test {
namespace {

using Bytes = std::vector<std::byte>;

const shm::Options kReads{.remote_bytes = 16 << 10, .weigh_reads = false};

TEST(ShmReference, AllocatedMemoryIsMappedOnceReadInPlaceAndUnmappedWhenFreed) {
  Fabric fabric = make_shm(2, {});
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  const size_t before = mappings_of("ringfold-region");
  auto memory = allocate_buffer<std::byte>(1 << 20);
  ASSERT_TRUE(memory.ok());
  EXPECT_EQ(mappings_of("ringfold-region"), before + 1);
  for (int k = 0; k < 20; ++k) {
    std::byte* source = memory->get() + k * 1000;
    source[0] = static_cast<std::byte>(k);
    source[99999] = static_cast<std::byte>(k + 1);
    from->put(source, 100000, nullptr);
    Arrival arrival;
    ASSERT_TRUE(to->arrived(&arrival, nullptr, 0));
    ASSERT_FALSE(arrival.remote);
    EXPECT_EQ(arrival.data[0], static_cast<std::byte>(k));
    EXPECT_EQ(arrival.data[99999], static_cast<std::byte>(k + 1));
    EXPECT_LT(from->retired(), from->issued());
    to->release();
    EXPECT_EQ(from->retired(), from->issued());
  }
  EXPECT_EQ(mappings_of("ringfold-region"), before + 2) << "the owner's and one more";
  EXPECT_EQ(fabric.ranks[0]->counters().copied_bytes + fabric.ranks[1]->counters().copied_bytes, 0u);
  memory->reset();
  fabric.ranks[1]->prepare_to_sleep();
  fabric.ranks[1]->awake();
  EXPECT_EQ(mappings_of("ringfold-region"), before);
}

TEST(ShmReference, ANewRegionAtTheSameAddressIsNotMistakenForTheOldOne) {
  Fabric fabric = make_shm(2, {});
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  for (int k = 1; k < 50; ++k) {
    auto memory = allocate_buffer<std::byte>(64 << 10);
    ASSERT_TRUE(memory.ok());
    std::memset(memory->get(), k, 64 << 10);
    from->put(memory->get(), 64 << 10, nullptr);
    Arrival arrival;
    ASSERT_TRUE(to->arrived(&arrival, nullptr, 0));
    ASSERT_FALSE(arrival.remote);
    ASSERT_EQ(arrival.data[0], static_cast<std::byte>(k));
    ASSERT_EQ(arrival.data[65535], static_cast<std::byte>(k));
    to->release();
    ASSERT_EQ(from->retired(), from->issued());
  }
}

TEST(ShmReference, OrdinaryMemoryIsReadOnceFromTheThreshold) {
  Fabric fabric = make_shm(2, {.remote_bytes = 20000, .weigh_reads = false});
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  const Bytes source(20000, std::byte{9});
  Bytes landing(20000);
  Arrival arrival;
  from->put(source.data(), 19999, nullptr);
  ASSERT_TRUE(to->arrived(&arrival, landing.data(), 19999));
  EXPECT_FALSE(arrival.remote);
  to->release();
  from->put(source.data(), 20000, nullptr);
  ASSERT_TRUE(to->arrived(&arrival, landing.data(), 20000));
  ASSERT_TRUE(arrival.remote);
  ASSERT_TRUE(to->fetch(landing.data()).ok());
  EXPECT_EQ(landing, source);
  to->release();
  EXPECT_EQ(fabric.ranks[0]->counters().copied_bytes, 19999u);
  EXPECT_EQ(fabric.ranks[1]->counters().copied_bytes, 20000u);
}

// Puts `bytes` at `source`, and takes them at the other end: did they have to be fetched?
bool is_fetched(Link* from, Link* to, const std::byte* source, size_t bytes, bool by_copy = false) {
  by_copy ? from->put_by_copy(source, bytes, nullptr) : from->put(source, bytes, nullptr);
  Bytes landing(bytes);
  Arrival arrival;
  EXPECT_TRUE(to->arrived(&arrival, landing.data(), bytes));
  if (arrival.remote) {
    EXPECT_TRUE(to->fetch(landing.data()).ok());
    arrival.data = landing.data();
  }
  EXPECT_EQ(std::memcmp(arrival.data, source, bytes), 0);
  to->release();
  EXPECT_EQ(from->retired(), from->issued());
  return arrival.remote;
}

TEST(ShmReference, WhatIsPutByCopyIsNotFetchedAndAllocatedMemoryReadInPlaceAllTheSame) {
  Fabric fabric = make_shm(2, {.remote_bytes = 20000, .weigh_reads = false});
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  const Bytes source(20000, std::byte{9});
  EXPECT_FALSE(is_fetched(from, to, source.data(), 20000, true));
  EXPECT_EQ(fabric.ranks[0]->counters().copied_bytes, 20000u);
  auto memory = allocate_buffer<std::byte>(20000);
  ASSERT_TRUE(memory.ok());
  EXPECT_FALSE(is_fetched(from, to, memory->get(), 20000, true));
  EXPECT_EQ(fabric.ranks[0]->counters().copied_bytes, 20000u) << "no more";
}

TEST(ShmReference, AMessageIsCutWhereThePeerHasAnsweredTheLastOneAndMustCopy) {
  Fabric fabric = make_shm(2, kReads);
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  const Bytes source(4 << 20);
  const auto answer = [&] {
    Arrival arrival;
    to->put(source.data(), 8, nullptr);
    ASSERT_TRUE(from->arrived(&arrival, nullptr, 8));
    from->release();
  };
  for (const size_t bytes : {8 << 10, 128 << 10, 1 << 20}) {
    answer();
    const size_t piece = from->piece(source.data(), bytes);
    EXPECT_LE(piece, bytes / 2);
    EXPECT_GE(piece, size_t{4} << 10);
    EXPECT_EQ(from->piece(source.data(), bytes), bytes) << "a stream";
  }
  for (const size_t bytes : {0, 8, 4 << 10, 4 << 20}) {
    answer();
    EXPECT_EQ(from->piece(source.data(), bytes), bytes) << "too short, or so long that it does not matter";
  }
  auto memory = allocate_buffer<std::byte>(128 << 10);
  ASSERT_TRUE(memory.ok());
  answer();
  EXPECT_EQ(from->piece(memory->get(), 128 << 10), size_t{128} << 10) << "read in place";
}

// Who stopped before it had its memory back may have written there since.
TEST(ShmReference, AFetchFromOneWhoHasStoppedIsAnError) {
  Fabric fabric = make_shm(2, kReads);
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  const Bytes source(32768, std::byte{9});
  Bytes landing(32768);
  from->put(source.data(), source.size(), nullptr);
  Arrival arrival;
  ASSERT_TRUE(to->arrived(&arrival, nullptr, 0));
  ASSERT_TRUE(arrival.remote);
  fabric.ranks[0]->stop();
  const auto status = to->fetch(landing.data());
  EXPECT_EQ(status.code(), Code::kPeerLost);
  EXPECT_NE(status.message().find("rank 0 stopped while 32768 bytes of its memory were read"), std::string::npos)
      << status.message();
}

// The same of what is read in place, which no call of the system fails for.
TEST(ShmReference, WhatWasReadInPlaceIsNotConfirmedWhenItsSenderHasStopped) {
  Fabric fabric = make_shm(2, {});
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  auto memory = allocate_buffer<std::byte>(2000);
  ASSERT_TRUE(memory.ok());
  Arrival arrival;
  from->put(memory->get(), 2000, nullptr);
  ASSERT_TRUE(to->arrived(&arrival, nullptr, 0));
  EXPECT_TRUE(arrival.referred);
  EXPECT_TRUE(to->confirm().ok());
  to->release();
  from->put(memory->get(), 2000, nullptr);
  from->put(memory->get(), 10, nullptr);
  ASSERT_TRUE(to->arrived(&arrival, nullptr, 0));
  ASSERT_TRUE(arrival.referred);
  fabric.ranks[0]->stop();
  const auto status = to->confirm();
  EXPECT_EQ(status.code(), Code::kPeerLost);
  EXPECT_NE(status.message().find("rank 0 stopped while 2000 bytes of its memory were read"), std::string::npos)
      << status.message();
  to->release();
  ASSERT_TRUE(to->arrived(&arrival, nullptr, 0));
  EXPECT_FALSE(arrival.referred) << "what was copied is nobody's but the receiver's";
}

// Memory of its own, until it is unmapped; null: there is none.
std::byte* mapped(size_t bytes, int fd, int flags) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

TEST(ShmReference, AFetchOfMemoryThatIsGoneIsAnError) {
  Fabric fabric = make_shm(2, kReads);
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  std::byte* const source = mapped(32768, -1, MAP_PRIVATE | MAP_ANONYMOUS);
  ASSERT_NE(source, nullptr);
  from->put(source, 32768, nullptr);
  ASSERT_EQ(munmap(source, 32768), 0);
  Arrival arrival;
  ASSERT_TRUE(to->arrived(&arrival, nullptr, 0));
  ASSERT_TRUE(arrival.remote);
  Bytes landing(32768);
  EXPECT_EQ(to->fetch(landing.data()).code(), Code::kUnavailable);
  fabric.ranks[0]->progress();  // has nothing to copy
  ASSERT_TRUE(to->arrived(&arrival, nullptr, 0));
  ASSERT_TRUE(arrival.remote);
  const auto status = to->fetch(landing.data());
  EXPECT_EQ(status.code(), Code::kIo);
  EXPECT_NE(status.message().find("32768 bytes"), std::string::npos);
}

// Takes a put that this thread cannot read: its sender, asked, copies it.
void expect_copied_when_asked(const Fabric& fabric, Link* from, Link* to, const std::byte* source, size_t bytes) {
  from->put(source, bytes, nullptr);
  from->put(source, 8, nullptr);
  Arrival arrival;
  Bytes landing(bytes);
  ASSERT_TRUE(to->arrived(&arrival, landing.data(), bytes));
  ASSERT_TRUE(arrival.remote);
  ASSERT_EQ(to->fetch(landing.data()).code(), Code::kUnavailable);
  EXPECT_FALSE(to->arrived(&arrival, landing.data(), bytes)) << "before it has been copied";
  EXPECT_FALSE(to->watch()) << "that word has changed already";
  EXPECT_EQ(from->retired(), 0u);
  EXPECT_FALSE(fabric.ranks[0]->prepare_to_sleep()) << "it has been asked for something";
  fabric.ranks[0]->awake();
  while (!fabric.ranks[1]->prepare_to_sleep()) fabric.ranks[1]->awake();  // other news: that its peer is there
  fabric.ranks[0]->progress();
  EXPECT_FALSE(fabric.ranks[1]->prepare_to_sleep()) << "the answer is here";
  fabric.ranks[1]->awake();
  ASSERT_TRUE(to->arrived(&arrival, landing.data(), bytes));
  ASSERT_FALSE(arrival.remote);
  EXPECT_EQ(arrival.bytes, bytes);
  EXPECT_EQ(std::memcmp(arrival.data, source, bytes), 0);
  EXPECT_EQ(from->retired(), 2u) << "nobody reads the sender's memory any more";
  to->release();
  ASSERT_TRUE(to->arrived(&arrival, landing.data(), 8));
  to->release();
}

// As memory is that a driver has mapped.
TEST(ShmReference, MemoryThatTheKernelReadsForNobodyIsCopiedWhenAskedAndFromThenOnAtOnce) {
#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
  constexpr size_t kBytes = 32768;
  const int fd = static_cast<int>(syscall(SYS_memfd_secret, 0));
  if (fd < 0) GTEST_SKIP() << "this kernel has no memfd_secret: " << std::strerror(errno);
  ASSERT_EQ(ftruncate(fd, kBytes), 0);
  std::byte* const source = mapped(kBytes, fd, MAP_SHARED);
  ::close(fd);
  if (source == nullptr) GTEST_SKIP() << "no secret memory can be mapped: " << std::strerror(errno);
  std::memset(source, 7, kBytes);
  Fabric fabric = make_shm(2, kReads);
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  expect_copied_when_asked(fabric, from, to, source, kBytes);
  EXPECT_FALSE(is_fetched(from, to, source, kBytes));
  const Bytes ordinary(kBytes, std::byte{9});
  EXPECT_TRUE(is_fetched(from, to, ordinary.data(), kBytes));
  EXPECT_EQ(munmap(source, kBytes), 0);
}

// Takes from this thread, for good, the right to read other processes.
bool forbid_reads() {
  std::array filter = {sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                       sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
                       sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                       sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program{filter.size(), filter.data()};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST(ShmReference, AReaderThatHasLostItsRightsHasItCopiedAndIsSentNoMoreToRead) {
  Fabric fabric = make_shm(2, kReads);
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  const Bytes source(32768, std::byte{9});
  ASSERT_TRUE(is_fetched(from, to, source.data(), source.size()));
  bool forbidden = false;
  std::thread reader([&] {
    forbidden = forbid_reads();
    if (!forbidden) return;
    to = fabric.ranks[1]->open(0, 0);
    Arrival arrival;
    Bytes landing(source.size());
    from->put(source.data(), source.size(), nullptr);
    ASSERT_TRUE(to->arrived(&arrival, landing.data(), landing.size()));
    ASSERT_TRUE(arrival.remote);
    EXPECT_EQ(to->fetch(landing.data()).code(), Code::kUnavailable);
    fabric.ranks[0]->progress();
    ASSERT_TRUE(to->arrived(&arrival, landing.data(), landing.size()));
    ASSERT_FALSE(arrival.remote);
    EXPECT_EQ(std::memcmp(arrival.data, source.data(), source.size()), 0);
    to->release();
    EXPECT_FALSE(is_fetched(from, to, source.data(), source.size()));
  });
  reader.join();
  if (!forbidden) GTEST_SKIP() << "this kernel has no seccomp filters: " << std::strerror(errno);
}

}  // namespace
}  // namespace ringfold::transport::test
