// Is what src/device/driver.h declares of the driver what the toolkit's header says? Numbers, shapes of functions,
// and the names by which the header's functions are to be looked up. Built where there is a toolkit.
#include <cuda.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <type_traits>

#include "device/driver.h"

namespace ringfold::test {
namespace {

using device::Driver;

// Equal as the calling convention has it: pointers are pointers and numbers have a size, whatever their names are.
template <typename T>
using Plain = std::conditional_t<
    std::is_pointer_v<T>, void*,
    std::conditional_t<
        std::is_integral_v<T> || std::is_enum_v<T>,
        std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint8_t>>, T>>;
template <typename A, typename B>
struct Same : std::false_type {};
template <typename R, typename... A, typename S, typename... B>
struct Same<R (*)(A...), S (*)(B...)>
    : std::bool_constant<sizeof...(A) == sizeof...(B) && std::is_same_v<Plain<R>, Plain<S>>> {
  template <typename... T>
  struct List;
  static constexpr bool kValue = std::is_same_v<List<Plain<A>...>, List<Plain<B>...>>;
};

// A macro of the header turns each name into that of its present version.
#define TEXT_OF(x) #x
#define NAME_OF(x) TEXT_OF(x)
#define EXPECT_LIKE(member, function, name)                                              \
  static_assert(Same<decltype(Driver::member), decltype(&function)>::kValue, #function); \
  EXPECT_STREQ(NAME_OF(function), name)

TEST(DriverInterface, IsThatOfTheHeader) {
  EXPECT_LIKE(get_error_name, cuGetErrorName, "cuGetErrorName");
  EXPECT_LIKE(get_error_string, cuGetErrorString, "cuGetErrorString");
  EXPECT_LIKE(init, cuInit, "cuInit");
  EXPECT_LIKE(device_count, cuDeviceGetCount, "cuDeviceGetCount");
  EXPECT_LIKE(device_get, cuDeviceGet, "cuDeviceGet");
  EXPECT_LIKE(primary_context_retain, cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain");
  EXPECT_LIKE(context_current, cuCtxGetCurrent, "cuCtxGetCurrent");
  EXPECT_LIKE(context_device, cuCtxGetDevice, "cuCtxGetDevice");
  EXPECT_LIKE(context_push, cuCtxPushCurrent, "cuCtxPushCurrent_v2");
  EXPECT_LIKE(context_pop, cuCtxPopCurrent, "cuCtxPopCurrent_v2");
  EXPECT_LIKE(pointer_attributes, cuPointerGetAttributes, "cuPointerGetAttributes");
  EXPECT_LIKE(memory_free, cuMemFree, "cuMemFree_v2");
  EXPECT_LIKE(memory_allocate, cuMemAlloc, "cuMemAlloc_v2");
  EXPECT_LIKE(host_register, cuMemHostRegister, "cuMemHostRegister_v2");
  EXPECT_LIKE(host_unregister, cuMemHostUnregister, "cuMemHostUnregister");
  EXPECT_LIKE(host_address, cuMemHostGetDevicePointer, "cuMemHostGetDevicePointer_v2");
  EXPECT_LIKE(stream_create, cuStreamCreate, "cuStreamCreate");
  EXPECT_LIKE(stream_destroy, cuStreamDestroy, "cuStreamDestroy_v2");
  EXPECT_LIKE(stream_wait_event, cuStreamWaitEvent, "cuStreamWaitEvent");
  EXPECT_LIKE(stream_is_capturing, cuStreamIsCapturing, "cuStreamIsCapturing");
  EXPECT_LIKE(stream_context, cuStreamGetCtx, "cuStreamGetCtx");
  EXPECT_LIKE(stream_wait_value, cuStreamWaitValue32, "cuStreamWaitValue32_v2");
  EXPECT_LIKE(launch_host_function, cuLaunchHostFunc, "cuLaunchHostFunc");
  EXPECT_LIKE(event_create, cuEventCreate, "cuEventCreate");
  EXPECT_LIKE(event_record, cuEventRecord, "cuEventRecord");
  EXPECT_LIKE(event_query, cuEventQuery, "cuEventQuery");
  EXPECT_LIKE(event_destroy, cuEventDestroy, "cuEventDestroy_v2");
  EXPECT_LIKE(copy_to_host, cuMemcpyDtoHAsync, "cuMemcpyDtoHAsync_v2");
  EXPECT_LIKE(copy_to_device, cuMemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2");
  EXPECT_LIKE(memory_set, cuMemsetD8, "cuMemsetD8_v2");
  EXPECT_LIKE(device_name, cuDeviceGetName, "cuDeviceGetName");
  EXPECT_LIKE(device_uuid, cuDeviceGetUuid, "cuDeviceGetUuid_v2");
  EXPECT_LIKE(device_attribute, cuDeviceGetAttribute, "cuDeviceGetAttribute");
  EXPECT_LIKE(device_reaches, cuDeviceCanAccessPeer, "cuDeviceCanAccessPeer");
  EXPECT_LIKE(copy_on_devices, cuMemcpyDtoDAsync, "cuMemcpyDtoDAsync_v2");
  EXPECT_LIKE(memory_set_on, cuMemsetD8Async, "cuMemsetD8Async");
  EXPECT_LIKE(stream_write_value, cuStreamWriteValue32, "cuStreamWriteValue32_v2");
  EXPECT_LIKE(allocation_granularity, cuMemGetAllocationGranularity, "cuMemGetAllocationGranularity");
  EXPECT_LIKE(allocation_create, cuMemCreate, "cuMemCreate");
  EXPECT_LIKE(allocation_release, cuMemRelease, "cuMemRelease");
  EXPECT_LIKE(allocation_export, cuMemExportToShareableHandle, "cuMemExportToShareableHandle");
  EXPECT_LIKE(allocation_import, cuMemImportFromShareableHandle, "cuMemImportFromShareableHandle");
  EXPECT_LIKE(range_reserve, cuMemAddressReserve, "cuMemAddressReserve");
  EXPECT_LIKE(range_free, cuMemAddressFree, "cuMemAddressFree");
  EXPECT_LIKE(range_map, cuMemMap, "cuMemMap");
  EXPECT_LIKE(range_unmap, cuMemUnmap, "cuMemUnmap");
  EXPECT_LIKE(range_allow, cuMemSetAccess, "cuMemSetAccess");
  EXPECT_LIKE(multicast_granularity, cuMulticastGetGranularity, "cuMulticastGetGranularity");
  EXPECT_LIKE(multicast_create, cuMulticastCreate, "cuMulticastCreate");
  EXPECT_LIKE(multicast_add, cuMulticastAddDevice, "cuMulticastAddDevice");
  EXPECT_LIKE(multicast_bind, cuMulticastBindMem, "cuMulticastBindMem");
  EXPECT_LIKE(multicast_unbind, cuMulticastUnbind, "cuMulticastUnbind");
  EXPECT_LIKE(ipc_handle, cuIpcGetMemHandle, "cuIpcGetMemHandle");
  EXPECT_STREQ(NAME_OF(cuIpcOpenMemHandle), "cuIpcOpenMemHandle_v2");  // takes a handle by value
  static_assert(std::is_same_v<decltype(&cuIpcOpenMemHandle), CUresult (*)(CUdeviceptr*, CUipcMemHandle, unsigned)>);
  static_assert(sizeof(device::IpcHandle) == sizeof(CUipcMemHandle) &&
                std::is_trivially_copyable_v<device::IpcHandle>);
  EXPECT_EQ(1, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
  EXPECT_LIKE(ipc_close, cuIpcCloseMemHandle, "cuIpcCloseMemHandle");
  EXPECT_LIKE(range_export, cuMemGetHandleForAddressRange, "cuMemGetHandleForAddressRange");
  EXPECT_LIKE(writes_flush, cuFlushGPUDirectRDMAWrites, "cuFlushGPUDirectRDMAWrites");
}

TEST(DriverInterface, HasTheHeadersNumbers) {
  static_assert(sizeof(device::Address) == sizeof(CUdeviceptr));
  EXPECT_EQ(device::kOutOfMemory, CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(device::kNotInitialized, CUDA_ERROR_NOT_INITIALIZED);
  EXPECT_EQ(device::kNoDevice, CUDA_ERROR_NO_DEVICE);
  EXPECT_EQ(device::kNotReady, CUDA_ERROR_NOT_READY);
  EXPECT_EQ(device::kNotPermitted, CUDA_ERROR_NOT_PERMITTED);
  EXPECT_EQ(device::kNotSupported, CUDA_ERROR_NOT_SUPPORTED);
  EXPECT_EQ(device::kAttributeContext, CU_POINTER_ATTRIBUTE_CONTEXT);
  EXPECT_EQ(device::kAttributeMemoryType, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
  EXPECT_EQ(device::kAttributeBufferId, CU_POINTER_ATTRIBUTE_BUFFER_ID);
  EXPECT_EQ(device::kAttributeOrdinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
  EXPECT_EQ(device::kAttributeRangeStart, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR);
  EXPECT_EQ(device::kAttributeRangeBytes, CU_POINTER_ATTRIBUTE_RANGE_SIZE);
  EXPECT_EQ(device::kDeviceFlushesWrites, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS);
  EXPECT_EQ(device::kFlushedByHost, CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST);
  EXPECT_EQ(device::kDeviceOrdersWrites, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING);
  EXPECT_EQ(device::kOrderedForOwner, CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER);
  EXPECT_EQ(device::kOrderedForOwner, CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER);
  EXPECT_EQ(0, CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX);
  EXPECT_EQ(device::kDeviceExportsDmaBuf, CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED);
  EXPECT_EQ(device::kDmaBuf, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD);
  EXPECT_EQ(device::kMemoryTypeDevice, static_cast<unsigned>(CU_MEMORYTYPE_DEVICE));
  EXPECT_EQ(device::kNonBlockingStream, static_cast<unsigned>(CU_STREAM_NON_BLOCKING));
  EXPECT_EQ(device::kEventWithoutTimes, static_cast<unsigned>(CU_EVENT_DISABLE_TIMING));
  EXPECT_EQ(device::kRegisterPortable, static_cast<unsigned>(CU_MEMHOSTREGISTER_PORTABLE));
  EXPECT_EQ(device::kRegisterMapped, static_cast<unsigned>(CU_MEMHOSTREGISTER_DEVICEMAP));
  EXPECT_EQ(device::kWaitAtLeast, static_cast<unsigned>(CU_STREAM_WAIT_VALUE_GEQ));
  EXPECT_EQ(device::kDeviceHasVirtualMemory, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
  EXPECT_EQ(device::kDeviceSharesDescriptors, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
  EXPECT_EQ(device::kDescriptor, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  EXPECT_EQ(device::kDeviceSharesFabric, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED);
  EXPECT_EQ(device::kDeviceMulticasts, CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED);
  EXPECT_EQ(device::kLeastGranularity, CU_MULTICAST_GRANULARITY_MINIMUM);
  static_assert(sizeof(device::MulticastProperties) == sizeof(CUmulticastObjectProp));
  static_assert(offsetof(device::MulticastProperties, bytes) == offsetof(CUmulticastObjectProp, size));
  static_assert(offsetof(device::MulticastProperties, handles) == offsetof(CUmulticastObjectProp, handleTypes));
  static_assert(offsetof(device::MulticastProperties, flags) == offsetof(CUmulticastObjectProp, flags));
  EXPECT_EQ(device::kFabric, CU_MEM_HANDLE_TYPE_FABRIC);
  EXPECT_EQ(sizeof(device::FabricHandle), sizeof(CUmemFabricHandle));
  EXPECT_EQ(device::kRecommendedGranularity, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
  EXPECT_EQ(device::Location().type, CU_MEM_LOCATION_TYPE_DEVICE);
  EXPECT_EQ(device::AllocationProperties().type, CU_MEM_ALLOCATION_TYPE_PINNED);
  EXPECT_EQ(device::AccessDescription().flags, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
  static_assert(sizeof(device::Allocation) == sizeof(CUmemGenericAllocationHandle));
  static_assert(sizeof(device::Uuid) == sizeof(CUuuid));
  static_assert(sizeof(device::AccessDescription) == sizeof(CUmemAccessDesc));
  static_assert(offsetof(device::AccessDescription, flags) == offsetof(CUmemAccessDesc, flags));
  static_assert(sizeof(device::AllocationProperties) == sizeof(CUmemAllocationProp));
  static_assert(offsetof(device::AllocationProperties, handles) ==
                offsetof(CUmemAllocationProp, requestedHandleTypes));
  static_assert(offsetof(device::AllocationProperties, location) == offsetof(CUmemAllocationProp, location));
  static_assert(offsetof(device::AllocationProperties, of_other_systems) ==
                offsetof(CUmemAllocationProp, win32HandleMetaData));
  static_assert(offsetof(device::AllocationProperties, flags) == offsetof(CUmemAllocationProp, allocFlags));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(CU_STREAM_LEGACY), 1U);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(CU_STREAM_PER_THREAD), 2U);
}

// The toolkit's own stand-in for the driver exports what the real one does. It does nothing, and says so.
TEST(DriverInterface, IsFoundInTheToolkitsLibrary) {
  ASSERT_NE(device::driver(), nullptr) << device::why_none();
  EXPECT_NE(device::driver()->stream_wait_value, nullptr);
  EXPECT_STREQ(device::driver()->missing_to_share(), "");
  EXPECT_STREQ(device::driver()->missing_to_multicast(), "");
  EXPECT_STREQ(device::driver()->missing_to_open(), "");
  const Status s = device::check(device::driver()->init(0), "cuInit");
  EXPECT_FALSE(s.ok());
}

}  // namespace
}  // namespace ringfold::test
