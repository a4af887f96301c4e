#include "tests/device/cuda_double_state.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <utility>

namespace ringfold::test::cuda {
namespace {

thread_local bool in_host_function = false;
thread_local int captures = 0;        // that this thread has begun
thread_local void* wanted = nullptr;  // where its next memory is to lie

}  // namespace

thread_local std::vector<Context*> current;

// Never destroyed: streams may run to the end of the process.
State& state() {
  static State* const kState = new State;
  return *kState;
}

int enter(const char* function, bool needs_context) {
  State& s = state();
  if (in_host_function) s.complain(std::string(function) + " was called by a host function");
  static const std::set<std::string> kNotInCaptures = {"cuMemAlloc",          "cuMemFree",  "cuMemHostRegister",
                                                       "cuMemHostUnregister", "cuMemsetD8", "cuEventQuery"};
  if (captures > 0 && kNotInCaptures.contains(function)) s.complain(std::string(function) + " ends a capture");
  const std::lock_guard lock(s.mutex);
  ++s.calls[function];
  if (auto f = s.failures.find(function); f != s.failures.end() && f->second.first-- == 0) {
    const int error = f->second.second;
    s.failures.erase(f);
    return error;
  }
  if (!s.started) return kNotInitialized;
  if (s.broken != 0) return s.broken;
  return needs_context && current.empty() ? kInvalidContext : 0;
}

static OwnStream* make(Context* context, bool non_blocking) {
  auto* stream = new OwnStream{context, non_blocking, std::make_shared<Queue>()};
  std::thread([queue = stream->queue] {
    std::unique_lock lock(queue->mutex);
    for (;;) {
      queue->changed.wait(lock, [&] { return queue->closed || !queue->work.empty(); });
      if (queue->work.empty()) return;
      auto work = std::move(queue->work.front());
      queue->work.pop_front();
      queue->busy = true;
      lock.unlock();
      if (const int lag = state().lag(); lag > 0) std::this_thread::sleep_for(std::chrono::microseconds(lag));
      if (state().broken == 0) work();
      work = nullptr;
      lock.lock();
      queue->busy = false;
      queue->changed.notify_all();
    }
  }).detach();
  return stream;
}

OwnStream* find(void* handle) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (reinterpret_cast<uintptr_t>(handle) <= 2) {
    if (current.empty()) return nullptr;
    auto& stream = s.default_streams[current.back()];
    if (stream == nullptr) stream = make(current.back(), false);
    return stream;
  }
  auto* stream = static_cast<OwnStream*>(handle);
  return s.streams.contains(stream) ? stream : nullptr;
}

void put(OwnStream* stream, std::function<void()> work) {
  const std::lock_guard lock(stream->queue->mutex);
  if (stream->recording != nullptr) return stream->recording->push_back(std::move(work));
  stream->queue->work.push_back(std::move(work));
  stream->queue->changed.notify_all();
}

std::byte* device_bytes(uint64_t address, size_t bytes, int device) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  auto above = s.allocations.upper_bound(address);
  if (above == s.allocations.begin()) return nullptr;
  const auto& [base, allocation] = *std::prev(above);
  if (device >= 0 && (allocation.allowed >> device & 1) == 0) return nullptr;
  return address - base <= allocation.bytes && bytes <= allocation.bytes - (address - base)
             ? allocation.alias + (address - base)
             : nullptr;
}

bool pinned(const void* memory, size_t bytes) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto address = reinterpret_cast<uint64_t>(memory);
  auto above = s.registered.upper_bound(address);
  if (above == s.registered.begin()) return false;
  const auto& [base, size] = *std::prev(above);
  return address - base <= size && bytes <= size - (address - base);
}

bool may_copy() {
  State& s = state();
  if (s.copies_left < 0 || s.copies_left-- != 0) return true;
  s.broken = s.copy_error;
  return false;
}

void copy_bytes(void* target, const void* source, size_t bytes) {
  if (bytes != 4 || reinterpret_cast<uintptr_t>(target) % 4 != 0) {
    std::memcpy(target, source, bytes);
    return;
  }
  uint32_t word = 0;
  std::memcpy(&word, source, 4);
  std::atomic_ref(*static_cast<uint32_t*>(target)).store(word, std::memory_order_release);
}

