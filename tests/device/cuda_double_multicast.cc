// The double's switch: objects that stand for memory of several devices, of any processes, and the kernel that adds
// there. Whoever would wait for devices in the driver has made a mistake, which is told instead.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/device/cuda_double_state.h"
#include "tests/kernels/simt_host.h"

namespace ringfold::test::cuda {
namespace {

namespace simt = kernels::simt;

constexpr size_t kUnit = 2 << 20;  // of memory and addresses, as the device's
constexpr const char* kName = "multicast-object";

struct MulticastProperties {  // as the driver's
  unsigned devices;
  size_t bytes;
  unsigned long long handles, flags;
};

std::shared_ptr<Team> map_team(int fd) {
  void* place = mmap(nullptr, sizeof(Team), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (place == MAP_FAILED) std::abort();
  return {static_cast<Team*>(place), [](Team* team) { munmap(team, sizeof *team); }};
}

// What a handle stands for, in this process; null: no multicast object.
std::shared_ptr<Team> team_behind(unsigned long long handle) {
  const std::lock_guard lock(state().mutex);
  auto shared = state().shared.find(handle);
  return shared == state().shared.end() ? nullptr : shared->second.team;
}

// The memory that a device has bound, mapped for one launch.
class Seen {
 public:
  Seen(const Team::Bound& bound, size_t bytes) : bytes_(bytes) {
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/fd/%d", bound.process.load(), bound.fd.load());
    const int fd = bound.process == 0 ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    place_ = static_cast<std::byte*>(map_file(fd, bytes, nullptr, true));
    close(fd);
  }
  ~Seen() {
    if (place_ != nullptr) munmap(place_, bytes_);
  }
  Seen(const Seen&) = delete;
  std::byte* place() const { return place_; }

 private:
  const size_t bytes_;
  std::byte* place_ = nullptr;
};

// A launch, when its turn has come.
void add_in_switch(simt::MulticastArgs args, int device, DataType type, bool scale, int blocks) {
  std::shared_ptr<Team> team;
  size_t offset = 0;
  {
    const std::lock_guard lock(state().mutex);
    const auto address = reinterpret_cast<uint64_t>(args.data.address);
    auto above = state().allocations.upper_bound(address);
    if (above != state().allocations.begin()) {
      const auto& [base, mapping] = *std::prev(above);
      offset = address - base;
      const bool inside = offset + 16 * args.quads <= mapping.bytes;
      if (inside && (mapping.allowed >> device & 1) != 0) team = mapping.team;
    }
  }
  bool all = team != nullptr;
  for (int r = 0; all && r < args.at.ranks; ++r) all = see(args.at.state[r], sizeof(simt::RankState), device);
  if (!all) return state().complain("multimem on memory that is not multicast, or not this device's to touch");
  std::vector<std::unique_ptr<Seen>> copies;
  for (int d = 0; d < kDevices; ++d) {
    if ((team->added >> d & 1) == 0) continue;
    copies.push_back(std::make_unique<Seen>(team->bound[d], team->bytes));
    if (copies.back()->place() == nullptr) return state().complain("multimem on memory that is not bound");
    args.data.copies[args.data.count++] = copies.back()->place() + offset;
  }
  multicast_on_host(args, type, scale, blocks);
}

}  // namespace

std::shared_ptr<Team> team_of(int fd) {
  char link[32], name[64] = {};
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  if (readlink(link, name, sizeof name - 1) < 0 || std::strstr(name, kName) == nullptr) return nullptr;
  return map_team(fd);
}

extern "C" {

DOUBLE_API int cuMulticastGetGranularity(size_t* bytes, const MulticastProperties*, int) {
  if (const int error = enter("cuMulticastGetGranularity", false)) return error;
  return *bytes = 2 * kUnit, 0;
}
DOUBLE_API int cuMulticastCreate(unsigned long long* handle, const MulticastProperties* properties) {
  if (const int error = enter("cuMulticastCreate", false)) return error;
  if (!state().multicasts) return kNotSupported;
  if (properties->bytes == 0 || properties->bytes % kUnit != 0 || properties->devices == 0 ||
      properties->flags != 0) {
    return kInvalidValue;
  }
  if ((properties->handles & 8) != 0 && !state().fabric_allocates) return 800;
  const int fd = memfd_create(kName, MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, sizeof(Team)) != 0) std::abort();
  auto team = map_team(fd);
  team->devices = properties->devices;
  team->bytes = properties->bytes;
  const std::lock_guard lock(state().mutex);
  state().shared[*handle = ++state().last_shared] = {fd, properties->bytes, -1, std::move(team)};
  return 0;
}
DOUBLE_API int cuMulticastAddDevice(unsigned long long handle, int device) {
  if (const int error = enter("cuMulticastAddDevice", false)) return error;
  const auto team = team_behind(handle);
  if (team == nullptr || team->complete()) return kInvalidValue;
  return (team->added.fetch_or(1U << device) >> device & 1) != 0 ? kInvalidValue : 0;
}
DOUBLE_API int cuMulticastBindMem(unsigned long long handle, size_t offset, unsigned long long memory,
                                  size_t memory_offset, size_t bytes, unsigned long long) {
  if (const int error = enter("cuMulticastBindMem", false)) return error;
  const auto team = team_behind(handle);
  if (team == nullptr) return kInvalidValue;
  if (!team->complete()) {
    state().complain("cuMulticastBindMem would wait for devices");
    return kInvalidValue;
  }
  const std::lock_guard lock(state().mutex);
  auto shared = state().shared.find(memory);
  if (shared == state().shared.end() || shared->second.team != nullptr || offset != 0 || memory_offset != 0 ||
      bytes != team->bytes || bytes > shared->second.bytes || (team->added >> shared->second.ordinal & 1) == 0) {
    return kInvalidValue;
  }
  auto& bound = team->bound[shared->second.ordinal];
  if (bound.process != 0) return kInvalidValue;
  // It holds the memory, whoever frees it.
  const int fd = state().bound[{team.get(), shared->second.ordinal}] = dup(shared->second.fd);
  bound.fd = fd;
  bound.process = getpid();
  return 0;
}
DOUBLE_API int cuMulticastUnbind(unsigned long long handle, int device, size_t offset, size_t bytes) {
  const int error = enter("cuMulticastUnbind", false);
  const auto team = team_behind(handle);
  if (team == nullptr || offset != 0 || bytes != team->bytes) return kInvalidValue;
  const std::lock_guard lock(state().mutex);
  auto bound = state().bound.extract({team.get(), device});
  if (!bound) return kInvalidValue;
  team->bound[device].process = 0;
  close(bound.mapped());
  return error;
}

DOUBLE_API int ringfoldStandInMulticast(int type, bool scale, const void* args, int blocks, void* handle) {
  if (const int error = enter("multicast")) return error;
  OwnStream* stream = find(handle);
  if (stream == nullptr) return kInvalidHandle;
  if (!pinned(args, sizeof(simt::MulticastArgs))) {
    state().complain("a kernel was given arguments that its device cannot read");
    return kInvalidValue;
  }
  // Arguments are read when the kernel runs.
  put(stream, [=, device = stream->context->ordinal] {
    add_in_switch(*static_cast<const simt::MulticastArgs*>(args), device, static_cast<DataType>(type), scale, blocks);
  });
  return 0;
}

}  // extern "C"

}  // namespace ringfold::test::cuda
