// Collectives and messages on streams.
#include <fmt/format.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "nccl/shim.h"

using namespace ringfold;        // NOLINT: this file is the outside of that namespace
using namespace ringfold::nccl;  // NOLINT

namespace {

// Values of the caller's type, as bytes where nothing is to be computed with them.
Status type_of(const char* function, ncclDataType_t type, bool computes, DataType* known) {
  switch (type) {
    case ncclInt8: return *known = DataType::kI8, Status();
    case ncclUint8: return *known = DataType::kU8, Status();
    case ncclInt32: return *known = DataType::kI32, Status();
    case ncclUint32: return *known = DataType::kU32, Status();
    case ncclInt64: return *known = DataType::kI64, Status();
    case ncclUint64: return *known = DataType::kU64, Status();
    case ncclFloat16: return *known = DataType::kF16, Status();
    case ncclFloat32: return *known = DataType::kF32, Status();
    case ncclFloat64: return *known = DataType::kF64, Status();
    case ncclBfloat16: return *known = DataType::kBF16, Status();
    case ncclFloat8e4m3:
    case ncclFloat8e5m2:
      if (!computes) return *known = DataType::kU8, Status();
      return {Code::kMismatch, fmt::format("{}: Ringfold does not reduce 8-bit floats", function)};
  }
  return {Code::kInvalid, fmt::format("{}: {} is no data type", function, static_cast<int>(type))};
}

// NCCL's calls have no deadline of their own; RINGFOLD_TIMEOUT gives them one.
double call_timeout() {
  static const double kSeconds = [] {
    const char* set = std::getenv("RINGFOLD_TIMEOUT");
    return set != nullptr && *set != '\0' ? 0 : 1e8;
  }();
  return kSeconds;
}

CallOptions on(cudaStream_t stream) {
  CallOptions options;
  options.timeout_s = call_timeout();
  // The default stream has a handle of its own here, since null means no stream.
  options.stream = stream != nullptr ? static_cast<void*>(stream) : reinterpret_cast<void*>(uintptr_t{1});
  options.group = ending_group();
  return options;
}

Status op_of(const char* function, ncclComm_t comm, ncclRedOp_t op, ReduceOp* known) {
  switch (op) {
    case ncclSum: return *known = kSum, Status();
    case ncclProd: return *known = kProd, Status();
    case ncclMax: return *known = kMax, Status();
    case ncclMin: return *known = kMin, Status();
    case ncclAvg: return *known = kAvg, Status();
    default: break;
  }
  const auto own = comm->factors.find(op);
  if (own == comm->factors.end()) {
    return {Code::kInvalid,
            fmt::format("{}: {} is no operation of this communicator", function, static_cast<int>(op))};
  }
  return *known = ReduceOp::scaled_sum(own->second), Status();
}

// Checks what all calls have, and makes the call now or at the end of the group.
template <typename Body>
ncclResult_t call(const char* function, ncclComm_t comm, ncclDataType_t type, const ncclRedOp_t* op,
                  const Body& body) {
  if (comm == nullptr) return finish({Code::kInvalid, fmt::format("{}: comm is NULL", function)});
  if (!comm->ready) return finish({Code::kInvalid, fmt::format("{}: the communicator is not ready", function)});
  DataType known = DataType::kU8;
  ReduceOp reduction;
  if (Status s = type_of(function, type, op != nullptr, &known); !s.ok()) return finish(s);
  if (op != nullptr) {
    if (Status s = op_of(function, comm, *op, &reduction); !s.ok()) return finish(s);
  }
  return run_or_defer(false,
                      [comm, known, reduction, body] { return comm->follow(body(comm->comm, known, reduction)); });
}

}  // namespace

ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  return call("ncclAllReduce", comm, type, &op, [=](Communicator& c, DataType t, ReduceOp r) {
    return c.all_reduce(in, out, count, t, r, on(stream));
  });
}

ncclResult_t ncclReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t stream) {
  return call("ncclReduce", comm, type, &op, [=](Communicator& c, DataType t, ReduceOp r) {
    return c.reduce(in, out, count, t, r, root, on(stream));
  });
}

ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
  return call("ncclReduceScatter", comm, type, &op, [=](Communicator& c, DataType t, ReduceOp r) {
    return c.reduce_scatter(in, out, count, t, r, on(stream));
  });
}

ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return call("ncclAllGather", comm, type, nullptr,
              [=](Communicator& c, DataType t, ReduceOp) { return c.all_gather(in, out, count, t, on(stream)); });
}

ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  return call("ncclBroadcast", comm, type, nullptr, [=](Communicator& c, DataType t, ReduceOp) {
    return c.broadcast(in, out, count, t, root, on(stream));
  });
}

ncclResult_t ncclBcast(void* buffer, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                       cudaStream_t stream) {
  return ncclBroadcast(buffer, buffer, count, type, root, comm, stream);
}

ncclResult_t ncclAlltoAll(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm,
                          cudaStream_t stream) {
  return call("ncclAlltoAll", comm, type, nullptr,
              [=](Communicator& c, DataType t, ReduceOp) { return c.all_to_all(in, out, count, t, on(stream)); });
}

ncclResult_t ncclGather(const void* in, void* out, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                        cudaStream_t stream) {
  return call("ncclGather", comm, type, nullptr,
              [=](Communicator& c, DataType t, ReduceOp) { return c.gather(in, out, count, t, root, on(stream)); });
}

ncclResult_t ncclScatter(const void* in, void* out, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                         cudaStream_t stream) {
  return call("ncclScatter", comm, type, nullptr,
              [=](Communicator& c, DataType t, ReduceOp) { return c.scatter(in, out, count, t, root, on(stream)); });
}

ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return call("ncclSend", comm, type, nullptr,
              [=](Communicator& c, DataType t, ReduceOp) { return c.send(data, count, t, peer, 0, on(stream)); });
}

ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  return call("ncclRecv", comm, type, nullptr,
              [=](Communicator& c, DataType t, ReduceOp) { return c.recv(data, count, t, peer, 0, on(stream)); });
}