int make_file(int ordinal, size_t bytes) {
  const int fd = memfd_create(("device-memory-" + std::to_string(ordinal)).c_str(), MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0) std::abort();
  return fd;
}

void* map_file(int fd, size_t bytes, void* at, bool visible) {
  void* place = mmap(at, bytes, visible ? PROT_READ | PROT_WRITE : PROT_NONE,
                     MAP_SHARED | (at != nullptr ? MAP_FIXED : 0), fd, 0);
  if (place == MAP_FAILED) std::abort();
  return place;
}

static int copy(const char* function, uint64_t device, const void* host, bool to_device, size_t bytes, void* handle) {
  if (const int error = enter(function)) return error;
  OwnStream* stream = find(handle);
  if (stream == nullptr) return kInvalidHandle;
  std::byte* memory = device_bytes(device, bytes);
  if (memory == nullptr) {
    state().complain(std::string(function) + " of bytes that are not device memory");
    return kInvalidValue;
  }
  if (!pinned(host, bytes)) state().complain(std::string(function) + " with memory that is not pinned");
  if (!stream->non_blocking)
    state().complain(std::string(function) + " on a stream that waits for the default stream");
  if (stream->context != current.back()) return kInvalidHandle;
  put(stream, [=] {
    State& s = state();
    if (!may_copy()) return;
    if (to_device) s.copies_held.wait(true);
    copy_bytes(to_device ? memory : const_cast<void*>(host), to_device ? host : memory, bytes);
  });
  return 0;
}

// ---- for tests ----

void set_device(int ordinal) {
  state().started = true;
  current.assign(1, &state().contexts[ordinal]);
}

std::byte* alias(const void* memory) { return device_bytes(reinterpret_cast<uint64_t>(memory), 0); }

void launch(Stream handle, std::function<void()> kernel) { put(find(handle), std::move(kernel)); }

void begin_capture(Stream handle) {
  OwnStream* stream = find(handle);
  const std::lock_guard lock(stream->queue->mutex);
  stream->recording = std::make_shared<Graph::element_type>();
  ++captures;
}
Graph end_capture(Stream handle) {
  OwnStream* stream = find(handle);
  const std::lock_guard lock(stream->queue->mutex);
  --captures;
  return std::exchange(stream->recording, nullptr);
}
void replay(const Graph& graph, Stream handle) {
  for (const auto& work : *graph) put(find(handle), work);
}

bool idle(Stream handle) {
  OwnStream* stream = find(handle);
  const std::lock_guard lock(stream->queue->mutex);
  return stream->queue->work.empty() && !stream->queue->busy;
}

bool synchronize(Stream handle, double seconds) {
  const auto queue = find(handle)->queue;
  std::unique_lock lock(queue->mutex);
  return queue->changed.wait_for(lock, std::chrono::duration<double>(seconds),
                                 [&] { return queue->work.empty() && !queue->busy; });
}

bool all_idle() {
  std::vector<std::shared_ptr<Queue>> queues;
  {
    const std::lock_guard lock(state().mutex);
    for (OwnStream* stream : state().streams) queues.push_back(stream->queue);
  }
  return std::all_of(queues.begin(), queues.end(), [](const auto& queue) {
    const std::lock_guard lock(queue->mutex);
    return queue->work.empty() && !queue->busy;
  });
}

void set_lag(int most_us, unsigned seed) {
  const std::lock_guard lock(state().mutex);
  state().most_lag_us = most_us;
  state().random.seed(seed);
}
void hold_copies_out(bool held) {
  state().copies_held = held;
  state().copies_held.notify_all();
}
void allow_stream_waits(bool allowed) { state().waits_allowed = allowed; }
void let_peers_reach(bool reach) { state().peers_reach = reach; }
void let_have_fabric(bool has, bool allocates) {
  state().fabric = has;
  state().fabric_allocates = allocates;
}
void let_multicast(bool has) { state().multicasts = has; }
void let_share(bool share) { state().shares = share; }
void let_export(bool exports) { state().exports = exports; }
void let_see_writes(bool by_itself, bool when_told) {
  state().orders_writes = by_itself;
  state().flushes = when_told;
}
void set_capturing(bool capturing) { state().capturing = capturing; }
void fail(const std::string& function, int error, int after) {
  const std::lock_guard lock(state().mutex);
  state().failures[function] = {after, error};
}
void break_copy(int error, int after) {
  state().copy_error = error;
  state().copies_left = after;
}
void mend() {
  hold_copies_out(false);
  const std::lock_guard lock(state().mutex);
  state().failures.clear();
  state().copies_left = -1;
  state().broken = 0;
}

