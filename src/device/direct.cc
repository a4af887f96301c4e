#include "device/direct.h"

#include <fmt/format.h>
#include <unistd.h>

namespace ringfold::device {
namespace {

Result<int> attribute_of_current(int attribute) {
  int device = 0, value = 0;
  RINGFOLD_TRY(check(driver()->context_device(&device), "cuCtxGetDevice"));
  RINGFOLD_TRY(check(driver()->device_attribute(&value, attribute, device), "cuDeviceGetAttribute"));
  return value;
}

// Do kernels see what was written before without being told? The context is current.
Result<bool> sees_writes_by_itself() {
  auto scope = attribute_of_current(kDeviceOrdersWrites);
  if (!scope.ok()) return scope.status();
  return *scope >= kOrderedForOwner;
}

}  // namespace

std::string why_not_exported(Context context) {
  const Driver* d = driver();
  if (d == nullptr) return why_none();
  for (const auto& [there, name] : {std::pair{d->range_export != nullptr, "cuMemGetHandleForAddressRange"},
                                    std::pair{d->device_attribute != nullptr, "cuDeviceGetAttribute"},
                                    std::pair{d->copy_on_devices != nullptr, "cuMemcpyDtoDAsync_v2"}}) {
    if (!there) return fmt::format("the CUDA driver has no {}: one of CUDA 11.7 or newer is needed", name);
  }
  const Current current(context);
  if (!current.status().ok()) return current.status().message();
  auto exports = attribute_of_current(kDeviceExportsDmaBuf);
  if (!exports.ok()) return exports.status().message();
  if (*exports == 0) return "the GPU or its driver gives no memory to other devices (dma-buf)";
  auto sees = sees_writes_by_itself();
  if (!sees.ok()) return sees.status().message();
  if (*sees) return "";
  auto flushes = attribute_of_current(kDeviceFlushesWrites);
  if (!flushes.ok()) return flushes.status().message();
  if ((*flushes & kFlushedByHost) != 0 && d->writes_flush != nullptr) return "";
  return "nothing makes the GPU see what other devices have written to it";
}

Result<Range> range_of(Context context, const std::byte* memory) {
  const Current current(context);
  RINGFOLD_TRY(current.status());
  Address start = 0;
  Range range;
  unsigned long long id = 0;
  int attributes[] = {kAttributeRangeStart, kAttributeRangeBytes, kAttributeBufferId};
  void* values[] = {&start, &range.bytes, &id};
  RINGFOLD_TRY(check(driver()->pointer_attributes(3, attributes, values, reinterpret_cast<Address>(memory)),
                     "cuPointerGetAttributes"));
  if (start == 0 || range.bytes == 0 || id == 0) {
    return Status(Code::kUnavailable, "the CUDA driver does not know where this memory begins");
  }
  range.base = reinterpret_cast<std::byte*>(start);
  range.id = id;
  return range;
}

Result<Exported> export_range(Context context, const Range& range) {
  const Current current(context);
  RINGFOLD_TRY(current.status());
  const auto page = static_cast<Address>(sysconf(_SC_PAGESIZE));
  const Address begin = reinterpret_cast<Address>(range.base) / page * page;
  const Address end = (reinterpret_cast<Address>(range.base) + range.bytes + page - 1) / page * page;
  int fd = -1;
  RINGFOLD_TRY(check(driver()->range_export(&fd, begin, end - begin, kDmaBuf, 0), "cuMemGetHandleForAddressRange"));
  return Exported{base::Fd(fd), reinterpret_cast<std::byte*>(begin), end - begin};
}

Status see_writes(Context context) {
  const Current current(context);
  RINGFOLD_TRY(current.status());
  auto sees = sees_writes_by_itself();
  if (!sees.ok()) return sees.status();
  if (*sees) return {};
  return check(driver()->writes_flush(0, kOrderedForOwner), "cuFlushGPUDirectRDMAWrites");
}

}  // namespace ringfold::device
