#include "base/region.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "base/log.h"

namespace ringfold {
namespace region {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = 2 << 20;

struct Owned : Region {
  int fd = -1;
  size_t mapped = 0;
};

struct Registry {
  std::shared_mutex mutex;
  std::vector<Owned> regions;  // by address
  uint64_t next_id = 1;
  pid_t pid = 0;  // whose directory it is
  int directory_fd = -1;
  Directory* directory = nullptr;
  std::atomic<uint64_t> generation = 1;
  std::map<void*, void (*)(void*)> adopted;

  auto first_above(const void* data) {
    return std::upper_bound(regions.begin(), regions.end(), static_cast<const std::byte*>(data),
                            [](const std::byte* a, const Owned& r) { return a < r.base; });
  }
};

// Never destroyed: memory may be given back by destructors of static objects.
Registry& registry() {
  static Registry* const kRegistry = new Registry;
  return *kRegistry;
}

template <typename T>
void store(T& word, T value) {
  std::atomic_ref<T>(word).store(value, std::memory_order_seq_cst);
}

Status system_error(const char* what, size_t bytes) {
  return {Code::kUnavailable, fmt::format("{} of {} bytes: {}", what, bytes, std::strerror(errno))};
}

// A memfd of fixed size: sealed, so no peer that opened it can shrink it under its owner.
int make_memfd(const char* name, size_t bytes) {
  const int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return -1;
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0 ||
      fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    const int error = errno;
    close(fd);
    errno = error;
    return -1;
  }
  return fd;
}

// Maps `fd` (-1: anonymous memory) at an address aligned to `align`; null and errno when there is no room.
std::byte* map_aligned(int fd, size_t bytes, size_t align) {
  const size_t span = bytes + align - kPage;
  void* place = mmap(nullptr, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) return nullptr;
  const auto low = reinterpret_cast<uintptr_t>(place);
  const uintptr_t base = (low + align - 1) / align * align;
  if (base > low) munmap(place, base - low);
  if (low + span > base + bytes) munmap(reinterpret_cast<void*>(base + bytes), low + span - base - bytes);
  void* memory = mmap(reinterpret_cast<void*>(base), bytes, PROT_READ | PROT_WRITE,
                      MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED), fd, 0);
  if (memory == MAP_FAILED) {
    const int error = errno;
    munmap(reinterpret_cast<void*>(base), bytes);
    errno = error;
    return nullptr;
  }
  if (bytes >= kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);  // advice: the system may have it switched off
  return static_cast<std::byte*>(memory);
}

// Makes the directory of this process. The lock is held.
Status ensure_directory(Registry& r) {
  if (r.directory != nullptr && r.pid == getpid()) return {};
  if (r.directory != nullptr) {  // the parent's, from before a fork: its regions are not ours to show
    munmap(r.directory, sizeof(Directory));
    close(r.directory_fd);
    for (auto& region : r.regions) {
      if (region.fd >= 0) close(region.fd);
      region.fd = -1;
      region.entry = kNotShared;
    }
    r.directory = nullptr;
    r.generation.fetch_add(1);
  }
  const int fd = make_memfd("ringfold-directory", sizeof(Directory));
  if (fd < 0) return system_error("memfd", sizeof(Directory));
  void* memory = mmap(nullptr, sizeof(Directory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    auto status = system_error("mapping", sizeof(Directory));
    close(fd);
    return status;
  }
  r.directory = static_cast<Directory*>(memory);
  r.directory_fd = fd;
  r.pid = getpid();
  return {};
}

// The lock is held. Shows the region to peers; without a free entry it stays private.
void share(Registry& r, Owned& region) {
  if (region.fd < 0 || !ensure_directory(r).ok()) return;
  for (uint32_t e = 0; e < kMaxShared; ++e) {
    auto& entry = r.directory->entries[e];
    if (entry.id != 0) continue;
    store(entry.bytes, static_cast<uint64_t>(region.mapped));
    store(entry.fd, static_cast<int64_t>(region.fd));
    store(entry.id, region.id);
    region.entry = e;
    return;
  }
}

}  // namespace

Result<int> directory() {
  auto& r = registry();
  std::unique_lock lock(r.mutex);
  RINGFOLD_TRY(ensure_directory(r));
  return r.directory_fd;
}

void adopt(void* memory, void (*release)(void* memory)) {
  auto& r = registry();
  const std::unique_lock lock(r.mutex);
  r.adopted[memory] = release;
}

std::atomic<uint64_t>& Finder::current_generation() { return registry().generation; }

void Finder::look_up(const void* data) {
  auto& r = registry();
  std::shared_lock lock(r.mutex);
  generation_ = r.generation.load(std::memory_order_relaxed);
  auto above = r.first_above(data);
  const auto* low = static_cast<const std::byte*>(nullptr);
  if (above != r.regions.begin()) {
    const Owned& below = *std::prev(above);
    if (below.contains(data, 0)) {
      seen_ = below;
      shared_ = below.entry != kNotShared;
      return;
    }
    low = below.base + below.mapped;
  }
  const uintptr_t high = above == r.regions.end() ? UINTPTR_MAX : reinterpret_cast<uintptr_t>(above->base);
  seen_ = Region{low, high - reinterpret_cast<uintptr_t>(low), 0, kNotShared};
  shared_ = false;
}

}  // namespace region

Result<void*> allocate(size_t bytes) {
  using namespace region;
  if (bytes > SIZE_MAX / 4) return Status(Code::kUnavailable, fmt::format("no system has {} bytes", bytes));
  Owned region;
  region.bytes = std::max<size_t>(bytes, 1);
  region.mapped = (region.bytes + kPage - 1) / kPage * kPage;
  region.fd =
      make_memfd("ringfold-region", region.mapped);  // without one (descriptors used up) the memory is private
  region.base = map_aligned(region.fd, region.mapped, region.mapped >= kHugePage ? kHugePage : kPage);
  if (region.base == nullptr) {
    auto status = system_error("memory", bytes);
    if (region.fd >= 0) close(region.fd);
    return status;
  }
  void* memory = const_cast<std::byte*>(region.base);
  auto& r = registry();
  std::unique_lock lock(r.mutex);
  region.id = r.next_id++;
  share(r, region);
  r.regions.insert(r.first_above(memory), region);
  r.generation.fetch_add(1, std::memory_order_release);
  return memory;
}

void deallocate(void* memory) {
  using namespace region;
  if (memory == nullptr) return;
  auto& r = registry();
  Owned region;
  {
    std::unique_lock lock(r.mutex);
    if (auto foreign = r.adopted.extract(memory)) {
      lock.unlock();
      return foreign.mapped()(memory);
    }
    auto above = r.first_above(memory);
    if (above == r.regions.begin() || std::prev(above)->base != memory) {
      lock.unlock();
      log::error("deallocate({}): this is not memory from ringfold::allocate, or it was given back before", memory);
      return;
    }
    region = *std::prev(above);
    r.regions.erase(std::prev(above));
    r.generation.fetch_add(1, std::memory_order_release);
    if (region.entry != kNotShared && r.pid == getpid()) {
      store(r.directory->entries[region.entry].id, uint64_t{0});
      std::atomic_ref(r.directory->freed).fetch_add(1);
    }
  }
  munmap(memory, region.mapped);
  if (region.fd >= 0) close(region.fd);
}

}  // namespace ringfold
