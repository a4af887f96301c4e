// NCCL's binary interface, as far as libringfold_nccl.so has it: names, numbers and layouts that programs were
// compiled against. Declared anew, in this library's order. What the functions do here is said in docs/nccl.md.
#pragma once

#include <cstddef>

#define RINGFOLD_NCCL_API extern "C" __attribute__((visibility("default")))

using ncclComm_t = struct ncclComm*;
using ncclWindow_t = struct ncclWindow*;
using cudaStream_t = struct CUstream_st*;

// Given by value, through whatever the program has.
struct ncclUniqueId {
  char internal[128];
};

enum ncclResult_t : int {
  ncclSuccess = 0,
  ncclUnhandledCudaError = 1,
  ncclSystemError = 2,
  ncclInternalError = 3,
  ncclInvalidArgument = 4,
  ncclInvalidUsage = 5,
  ncclRemoteError = 6,
  ncclInProgress = 7,
};

enum ncclDataType_t : int {
  ncclInt8 = 0,
  ncclUint8 = 1,
  ncclInt32 = 2,
  ncclUint32 = 3,
  ncclInt64 = 4,
  ncclUint64 = 5,
  ncclFloat16 = 6,
  ncclFloat32 = 7,
  ncclFloat64 = 8,
  ncclBfloat16 = 9,
  ncclFloat8e4m3 = 10,
  ncclFloat8e5m2 = 11,
};

// Operations of a communicator's own have larger numbers.
enum ncclRedOp_t : int { ncclSum = 0, ncclProd = 1, ncclMax = 2, ncclMin = 3, ncclAvg = 4, ncclNumOps = 5 };

enum ncclScalarResidence_t : int { ncclScalarDevice = 0, ncclScalarHostImmediate = 1 };

// Only the beginning matters here; it may be longer.
struct ncclConfig_t {
  size_t size;
  unsigned magic;
  unsigned version;
  int blocking;
};
inline constexpr unsigned kNcclConfigMagic = 0xcafebeef;

// ---- of the library ----
RINGFOLD_NCCL_API ncclResult_t ncclGetVersion(int* version);
RINGFOLD_NCCL_API const char* ncclGetErrorString(ncclResult_t result);
RINGFOLD_NCCL_API const char* ncclGetLastError(ncclComm_t comm);
RINGFOLD_NCCL_API ncclResult_t ncclMemAlloc(void** memory, size_t bytes);
RINGFOLD_NCCL_API ncclResult_t ncclMemFree(void* memory);
RINGFOLD_NCCL_API ncclResult_t ncclGroupStart();
RINGFOLD_NCCL_API ncclResult_t ncclGroupEnd();

// ---- communicators ----
RINGFOLD_NCCL_API ncclResult_t ncclGetUniqueId(ncclUniqueId* id);
RINGFOLD_NCCL_API ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank);
RINGFOLD_NCCL_API ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                                      ncclConfig_t* config);
RINGFOLD_NCCL_API ncclResult_t ncclCommInitRankScalable(ncclComm_t* comm, int ranks, int rank, int id_count,
                                                        ncclUniqueId* ids, ncclConfig_t* config);
RINGFOLD_NCCL_API ncclResult_t ncclCommInitAll(ncclComm_t* comms, int ranks, const int* devices);
RINGFOLD_NCCL_API ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* part,
                                             ncclConfig_t* config);
RINGFOLD_NCCL_API ncclResult_t ncclCommShrink(ncclComm_t comm, int* excluded, int excluded_count, ncclComm_t* rest,
                                              ncclConfig_t* config, int flags);
RINGFOLD_NCCL_API ncclResult_t ncclCommFinalize(ncclComm_t comm);
RINGFOLD_NCCL_API ncclResult_t ncclCommDestroy(ncclComm_t comm);
RINGFOLD_NCCL_API ncclResult_t ncclCommAbort(ncclComm_t comm);
RINGFOLD_NCCL_API ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* result);
RINGFOLD_NCCL_API ncclResult_t ncclCommCount(ncclComm_t comm, int* count);
RINGFOLD_NCCL_API ncclResult_t ncclCommCuDevice(ncclComm_t comm, int* device);
RINGFOLD_NCCL_API ncclResult_t ncclCommUserRank(ncclComm_t comm, int* rank);
RINGFOLD_NCCL_API ncclResult_t ncclCommRegister(ncclComm_t comm, void* memory, size_t bytes, void** handle);
RINGFOLD_NCCL_API ncclResult_t ncclCommDeregister(ncclComm_t comm, void* handle);
RINGFOLD_NCCL_API ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t* op, void* scalar, ncclDataType_t type,
                                                        ncclScalarResidence_t residence, ncclComm_t comm);
RINGFOLD_NCCL_API ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t comm);

// ---- calls ----
RINGFOLD_NCCL_API ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type,
                                             ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream);
RINGFOLD_NCCL_API ncclResult_t ncclReduce(const void* in, void* out, size_t count, ncclDataType_t type,
                                          ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream);
RINGFOLD_NCCL_API ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type,
                                                 ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream);
RINGFOLD_NCCL_API ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type,
                                             ncclComm_t comm, cudaStream_t stream);
RINGFOLD_NCCL_API ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                                             ncclComm_t comm, cudaStream_t stream);
RINGFOLD_NCCL_API ncclResult_t ncclBcast(void* buffer, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                                         cudaStream_t stream);
RINGFOLD_NCCL_API ncclResult_t ncclAlltoAll(const void* in, void* out, size_t count, ncclDataType_t type,
                                            ncclComm_t comm, cudaStream_t stream);
RINGFOLD_NCCL_API ncclResult_t ncclGather(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                                          ncclComm_t comm, cudaStream_t stream);
RINGFOLD_NCCL_API ncclResult_t ncclScatter(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                                           ncclComm_t comm, cudaStream_t stream);
RINGFOLD_NCCL_API ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer,
                                        ncclComm_t comm, cudaStream_t stream);
RINGFOLD_NCCL_API ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                                        cudaStream_t stream);

// ---- not supported: ncclInvalidUsage, and why ----
RINGFOLD_NCCL_API ncclResult_t ncclGroupSimulateEnd(void* estimate);
RINGFOLD_NCCL_API ncclResult_t ncclCommWindowRegister(ncclComm_t comm, void* memory, size_t bytes,
                                                      ncclWindow_t* window, int flags);
RINGFOLD_NCCL_API ncclResult_t ncclCommWindowDeregister(ncclComm_t comm, ncclWindow_t window);
RINGFOLD_NCCL_API ncclResult_t ncclDevCommCreate(ncclComm_t comm, const void* requirements, void* made);
RINGFOLD_NCCL_API ncclResult_t ncclDevCommDestroy(ncclComm_t comm, const void* made);
