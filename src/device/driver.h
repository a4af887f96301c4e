// The CUDA driver as one table of functions. It is looked up at run time, so that everything builds without the CUDA
// toolkit and loads where there is no driver; tests put a library of their own in its place (RINGFOLD_CUDA).
// What is declared here is the driver's binary interface as far as it is needed: handles are opaque, addresses of
// device memory are numbers, every function returns 0 or an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "ringfold/status.h"

namespace ringfold::device {

using Context = struct ContextHandle*;
using Stream = struct StreamHandle*;
using Event = struct EventHandle*;
using Address = uint64_t;

// Errors and numbers of the driver's interface that decide something here.
inline constexpr int kSuccess = 0, kOutOfMemory = 2, kNotInitialized = 3, kNoDevice = 100, kInvalidContext = 201,
                     kNotReady = 600, kNotPermitted = 800, kNotSupported = 801;
inline constexpr int kAttributeContext = 1, kAttributeMemoryType = 2, kAttributeBufferId = 7, kAttributeOrdinal = 9,
                     kAttributeRangeStart = 11, kAttributeRangeBytes = 12;
inline constexpr unsigned kMemoryTypeDevice = 2;
inline constexpr unsigned kNonBlockingStream = 1, kEventWithoutTimes = 2;
inline constexpr unsigned kRegisterPortable = 1, kRegisterMapped = 2;
inline constexpr unsigned kWaitAtLeast = 0;
inline constexpr int kDeviceHasVirtualMemory = 102, kDeviceSharesDescriptors = 103;
inline constexpr int kDeviceSharesFabric = 128, kDeviceMulticasts = 132;
inline constexpr int kDeviceFlushesWrites = 117, kDeviceOrdersWrites = 118, kDeviceExportsDmaBuf = 124;
inline constexpr int kFlushedByHost = 1;      // of kDeviceFlushesWrites
inline constexpr int kOrderedForOwner = 100;  // of kDeviceOrdersWrites, or more; the scope of a flush
inline constexpr int kDmaBuf = 1;             // the kind of handle that a range of memory has
// The kinds of handles that memory is shared by: a POSIX file descriptor, and bytes that anybody may be told.
inline constexpr int kDescriptor = 1, kFabric = 8;
struct IpcHandle {
  unsigned char bytes[64] = {};
};
struct FabricHandle {
  unsigned char bytes[64] = {};
};
inline constexpr int kLeastGranularity = 0, kRecommendedGranularity = 1;

// Memory of a device that can be shared, and who may use a mapping of it.
struct Location {
  int type = 1;  // a device
  int ordinal = 0;
};
struct AllocationProperties {
  int type = 1;  // memory that stays where it is
  int handles = kDescriptor;
  Location location;
  void* of_other_systems = nullptr;
  unsigned char flags[8] = {};
};
// An object that stands for memory of several devices at one address.
struct MulticastProperties {
  unsigned devices = 0;
  size_t bytes = 0;
  unsigned long long handles = kDescriptor;
  unsigned long long flags = 0;
};
struct AccessDescription {
  Location location;
  int flags = 3;  // read and write
};
struct Uuid {
  unsigned char bytes[16] = {};
};
using Allocation = unsigned long long;

struct Driver {
  int (*get_error_name)(int error, const char** name);
  int (*get_error_string)(int error, const char** text);
  int (*init)(unsigned flags);
  int (*device_count)(int* count);
  int (*device_get)(int* device, int ordinal);
  int (*primary_context_retain)(Context* context, int device);
  int (*context_current)(Context* context);
  int (*context_device)(int* device);
  int (*context_push)(Context context);
  int (*context_pop)(Context* context);
  int (*pointer_attributes)(unsigned count, int* attributes, void** values, Address address);
  int (*memory_allocate)(Address* address, size_t bytes);
  int (*memory_free)(Address address);
  int (*memory_set)(Address address, unsigned char value, size_t bytes);
  int (*host_register)(void* memory, size_t bytes, unsigned flags);
  int (*host_unregister)(void* memory);
  int (*host_address)(Address* address, void* memory, unsigned flags);
  int (*copy_to_host)(void* to, Address from, size_t bytes, Stream stream);
  int (*copy_to_device)(Address to, const void* from, size_t bytes, Stream stream);
  int (*stream_create)(Stream* stream, unsigned flags);
  int (*stream_destroy)(Stream stream);
  int (*stream_wait_event)(Stream stream, Event event, unsigned flags);
  int (*stream_is_capturing)(Stream stream, int* status);
  int (*stream_context)(Stream stream, Context* context);
  int (*stream_wait_value)(Stream stream, Address word, uint32_t value, unsigned flags);
  int (*launch_host_function)(Stream stream, void (*function)(void*), void* user);
  int (*event_create)(Event* event, unsigned flags);
  int (*event_record)(Event event, Stream stream);
  int (*event_query)(Event event);
  int (*event_destroy)(Event event);
  // Memory that ranks share, and streams that wait for each other through it (shares()). Null in older drivers.
  int (*device_name)(char* name, int bytes, int device);
  int (*device_uuid)(Uuid* uuid, int device);
  int (*device_attribute)(int* value, int attribute, int device);
  int (*device_reaches)(int* reaches, int device, int peer);
  int (*copy_on_devices)(Address to, Address from, size_t bytes, Stream stream);
  int (*memory_set_on)(Address address, unsigned char value, size_t bytes, Stream stream);
  int (*stream_write_value)(Stream stream, Address word, uint32_t value, unsigned flags);
  int (*allocation_granularity)(size_t* bytes, const AllocationProperties* properties, int which);
  int (*allocation_create)(Allocation* allocation, size_t bytes, const AllocationProperties* properties,
                           unsigned long long flags);
  int (*allocation_release)(Allocation allocation);
  int (*allocation_export)(void* handle, Allocation allocation, int kind, unsigned long long flags);
  int (*allocation_import)(Allocation* allocation, void* handle, int kind);
  int (*range_reserve)(Address* address, size_t bytes, size_t alignment, Address wanted, unsigned long long flags);
  int (*range_free)(Address address, size_t bytes);
  int (*range_map)(Address address, size_t bytes, size_t offset, Allocation allocation, unsigned long long flags);
  int (*range_unmap)(Address address, size_t bytes);
  int (*range_allow)(Address address, size_t bytes, const AccessDescription* who, size_t count);
  // Memory of several devices at one address, of which the switch between them gives sums. Null before CUDA 12.1.
  int (*multicast_granularity)(size_t* bytes, const MulticastProperties* properties, int which);
  int (*multicast_create)(Allocation* object, const MulticastProperties* properties);
  int (*multicast_add)(Allocation object, int device);
  int (*multicast_bind)(Allocation object, size_t offset, Allocation memory, size_t memory_offset, size_t bytes,
                        unsigned long long flags);
  int (*multicast_unbind)(Allocation object, int device, size_t offset, size_t bytes);
  // Memory of cudaMalloc that other processes use.
  int (*ipc_handle)(IpcHandle* handle, Address address);
  int (*ipc_open)(Address* address, IpcHandle handle, unsigned flags);
  int (*ipc_close)(Address address);
  // Memory that other devices write to (why_not_exported()). Null in drivers before CUDA 11.7.
  int (*range_export)(void* handle, Address address, size_t bytes, int kind, unsigned long long flags);
  int (*writes_flush)(int target, int scope);
  // Not CUDA's: reductions that a library in the driver's place brings along, since it runs no kernels. Arguments as
  // kernels/cuda/cuda.h has them, numbers for DataType and ReduceKind. Null in a driver.
  int (*stand_in_fold)(int type, int kind, bool complete, void* out, const void* const* in, int inputs, size_t elems,
                       double factor, long long divisor, Stream stream);
  // CodecKernels::combine, of a Codec, Terms, a Post or null, a Target.
  int (*stand_in_combine)(const void* codec, const void* terms, int count, size_t elems, const void* post,
                          const void* target, uint64_t key, uint64_t first, Stream stream);
  // all_reduce in one kernel: as kernels/cuda/all_reduce.h has it.
  int (*stand_in_all_reduce)(bool one_shot, int type, int kind, const void* args, int ranks, int blocks,
                             Stream stream);
  int (*stand_in_multicast)(int type, bool scale, const void* args, int blocks, Stream stream);

  // "", or the name of the first function that sharing memory needs and that this driver lacks.
  const char* missing_to_share() const;
  const char* missing_to_multicast() const;
  const char* missing_to_open() const;
};

// The driver of this process, looked up at the first call and kept; null: there is none (why_none() tells why).
// Loading it starts nothing on any device. Which library: RINGFOLD_CUDA, a path or "off"; else libcuda.so.1. Any
// thread.
const Driver* driver();
const std::string& why_none();

// Of the driver's function `call`: "cuMemcpyDtoHAsync_v2: CUDA_ERROR_ILLEGAL_ADDRESS (...)". Ok for 0.
Status check(int error, const char* call);

}  // namespace ringfold::device
