// The double's memory that processes and devices share, and its reductions.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/cuda/cuda.h"
#include "tests/device/cuda_double_state.h"
#include "tests/kernels/simt_host.h"

namespace ringfold::test::cuda {
namespace {

namespace simt = kernels::simt;

constexpr size_t kGranularity = 2 << 20;  // as the device's
constexpr int kFabric = 8, kNotPermitted = 800;

struct Properties {  // as the driver's
  int type, handles, location, ordinal;
};
struct Access {
  int location, ordinal, flags;
};

// Which device a file is of stands in its name.
int ordinal_of(int fd) {
  char link[32], name[64] = {};
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  int ordinal = -1;
  if (readlink(link, name, sizeof name - 1) < 0 || std::sscanf(name, "/memfd:device-memory-%d", &ordinal) != 1) {
    return -1;
  }
  return ordinal;
}

bool within(const std::map<uint64_t, size_t>& ranges, uint64_t address, size_t bytes) {
  auto above = ranges.upper_bound(address);
  if (above == ranges.begin()) return false;
  const auto& [base, size] = *std::prev(above);
  return address - base <= size && bytes <= size - (address - base);
}

bool touch(simt::Ranks* at, int device) {
  bool all = true;
  for (int r = 0; r < at->ranks; ++r) all &= see(at->state[r], sizeof(simt::RankState), device);
  return all;
}
bool touch(simt::OneShotArgs* args, int device) {
  bool all = touch(&args->at, device) && see(args->in, 1, device) && see(args->out, 1, device);
  const auto packets = 32 * static_cast<size_t>(args->at.ranks) * args->capacity;
  for (int r = 0; r < args->at.ranks; ++r) all = all && see(args->packets[r], packets, device);
  return all;
}
bool touch(simt::TwoShotArgs* args, int device) {
  bool all = touch(&args->at, device);
  for (int r = 0; r < args->at.ranks; ++r) all = all && see(args->in[r], 1, device) && see(args->out[r], 1, device);
  return all;
}

}  // namespace

extern "C" {

DOUBLE_API int cuDeviceGetName(char* name, int bytes, int device) {
  if (const int error = enter("cuDeviceGetName", false)) return error;
  std::snprintf(name, static_cast<size_t>(bytes), "Double %d", device);
  return 0;
}
DOUBLE_API int cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
  if (const int error = enter("cuDeviceGetUuid", false)) return error;
  std::memset(uuid, 0xd0 + device, 16);
  return 0;
}
DOUBLE_API int cuDeviceGetAttribute(int* value, int attribute, int) {
  if (const int error = enter("cuDeviceGetAttribute", false)) return error;
  switch (attribute) {
    case 102: *value = 1; break;
    case 103: *value = state().shares; break;
    case 117: *value = state().flushes; break;
    case 118: *value = state().orders_writes ? 100 : 0; break;
    case 124: *value = state().exports; break;
    case 128: *value = state().fabric; break;
    case 132: *value = state().multicasts; break;
    default: *value = 0;
  }
  return 0;
}
// In whole pages of one allocation, as a file that is the caller's.
DOUBLE_API int cuMemGetHandleForAddressRange(int* fd, uint64_t address, size_t bytes, int kind, unsigned long long) {
  if (const int error = enter("cuMemGetHandleForAddressRange")) return error;
  const std::lock_guard lock(state().mutex);
  auto found = state().allocations.find(address);
  if (!state().exports || found == state().allocations.end() || found->second.fd < 0) return kNotSupported;
  if (kind != 1 || bytes % 4096 != 0 || bytes > (found->second.bytes + 4095) / 4096 * 4096) return kInvalidValue;
  return *fd = dup(found->second.fd), 0;
}
DOUBLE_API int cuFlushGPUDirectRDMAWrites(int target, int scope) {
  if (const int error = enter("cuFlushGPUDirectRDMAWrites")) return error;
  return target == 0 && scope == 100 && state().flushes ? 0 : kNotSupported;
}
// Of a device and itself the driver says no.
DOUBLE_API int cuDeviceCanAccessPeer(int* reaches, int device, int peer) {
  if (const int error = enter("cuDeviceCanAccessPeer", false)) return error;
  return *reaches = device != peer && state().peers_reach, 0;
}
DOUBLE_API int cuMemGetAllocationGranularity(size_t* bytes, const Properties*, int) {
  if (const int error = enter("cuMemGetAllocationGranularity", false)) return error;
  return *bytes = kGranularity, 0;
}
DOUBLE_API int cuMemCreate(unsigned long long* handle, size_t bytes, const Properties* properties,
                           unsigned long long) {
  if (const int error = enter("cuMemCreate", false)) return error;
  if (!state().shares) return kNotSupported;
  if (bytes % kGranularity != 0 || bytes == 0 || (properties->handles & 1) == 0) return kInvalidValue;
  if ((properties->handles & kFabric) != 0 && !state().fabric_allocates) return kNotPermitted;
  const int fd = make_file(properties->ordinal, bytes);
  void* fresh = map_file(fd, bytes, nullptr, true);
  std::memset(fresh, 0xa5, 64 << 10);  // nobody says that it is zeros
  munmap(fresh, bytes);
  const std::lock_guard lock(state().mutex);
  state().shared[*handle = ++state().last_shared] = {fd, bytes, properties->ordinal};
  return 0;
}
DOUBLE_API int cuMemRelease(unsigned long long handle) {
  const int error = enter("cuMemRelease", false);
  const std::lock_guard lock(state().mutex);
  auto shared = state().shared.extract(handle);
  if (!shared) return kInvalidValue;
  close(shared.mapped().fd);
  return error;
}
DOUBLE_API int cuMemExportToShareableHandle(void* to, unsigned long long handle, int kind, unsigned long long) {
  if (const int error = enter("cuMemExportToShareableHandle", false)) return error;
  const std::lock_guard lock(state().mutex);
  auto shared = state().shared.find(handle);
  if (shared == state().shared.end()) return kInvalidValue;
  if (kind == kFabric) {
    std::snprintf(static_cast<char*>(to), 64, "/proc/%d/fd/%d", getpid(), shared->second.fd);
    return 0;
  }
  return kind != 1 ? kInvalidValue : (*static_cast<int*>(to) = dup(shared->second.fd), 0);
}
DOUBLE_API int cuMemImportFromShareableHandle(unsigned long long* handle, void* os_handle, int kind) {
  if (const int error = enter("cuMemImportFromShareableHandle", false)) return error;
  if (const int error = enter(kind == kFabric ? "import by fabric" : "import by descriptor", false)) return error;
  const int fd = kind == kFabric ? open(static_cast<const char*>(os_handle), O_RDWR | O_CLOEXEC)
                                 : dup(static_cast<int>(reinterpret_cast<intptr_t>(os_handle)));
  struct stat info {};
  const auto team = team_of(fd);
  if ((kind != 1 && kind != kFabric) || (team == nullptr && ordinal_of(fd) < 0) || fstat(fd, &info) != 0) {
    return close(fd), kInvalidValue;
  }
  const size_t bytes = team != nullptr ? team->bytes : static_cast<size_t>(info.st_size);
  const std::lock_guard lock(state().mutex);
  state().shared[*handle = ++state().last_shared] = {fd, bytes, ordinal_of(fd), team};
  return 0;
}
// Of whole allocations of cuMemAlloc, by other processes only.
struct IpcHandle {
  int process, fd, ordinal;
  uint64_t bytes;
  char rest[40];
};
static_assert(sizeof(IpcHandle) == 64);
DOUBLE_API int cuIpcGetMemHandle(IpcHandle* handle, uint64_t address) {
  if (const int error = enter("cuIpcGetMemHandle")) return error;
  const std::lock_guard lock(state().mutex);
  auto found = state().allocations.find(address);
  if (found == state().allocations.end() || found->second.fd < 0) return kInvalidValue;
  *handle = {getpid(), found->second.fd, found->second.ordinal, found->second.bytes, {}};
  return 0;
}
DOUBLE_API int cuIpcOpenMemHandle_v2(uint64_t* address, IpcHandle handle, unsigned) {
  if (const int error = enter("cuIpcOpenMemHandle")) return error;
  if (handle.process == getpid()) return kInvalidContext;
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/fd/%d", handle.process, handle.fd);
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0 || ordinal_of(fd) != handle.ordinal) return close(fd), kInvalidValue;
  const size_t size = (handle.bytes + 4095) / 4096 * 4096;
  void *place = map_file(fd, size, nullptr, false), *alias = map_file(fd, size, nullptr, true);
  close(fd);
  const int device = current.back()->ordinal;
  const std::lock_guard lock(state().mutex);
  *address = reinterpret_cast<uint64_t>(place);
  state().opened.insert(*address);
  state().allocations[*address] = {.bytes = handle.bytes,
                                   .alias = static_cast<std::byte*>(alias),
                                   .ordinal = handle.ordinal,
                                   .allowed = 1U << device,
                                   .id = ++state().last_id};
  return 0;
}
DOUBLE_API int cuIpcCloseMemHandle(uint64_t address) {
  if (const int error = enter("cuIpcCloseMemHandle")) return error;
  const std::lock_guard lock(state().mutex);
  if (state().opened.erase(address) == 0) return kInvalidValue;
  const auto found = state().allocations.extract(address);
  const size_t size = (found.mapped().bytes + 4095) / 4096 * 4096;
  munmap(reinterpret_cast<void*>(address), size);
  munmap(found.mapped().alias, size);
  return 0;
}
DOUBLE_API int cuMemAddressReserve(uint64_t* address, size_t bytes, size_t, uint64_t, unsigned long long) {
  if (const int error = enter("cuMemAddressReserve", false)) return error;
  if (bytes % kGranularity != 0) return kInvalidValue;
  void* place = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED) return 2;
  *address = reinterpret_cast<uint64_t>(place);
  const std::lock_guard lock(state().mutex);
  state().ranges[*address] = bytes;
  return 0;
}
DOUBLE_API int cuMemAddressFree(uint64_t address, size_t bytes) {
  const int error = enter("cuMemAddressFree", false);
  const std::lock_guard lock(state().mutex);
  auto range = state().ranges.find(address);
  if (range == state().ranges.end() || range->second != bytes || state().allocations.contains(address)) {
    return kInvalidValue;
  }
  munmap(reinterpret_cast<void*>(address), bytes);
  state().ranges.erase(range);
  return error;
}
DOUBLE_API int cuMemMap(uint64_t address, size_t bytes, size_t offset, unsigned long long handle,
                        unsigned long long) {
  if (const int error = enter("cuMemMap", false)) return error;
  const std::lock_guard lock(state().mutex);
  auto shared = state().shared.find(handle);
  if (shared == state().shared.end() || offset != 0 || bytes != shared->second.bytes ||
      !within(state().ranges, address, bytes)) {
    return kInvalidValue;
  }
  if (const auto& team = shared->second.team; team != nullptr) {
    if (!team->complete()) {
      state().complaints.push_back("cuMemMap would wait for devices of a multicast object");
      return kInvalidValue;
    }
    void* none = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    state().allocations[address] = {
        .bytes = bytes, .alias = static_cast<std::byte*>(none), .ordinal = -1, .team = team};
    return 0;
  }
  map_file(shared->second.fd, bytes, reinterpret_cast<void*>(address), false);
  auto* alias = static_cast<std::byte*>(map_file(shared->second.fd, bytes, nullptr, true));
  state().allocations[address] = {bytes, alias, nullptr, shared->second.ordinal, 0};
  return 0;
}
// The memory lives on where others map it, or hold a handle.
DOUBLE_API int cuMemUnmap(uint64_t address, size_t bytes) {
  const int error = enter("cuMemUnmap", false);
  const std::lock_guard lock(state().mutex);
  auto mapping = state().allocations.find(address);
  if (mapping == state().allocations.end() || mapping->second.context != nullptr || mapping->second.bytes != bytes) {
    return kInvalidValue;
  }
  munmap(mapping->second.alias, bytes);
  mmap(reinterpret_cast<void*>(address), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  state().allocations.erase(mapping);
  return error;
}
DOUBLE_API int cuMemSetAccess(uint64_t address, size_t bytes, const Access* who, size_t count) {
  if (const int error = enter("cuMemSetAccess", false)) return error;
  const std::lock_guard lock(state().mutex);
  auto mapping = state().allocations.find(address);
  if (mapping == state().allocations.end() || mapping->second.bytes != bytes) return kInvalidValue;
  for (size_t i = 0; i < count; ++i) {
    if (const auto& team = mapping->second.team; team != nullptr) {
      if ((team->added >> who[i].ordinal & 1) == 0) return kNotSupported;
    } else if (who[i].ordinal != mapping->second.ordinal && !state().peers_reach) {
      return kNotSupported;
    }
    mapping->second.allowed |= 1U << who[i].ordinal;
  }
  return 0;
}

// Between any two devices, as copies go: through the host, if need be. Mappings of shared memory want to be allowed.
DOUBLE_API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* handle) {
  if (const int error = enter("cuMemcpyDtoDAsync")) return error;
  OwnStream* stream = find(handle);
  if (stream == nullptr) return kInvalidHandle;
  const auto bytes_of = [&](uint64_t address) {
    bool shared = false;
    {
      const std::lock_guard lock(state().mutex);
      auto above = state().allocations.upper_bound(address);
      shared = above != state().allocations.begin() && std::prev(above)->second.context == nullptr;
    }
    return device_bytes(address, bytes, shared ? stream->context->ordinal : -1);
  };
  std::byte *target = bytes_of(to), *source = bytes_of(from);
  if (target == nullptr || source == nullptr) {
    state().complain("cuMemcpyDtoDAsync of bytes that are not device memory, or not this device's to touch");
    return kInvalidValue;
  }
  put(stream, [=] {
    if (may_copy()) copy_bytes(target, source, bytes);
  });
  return 0;
}