Live live() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return {static_cast<int>(s.streams.size()),     static_cast<int>(s.events.size()),
          static_cast<int>(s.allocations.size()), static_cast<int>(s.registered.size()),
          static_cast<int>(s.shared.size()),      static_cast<int>(s.ranges.size()),
          static_cast<int>(s.opened.size()),      static_cast<int>(s.bound.size())};
}
int calls(const std::string& function) {
  const std::lock_guard lock(state().mutex);
  return state().calls[function];
}
std::vector<std::string> complaints() {
  const std::lock_guard lock(state().mutex);
  return std::exchange(state().complaints, {});
}

// ---- the driver ----

// A word in pinned memory, or in memory that the stream's device may touch; null: neither.
static std::atomic<uint32_t>* word_at(uint64_t address, const OwnStream* stream) {
  auto* host = reinterpret_cast<std::atomic<uint32_t>*>(address);
  if (pinned(host, sizeof *host)) return host;
  return reinterpret_cast<std::atomic<uint32_t>*>(device_bytes(address, 4, stream->context->ordinal));
}

extern "C" {

DOUBLE_API int cuGetErrorName(int error, const char** name) {
  thread_local char text[32];
  std::snprintf(text, sizeof text, "CUDA_ERROR_%d", error);
  return *name = text, 0;
}
DOUBLE_API int cuGetErrorString(int, const char** text) { return *text = "on order", 0; }

DOUBLE_API int cuInit(unsigned) {
  const int error = enter("cuInit", false);
  if (error != 0 && error != kNotInitialized) return error;
  state().started = true;
  return 0;
}
DOUBLE_API int cuDeviceGetCount(int* count) {
  if (const int error = enter("cuDeviceGetCount", false)) return error;
  return *count = kDevices, 0;
}
DOUBLE_API int cuDeviceGet(int* device, int ordinal) {
  if (const int error = enter("cuDeviceGet", false)) return error;
  return ordinal < 0 || ordinal >= kDevices ? kInvalidValue : (*device = ordinal, 0);
}
DOUBLE_API int cuDevicePrimaryCtxRetain(Context** context, int device) {
  if (const int error = enter("cuDevicePrimaryCtxRetain", false)) return error;
  return *context = &state().contexts[device], 0;
}
DOUBLE_API int cuCtxGetCurrent(Context** context) {
  if (const int error = enter("cuCtxGetCurrent", false)) return error;
  return *context = current.empty() ? nullptr : current.back(), 0;
}
DOUBLE_API int cuCtxGetDevice(int* device) {
  if (const int error = enter("cuCtxGetDevice")) return error;
  return *device = current.back()->ordinal, 0;
}
DOUBLE_API int cuCtxPushCurrent_v2(Context* context) {
  if (const int error = enter("cuCtxPushCurrent", false)) return error;
  return current.push_back(context), 0;
}
DOUBLE_API int cuCtxPopCurrent_v2(Context** context) {
  if (current.empty()) return kInvalidContext;
  *context = current.back();
  return current.pop_back(), 0;
}
// Of addresses that it does not know it says nothing, as the driver does.
DOUBLE_API int cuPointerGetAttributes(unsigned count, int* attributes, void** values, uint64_t address) {
  if (const int error = enter("cuPointerGetAttributes", false)) return error;
  State& s = state();
  const std::lock_guard lock(s.mutex);
  auto above = s.allocations.upper_bound(address);
  const Allocation* found = nullptr;
  if (above != s.allocations.begin() && address - std::prev(above)->first < std::prev(above)->second.bytes) {
    found = &std::prev(above)->second;
  }
  for (unsigned i = 0; i < count; ++i) {
    if (attributes[i] == 1) *static_cast<Context**>(values[i]) = found != nullptr ? found->context : nullptr;
    if (attributes[i] == 2) *static_cast<unsigned*>(values[i]) = found != nullptr ? 2 : 0;
    if (attributes[i] == 9) *static_cast<int*>(values[i]) = found != nullptr ? found->ordinal : -2;
    if (attributes[i] == 7) *static_cast<uint64_t*>(values[i]) = found != nullptr ? found->id : 0;
    if (attributes[i] == 11) *static_cast<uint64_t*>(values[i]) = found != nullptr ? std::prev(above)->first : 0;
    if (attributes[i] == 12) *static_cast<size_t*>(values[i]) = found != nullptr ? found->bytes : 0;
  }
  return 0;
}
DOUBLE_API int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  if (const int error = enter("cuMemAlloc")) return error;
  const size_t size = (bytes + 4095) / 4096 * 4096;
  const int fd = make_file(current.back()->ordinal, size);
  void *place = map_file(fd, size, std::exchange(wanted, nullptr), false), *alias = map_file(fd, size, nullptr, true);
  std::memset(alias, 0xa5, size);  // fresh memory is of no use
  State& s = state();
  const std::lock_guard lock(s.mutex);
  *address = reinterpret_cast<uint64_t>(place);
  const int ordinal = current.back()->ordinal;
  s.allocations[*address] = {bytes,      static_cast<std::byte*>(alias), current.back(), ordinal, 1U << ordinal, fd,
                             ++s.last_id};
  return 0;
}
DOUBLE_API int cuMemFree_v2(uint64_t address) {
  if (const int error = enter("cuMemFree")) return error;
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (auto of = s.allocations.find(address); of == s.allocations.end() || of->second.context == nullptr) {
    return kInvalidValue;  // shared memory goes another way
  }
  auto found = s.allocations.extract(address);
  const size_t size = (found.mapped().bytes + 4095) / 4096 * 4096;
  munmap(reinterpret_cast<void*>(address), size);
  munmap(found.mapped().alias, size);
  close(found.mapped().fd);
  return 0;
}
DOUBLE_API int cuMemsetD8_v2(uint64_t address, unsigned char value, size_t bytes) {
  if (const int error = enter("cuMemsetD8")) return error;
  std::byte* memory = device_bytes(address, bytes);
  return memory == nullptr ? kInvalidValue : (std::memset(memory, value, bytes), 0);
}
DOUBLE_API int cuMemHostRegister_v2(void* memory, size_t bytes, unsigned) {
  if (const int error = enter("cuMemHostRegister")) return error;
  if (pinned(memory, 1)) return kAlreadyRegistered;
  const std::lock_guard lock(state().mutex);
  state().registered[reinterpret_cast<uint64_t>(memory)] = bytes;
  return 0;
}
DOUBLE_API int cuMemHostUnregister(void* memory) {
  const int error = enter("cuMemHostUnregister");
  const std::lock_guard lock(state().mutex);
  return state().registered.erase(reinterpret_cast<uint64_t>(memory)) == 1 ? error : kNotRegistered;
}
DOUBLE_API int cuMemHostGetDevicePointer_v2(uint64_t* address, void* memory, unsigned) {
  if (const int error = enter("cuMemHostGetDevicePointer")) return error;
  return pinned(memory, 1) ? (*address = reinterpret_cast<uint64_t>(memory), 0) : kInvalidValue;
}
DOUBLE_API int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
  return copy("cuMemcpyDtoHAsync", from, to, false, bytes, stream);
}
DOUBLE_API int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
  return copy("cuMemcpyHtoDAsync", to, from, true, bytes, stream);
}
DOUBLE_API int cuStreamCreate(OwnStream** stream, unsigned flags) {
  if (const int error = enter("cuStreamCreate")) return error;
  *stream = make(current.back(), (flags & 1) != 0);
  const std::lock_guard lock(state().mutex);
  state().streams.insert(*stream);
  return 0;
}
// What is on it still runs. (What ends things does so whatever it returns.)
DOUBLE_API int cuStreamDestroy_v2(OwnStream* stream) {
  const int error = enter("cuStreamDestroy");
  {
    const std::lock_guard lock(state().mutex);
    if (state().streams.erase(stream) != 1) return kInvalidHandle;
  }
  {
    const std::lock_guard lock(stream->queue->mutex);
    stream->queue->closed = true;
    stream->queue->changed.notify_all();
  }
  delete stream;
  return error;
}
DOUBLE_API int cuStreamWaitEvent(void* handle, Event* event, unsigned) {
  if (const int error = enter("cuStreamWaitEvent")) return error;
  OwnStream* stream = find(handle);
  if (stream == nullptr) return kInvalidHandle;
  put(stream, [marks = event->marks, until = event->marks->recorded.load()] {
    while (marks->reached < until && state().broken == 0) std::this_thread::sleep_for(std::chrono::microseconds(20));
  });
  return 0;
}
DOUBLE_API int cuStreamIsCapturing(void* handle, int* status) {
  if (const int error = enter("cuStreamIsCapturing")) return error;
  OwnStream* stream = find(handle);
  if (stream == nullptr) return kInvalidHandle;
  const std::lock_guard lock(stream->queue->mutex);
  return *status = state().capturing || stream->recording != nullptr ? 1 : 0, 0;
}
DOUBLE_API int cuStreamGetCtx(void* handle, Context** context) {
  if (const int error = enter("cuStreamGetCtx", false)) return error;
  OwnStream* stream = find(handle);
  return stream == nullptr ? kInvalidHandle : (*context = stream->context, 0);
}
DOUBLE_API int cuStreamWaitValue32_v2(void* handle, uint64_t address, uint32_t value, unsigned) {
  if (const int error = enter("cuStreamWaitValue32")) return error;
  if (!state().waits_allowed) return kNotSupported;
  OwnStream* stream = find(handle);
  if (stream == nullptr) return kInvalidValue;
  auto* word = word_at(address, stream);
  if (word == nullptr) return kInvalidValue;
  put(stream, [=] {
    while (static_cast<int32_t>(word->load() - value) < 0 && state().broken == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  });
  return 0;
}
DOUBLE_API int cuStreamWriteValue32_v2(void* handle, uint64_t address, uint32_t value, unsigned) {
  if (const int error = enter("cuStreamWriteValue32")) return error;
  if (!state().waits_allowed) return kNotSupported;
  OwnStream* stream = find(handle);
  if (stream == nullptr) return kInvalidValue;
  auto* word = word_at(address, stream);
  if (word == nullptr) return kInvalidValue;
  put(stream, [=] { word->store(value); });
  return 0;
}
DOUBLE_API int cuLaunchHostFunc(void* handle, void (*function)(void*), void* user) {
  if (const int error = enter("cuLaunchHostFunc")) return error;
  OwnStream* stream = find(handle);
  if (stream == nullptr) return kInvalidHandle;
  put(stream, [=] {
    in_host_function = true;
    function(user);
    in_host_function = false;
  });
  return 0;
}
DOUBLE_API int cuEventCreate(Event** event, unsigned) {
  if (const int error = enter("cuEventCreate")) return error;
  *event = new Event;
  const std::lock_guard lock(state().mutex);
  state().events.insert(*event);
  return 0;
}
DOUBLE_API int cuEventRecord(Event* event, void* handle) {
  if (const int error = enter("cuEventRecord")) return error;
  OwnStream* stream = find(handle);
  if (stream == nullptr || stream->context != current.back()) return kInvalidHandle;
  put(stream, [marks = event->marks, mark = ++event->marks->recorded] { marks->reached = mark; });
  return 0;
}
DOUBLE_API int cuEventQuery(Event* event) {
  if (const int error = enter("cuEventQuery")) return error;
  return event->marks->reached >= event->marks->recorded ? 0 : kNotReady;
}
DOUBLE_API int cuEventDestroy_v2(Event* event) {
  const int error = enter("cuEventDestroy");
  const std::lock_guard lock(state().mutex);
  if (state().events.erase(event) == 1) delete event;
  return error;
}

}  // extern "C"

void* allocate(size_t bytes) {
  uint64_t address = 0;
  return cuMemAlloc_v2(&address, std::max<size_t>(bytes, 1)) == 0 ? reinterpret_cast<void*>(address) : nullptr;
}
std::byte* allocate_at(void* address, size_t bytes) {
  wanted = address;
  return static_cast<std::byte*>(allocate(bytes));
}
void free(void* memory) { cuMemFree_v2(reinterpret_cast<uint64_t>(memory)); }
Stream make_stream() {
  OwnStream* stream = nullptr;
  return cuStreamCreate(&stream, 1) == 0 ? reinterpret_cast<Stream>(stream) : nullptr;
}
void destroy(Stream stream) { cuStreamDestroy_v2(reinterpret_cast<OwnStream*>(stream)); }

}  // namespace ringfold::test::cuda
