#include "device/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "base/log.h"
#include "base/region.h"
#include "ringfold/memory.h"

namespace ringfold {
namespace device {

Current::Current(Context context) : status_(check(driver()->context_push(context), "cuCtxPushCurrent")) {}

Current::~Current() {
  Context popped = nullptr;
  if (status_.ok()) driver()->context_pop(&popped);
}

Result<Context> primary_context(int ordinal) {
  static std::mutex mutex;
  static std::map<int, Context> retained;
  const std::lock_guard lock(mutex);
  if (auto known = retained.find(ordinal); known != retained.end()) return known->second;
  int device = 0;
  Context context = nullptr;
  RINGFOLD_TRY(check(driver()->device_get(&device, ordinal), "cuDeviceGet"));
  RINGFOLD_TRY(check(driver()->primary_context_retain(&context, device), "cuDevicePrimaryCtxRetain"));
  return retained[ordinal] = context;
}

Result<Context> current_context() {
  Context context = nullptr;
  RINGFOLD_TRY(check(driver()->context_current(&context), "cuCtxGetCurrent"));
  if (context == nullptr) return Status(Code::kInvalid, "no CUDA context is current: call cudaSetDevice first");
  return context;
}

Result<Place> place_of(const void* memory) {
  if (memory == nullptr || driver() == nullptr) return Place();
  Context context = nullptr;
  unsigned type = 0;
  int ordinal = -1;
  int attributes[] = {kAttributeContext, kAttributeMemoryType, kAttributeOrdinal};
  void* values[] = {&context, &type, &ordinal};
  const int error = driver()->pointer_attributes(3, attributes, values, reinterpret_cast<Address>(memory));
  if (error == kNotInitialized) return Place();  // nobody has any device memory
  RINGFOLD_TRY(check(error, "cuPointerGetAttributes"));
  if (type != kMemoryTypeDevice) return Place();
  if (context != nullptr) return Place{context};
  auto primary = primary_context(ordinal);  // memory of a pool belongs to no context
  if (!primary.ok()) return primary.status();
  return Place{*primary};
}

void Unpin::operator()(std::byte* memory) const {
  const Current current(context);
  const Status gone = check(driver()->host_unregister(memory), "cuMemHostUnregister");
  if (!gone.ok()) log::info("{}", gone.message());  // the process is at its end, and so is its driver
  deallocate(memory);
}

Result<Pinned> pin(Context context, size_t bytes) {
  auto memory = allocate(std::max<size_t>(bytes, 1));
  if (!memory.ok()) return memory.status();
  const Current current(context);
  const Status pinned =
      !current.status().ok()
          ? current.status()
          : check(driver()->host_register(*memory, std::max<size_t>(bytes, 1), kRegisterPortable | kRegisterMapped),
                  "cuMemHostRegister");
  if (!pinned.ok()) {
    deallocate(*memory);
    return Status(pinned.code(), fmt::format("{} bytes of pinned memory: {}", bytes, pinned.message()));
  }
  return Pinned(static_cast<std::byte*>(*memory), Unpin{context});
}

namespace {
void free_on_device(void* memory) {
  auto place = place_of(memory);
  Status freed = place.status();
  if (place.ok()) {
    const Current current(place->context);
    freed = check(driver()->memory_free(reinterpret_cast<Address>(memory)), "cuMemFree");
  }
  if (!freed.ok()) log::error("deallocate({}): {}", memory, freed.message());
}
}  // namespace

}  // namespace device

Result<Device> current_device() {
  using namespace device;
  if (driver() == nullptr) return Status(Code::kUnavailable, why_none());
  auto context = current_context();
  if (!context.ok()) return context.status();
  Device here;
  RINGFOLD_TRY(check(driver()->context_device(&here.ordinal), "cuCtxGetDevice"));
  return here;
}

Result<void*> allocate(size_t bytes, Device where) {
  using namespace device;
  if (driver() == nullptr) return Status(Code::kUnavailable, why_none());
  RINGFOLD_TRY(check(driver()->init(0), "cuInit"));
  if (where.ordinal == -1) {
    auto here = current_device();
    if (!here.ok()) return here.status();
    where = *here;
  }
  int count = 0;
  RINGFOLD_TRY(check(driver()->device_count(&count), "cuDeviceGetCount"));
  if (where.ordinal < 0 || where.ordinal >= count) {
    return Status(Code::kInvalid, fmt::format("allocate: device {} is not one of 0..{}", where.ordinal, count - 1));
  }
  auto context = primary_context(where.ordinal);
  if (!context.ok()) return context.status();
  const Current current(*context);
  RINGFOLD_TRY(current.status());
  Address address = 0;
  RINGFOLD_TRY(check(driver()->memory_allocate(&address, std::max<size_t>(bytes, 1)), "cuMemAlloc"));
  if (Status s = check(driver()->memory_set(address, 0, std::max<size_t>(bytes, 1)), "cuMemsetD8"); !s.ok()) {
    driver()->memory_free(address);
    return s;
  }
  void* memory = reinterpret_cast<void*>(address);
  region::adopt(memory, free_on_device);
  return memory;
}

}  // namespace ringfold