// A kernel: what it touches must be its device's to touch.
DOUBLE_API int ringfoldStandInFold(int type, int kind, bool complete, void* out, const void* const* in, int inputs,
                                   size_t elems, double factor, long long divisor, void* handle) {
  if (const int error = enter("fold")) return error;
  OwnStream* stream = find(handle);
  if (stream == nullptr) return kInvalidHandle;
  const size_t bytes = elems * size_of(static_cast<DataType>(type));
  const auto seen = [&](const void* memory) {
    return device_bytes(reinterpret_cast<uint64_t>(memory), bytes, stream->context->ordinal);
  };
  kernels::simt::FoldArgs args{};
  args.out = seen(out);
  bool all = args.out != nullptr;
  for (int i = 0; i < inputs; ++i) all &= (args.in[i] = seen(in[i])) != nullptr;
  args.inputs = inputs;
  args.elems = elems;
  args.factor = factor;
  args.divisor = divisor;
  if (!all) {
    state().complain("a kernel was given memory that its device cannot touch");
    return kInvalidValue;
  }
  put(stream, [=] { fold_on_host(static_cast<DataType>(type), static_cast<ReduceKind>(kind), complete, args); });
  return 0;
}

DOUBLE_API int ringfoldStandInCombine(const Codec* codec, const kernels::cuda::Term* terms, int count, size_t elems,
                                      const kernels::Post* post, const kernels::cuda::Target* target, uint64_t key,
                                      uint64_t first, void* handle) {
  if (const int error = enter("combine")) return error;
  OwnStream* stream = find(handle);
  if (stream == nullptr) return kInvalidHandle;
  const auto seen = [&](auto* pointer, size_t bytes) {
    return pointer == nullptr || see(pointer, bytes, stream->context->ordinal) ? pointer : nullptr;
  };
  const size_t bytes = elems * sizeof(float), code_bytes = encoded_bytes(*codec, elems);
  simt::CombineArgs args{};
  args.count = count;
  for (int t = 0; t < count; ++t) {
    args.terms[t] = {seen(terms[t].values, bytes), seen(terms[t].code, code_bytes)};
    if (args.terms[t].values == nullptr && args.terms[t].code == nullptr) return kInvalidValue;
  }
  args.values = seen(target->values, bytes);
  args.code = seen(target->code, code_bytes);
  args.residual = args.code != nullptr ? seen(target->residual, bytes) : nullptr;
  args.elems = elems;
  args.factor = post != nullptr ? static_cast<float>(post->factor) : 1.0f;
  args.scale = post != nullptr;
  args.call = {key, first, codec->keep};
  put(stream, [codec = *codec, args] { combine_on_host(codec, args); });
  return 0;
}

