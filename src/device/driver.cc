#include "device/driver.h"

#include <fmt/format.h>

#include <cstdlib>
#include <utility>

#include "base/loaded.h"

namespace ringfold::device {
namespace {

Result<Driver> look_up() {
  const char* chosen = std::getenv("RINGFOLD_CUDA");
  const std::string file =
      chosen == nullptr || *chosen == '\0' || std::string_view(chosen) == "auto" ? "libcuda.so.1" : chosen;
  if (file == "off") return Status(Code::kUnavailable, "RINGFOLD_CUDA=off");
  base::Loaded library(file.c_str());
  if (!library.ok()) {
    return Status(Code::kUnavailable, fmt::format("no CUDA driver: {} cannot be loaded ({})", file, library.why()));
  }
  Driver d{};
  library.find(d.get_error_name, "cuGetErrorName");
  library.find(d.get_error_string, "cuGetErrorString");
  library.find(d.init, "cuInit");
  library.find(d.device_count, "cuDeviceGetCount");
  library.find(d.device_get, "cuDeviceGet");
  library.find(d.primary_context_retain, "cuDevicePrimaryCtxRetain");
  library.find(d.context_current, "cuCtxGetCurrent");
  library.find(d.context_device, "cuCtxGetDevice");
  library.find(d.context_push, "cuCtxPushCurrent_v2");
  library.find(d.context_pop, "cuCtxPopCurrent_v2");
  library.find(d.pointer_attributes, "cuPointerGetAttributes");
  library.find(d.memory_allocate, "cuMemAlloc_v2");
  library.find(d.memory_free, "cuMemFree_v2");
  library.find(d.memory_set, "cuMemsetD8_v2");
  library.find(d.host_register, "cuMemHostRegister_v2");
  library.find(d.host_unregister, "cuMemHostUnregister");
  library.find(d.host_address, "cuMemHostGetDevicePointer_v2");
  library.find(d.copy_to_host, "cuMemcpyDtoHAsync_v2");
  library.find(d.copy_to_device, "cuMemcpyHtoDAsync_v2");
  library.find(d.stream_create, "cuStreamCreate");
  library.find(d.stream_destroy, "cuStreamDestroy_v2");
  library.find(d.stream_wait_event, "cuStreamWaitEvent");
  library.find(d.stream_is_capturing, "cuStreamIsCapturing");
  library.find(d.stream_context, "cuStreamGetCtx");
  library.find(d.launch_host_function, "cuLaunchHostFunc");
  library.find(d.event_create, "cuEventCreate");
  library.find(d.event_record, "cuEventRecord");
  library.find(d.event_query, "cuEventQuery");
  library.find(d.event_destroy, "cuEventDestroy_v2");
  if (!library.missing().empty()) {
    return Status(Code::kUnavailable,
                  fmt::format("{} has no {}: a driver of CUDA 10 or newer is needed", file, library.missing()));
  }
  // Older drivers have it only where an administrator allows it: host functions stand in for it (stream.cc).
  library.find_if_there(d.stream_wait_value, "cuStreamWaitValue32_v2");
  library.find_if_there(d.device_name, "cuDeviceGetName");
  library.find_if_there(d.device_uuid, "cuDeviceGetUuid_v2");
  library.find_if_there(d.device_attribute, "cuDeviceGetAttribute");
  library.find_if_there(d.device_reaches, "cuDeviceCanAccessPeer");
  library.find_if_there(d.copy_on_devices, "cuMemcpyDtoDAsync_v2");
  library.find_if_there(d.memory_set_on, "cuMemsetD8Async");
  library.find_if_there(d.stream_write_value, "cuStreamWriteValue32_v2");
  library.find_if_there(d.allocation_granularity, "cuMemGetAllocationGranularity");
  library.find_if_there(d.allocation_create, "cuMemCreate");
  library.find_if_there(d.allocation_release, "cuMemRelease");
  library.find_if_there(d.allocation_export, "cuMemExportToShareableHandle");
  library.find_if_there(d.allocation_import, "cuMemImportFromShareableHandle");
  library.find_if_there(d.range_reserve, "cuMemAddressReserve");
  library.find_if_there(d.range_free, "cuMemAddressFree");
  library.find_if_there(d.range_map, "cuMemMap");
  library.find_if_there(d.range_unmap, "cuMemUnmap");
  library.find_if_there(d.range_allow, "cuMemSetAccess");
  library.find_if_there(d.multicast_granularity, "cuMulticastGetGranularity");
  library.find_if_there(d.multicast_create, "cuMulticastCreate");
  library.find_if_there(d.multicast_add, "cuMulticastAddDevice");
  library.find_if_there(d.multicast_bind, "cuMulticastBindMem");
  library.find_if_there(d.multicast_unbind, "cuMulticastUnbind");
  library.find_if_there(d.ipc_handle, "cuIpcGetMemHandle");
  library.find_if_there(d.ipc_open, "cuIpcOpenMemHandle_v2");
  library.find_if_there(d.ipc_close, "cuIpcCloseMemHandle");
  library.find_if_there(d.range_export, "cuMemGetHandleForAddressRange");
  library.find_if_there(d.writes_flush, "cuFlushGPUDirectRDMAWrites");
  library.find_if_there(d.stand_in_fold, "ringfoldStandInFold");
  library.find_if_there(d.stand_in_combine, "ringfoldStandInCombine");
  library.find_if_there(d.stand_in_all_reduce, "ringfoldStandInAllReduce");
  library.find_if_there(d.stand_in_multicast, "ringfoldStandInMulticast");
  return d;
}

const Result<Driver>& looked_up() {
  static const Result<Driver> found = look_up();
  return found;
}

}  // namespace

namespace {
using Needed = std::initializer_list<std::pair<bool, const char*>>;
const char* first_missing(Needed needed) {
  for (const auto& [there, name] : needed) {
    if (!there) return name;
  }
  return "";
}
}  // namespace

const char* Driver::missing_to_multicast() const {
  return first_missing({{multicast_granularity != nullptr, "cuMulticastGetGranularity"},
                        {multicast_create != nullptr, "cuMulticastCreate"},
                        {multicast_add != nullptr, "cuMulticastAddDevice"},
                        {multicast_bind != nullptr, "cuMulticastBindMem"},
                        {multicast_unbind != nullptr, "cuMulticastUnbind"}});
}

const char* Driver::missing_to_open() const {
  return first_missing({{ipc_handle != nullptr, "cuIpcGetMemHandle"},
                        {ipc_open != nullptr, "cuIpcOpenMemHandle_v2"},
                        {ipc_close != nullptr, "cuIpcCloseMemHandle"}});
}

const char* Driver::missing_to_share() const {
  return first_missing({{device_name != nullptr, "cuDeviceGetName"},
                        {device_uuid != nullptr, "cuDeviceGetUuid_v2"},
                        {device_attribute != nullptr, "cuDeviceGetAttribute"},
                        {device_reaches != nullptr, "cuDeviceCanAccessPeer"},
                        {copy_on_devices != nullptr, "cuMemcpyDtoDAsync_v2"},
                        {stream_wait_value != nullptr, "cuStreamWaitValue32_v2"},
                        {memory_set_on != nullptr, "cuMemsetD8Async"},
                        {stream_write_value != nullptr, "cuStreamWriteValue32_v2"},
                        {allocation_granularity != nullptr, "cuMemGetAllocationGranularity"},
                        {allocation_create != nullptr, "cuMemCreate"},
                        {allocation_release != nullptr, "cuMemRelease"},
                        {allocation_export != nullptr, "cuMemExportToShareableHandle"},
                        {allocation_import != nullptr, "cuMemImportFromShareableHandle"},
                        {range_reserve != nullptr, "cuMemAddressReserve"},
                        {range_free != nullptr, "cuMemAddressFree"},
                        {range_map != nullptr, "cuMemMap"},
                        {range_unmap != nullptr, "cuMemUnmap"},
                        {range_allow != nullptr, "cuMemSetAccess"}});
}

const Driver* driver() {
  static const Driver* const kDriver = looked_up().ok() ? &looked_up().value() : nullptr;
  return kDriver;
}

const std::string& why_none() { return looked_up().status().message(); }

Status check(int error, const char* call) {
  if (error == kSuccess) return {};
  const char *name = nullptr, *text = nullptr;
  const Driver* d = driver();
  if (d == nullptr || d->get_error_name(error, &name) != kSuccess || name == nullptr) name = "an unknown error";
  if (d == nullptr || d->get_error_string(error, &text) != kSuccess || text == nullptr) text = "";
  const Code code =
      error == kOutOfMemory || error == kNoDevice || error == kNotInitialized ? Code::kUnavailable : Code::kIo;
  return {code, fmt::format("CUDA driver: {}: {} ({}: {})", call, name, error, text)};
}

}  // namespace ringfold::device