DOUBLE_API int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void* handle) {
  if (const int error = enter("cuMemsetD8Async")) return error;
  OwnStream* stream = find(handle);
  if (stream == nullptr) return kInvalidHandle;
  std::byte* memory = device_bytes(address, bytes, stream->context->ordinal);
  if (memory == nullptr) return kInvalidValue;
  put(stream, [=] { std::memset(memory, value, bytes); });
  return 0;
}

DOUBLE_API int ringfoldStandInAllReduce(bool one_shot, int type, int kind, const void* args, int ranks, int blocks,
                                        void* handle) {
  if (const int error = enter(one_shot ? "one_shot" : "two_shot")) return error;
  OwnStream* stream = find(handle);
  if (stream == nullptr) return kInvalidHandle;
  const size_t bytes = one_shot ? sizeof(simt::OneShotArgs) : sizeof(simt::TwoShotArgs);
  if (!pinned(args, bytes)) {
    state().complain("a kernel was given arguments that its device cannot read");
    return kInvalidValue;
  }
  // Arguments are read when the kernel runs.
  put(stream, [=, device = stream->context->ordinal] {
    if (one_shot) {
      auto seen = *static_cast<const simt::OneShotArgs*>(args);
      if (touch(&seen, device))
        all_reduce_on_host(seen, static_cast<DataType>(type), static_cast<ReduceKind>(kind), blocks);
    } else {
      auto seen = *static_cast<const simt::TwoShotArgs*>(args);
      if (touch(&seen, device)) {
        all_reduce_on_host(seen, static_cast<DataType>(type), static_cast<ReduceKind>(kind), ranks, blocks);
      }
    }
  });
  return 0;
}

}  // extern "C"

}  // namespace ringfold::test::cuda
