// Collectives and messages on streams.
#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>

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

CallOptions on(cudaStream_t stream, std::optional<double> factor = {}) {
  CallOptions options;
  options.input_factor = factor;
  options.timeout_s = call_timeout();
  // The default stream has a handle of its own here, since null means no stream.
  options.stream = stream != nullptr ? static_cast<void*>(stream) : reinterpret_cast<void*>(uintptr_t{1});
  options.group = ending_group();
  return options;
}

struct Reduction {
  ReduceOp op;
  std::optional<double> factor;  // of this rank's values
};

Status op_of(const char* function, ncclComm_t comm, ncclRedOp_t op, Reduction* known) {
  switch (op) {
    case ncclSum: return known->op = kSum, Status();
    case ncclProd: return known->op = kProd, Status();
    case ncclMax: return known->op = kMax, Status();
    case ncclMin: return known->op = kMin, Status();
    case ncclAvg: return known->op = kAvg, Status();
    default: break;
  }
  const auto own = comm->factors.find(op);
  if (own == comm->factors.end()) {
    return {Code::kInvalid,
            fmt::format("{}: {} is no operation of this communicator", function, static_cast<int>(op))};
  }
  return known->factor = own->second, Status();
}

// Checks what all calls have, and makes the call now or at the end of the group.
template <typename Body>
ncclResult_t call(const char* function, ncclComm_t comm, ncclDataType_t type, const ncclRedOp_t* op,
                  const Body& body) {
  if (comm == nullptr) return finish({Code::kInvalid, fmt::format("{}: comm is NULL", function)});
  if (!comm->ready) return finish({Code::kInvalid, fmt::format("{}: the communicator is not ready", function)});
  DataType known = DataType::kU8;
  Reduction reduction;
  if (Status s = type_of(function, type, op != nullptr, &known); !s.ok()) return finish(s);
  if (op != nullptr) {
    if (Status s = op_of(function, comm, *op, &reduction); !s.ok()) return finish(s);
  }
  return run_or_defer(false,
                      [comm, known, reduction, body] { return comm->follow(body(comm->comm, known, reduction)); });
}

// The number behind `scalar`, of one element of the type.
template <typename T>
double number_at(const void* scalar) {
  T value;
  std::memcpy(&value, scalar, sizeof value);
  return static_cast<double>(value);
}

double half_at(const void* scalar, bool brain) {
  uint16_t bits;
  std::memcpy(&bits, scalar, sizeof bits);
  if (brain) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    return number_at<float>(&wide);
  }
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 31  ? (fraction != 0 ? std::nan("") : HUGE_VAL)
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(1024 + fraction, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

double factor_at(const void* scalar, DataType type) {
  switch (type) {
    case DataType::kF64: return number_at<double>(scalar);
    case DataType::kF32: return number_at<float>(scalar);
    case DataType::kF16: return half_at(scalar, false);
    case DataType::kBF16: return half_at(scalar, true);
    case DataType::kI8: return number_at<int8_t>(scalar);
    case DataType::kU8: return number_at<uint8_t>(scalar);
    case DataType::kI32: return number_at<int32_t>(scalar);
    case DataType::kU32: return number_at<uint32_t>(scalar);
    case DataType::kI64: return number_at<int64_t>(scalar);
    case DataType::kU64: return number_at<uint64_t>(scalar);
  }
  return 1;
}

}  // namespace

ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t* op, void* scalar, ncclDataType_t type,
                                      ncclScalarResidence_t residence, ncclComm_t comm) {
  constexpr const char* kName = "ncclRedOpCreatePreMulSum";
  if (op == nullptr || scalar == nullptr || comm == nullptr) {
    return finish({Code::kInvalid, fmt::format("{}: op, scalar or comm is NULL", kName)});
  }
  if (residence != ncclScalarHostImmediate) {
    return refuse(
        fmt::format("{}: Ringfold reads the factor when the operation is made, so it must be in host memory "
                    "(ncclScalarHostImmediate)",
                    kName));
  }
  DataType known = DataType::kF32;
  if (Status s = type_of(kName, type, true, &known); !s.ok()) return finish(s);
  const int number = comm->next_op++;
  comm->factors[number] = factor_at(scalar, known);
  *op = static_cast<ncclRedOp_t>(number);
  return ncclSuccess;
}

ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t comm) {
  if (comm == nullptr || comm->factors.erase(op) == 0) {
    return finish({Code::kInvalid,
                   fmt::format("ncclRedOpDestroy: {} is no operation of this communicator", static_cast<int>(op))});
  }
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  return call("ncclAllReduce", comm, type, &op, [=](Communicator& c, DataType t, const Reduction& r) {
    return c.all_reduce(in, out, count, t, r.op, on(stream, r.factor));
  });
}

ncclResult_t ncclReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t stream) {
  return call("ncclReduce", comm, type, &op, [=](Communicator& c, DataType t, const Reduction& r) {
    return c.reduce(in, out, count, t, r.op, root, on(stream, r.factor));
  });
}

ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
  return call("ncclReduceScatter", comm, type, &op, [=](Communicator& c, DataType t, const Reduction& r) {
    return c.reduce_scatter(in, out, count, t, r.op, on(stream, r.factor));
  });
}

ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return call("ncclAllGather", comm, type, nullptr, [=](Communicator& c, DataType t, const Reduction&) {
    return c.all_gather(in, out, count, t, on(stream));
  });
}

ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  return call("ncclBroadcast", comm, type, nullptr, [=](Communicator& c, DataType t, const Reduction&) {
    return c.broadcast(in, out, count, t, root, on(stream));
  });
}

ncclResult_t ncclBcast(void* buffer, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                       cudaStream_t stream) {
  return ncclBroadcast(buffer, buffer, count, type, root, comm, stream);
}

ncclResult_t ncclAlltoAll(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm,
                          cudaStream_t stream) {
  return call("ncclAlltoAll", comm, type, nullptr, [=](Communicator& c, DataType t, const Reduction&) {
    return c.all_to_all(in, out, count, t, on(stream));
  });
}

ncclResult_t ncclGather(const void* in, void* out, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                        cudaStream_t stream) {
  return call("ncclGather", comm, type, nullptr, [=](Communicator& c, DataType t, const Reduction&) {
    return c.gather(in, out, count, t, root, on(stream));
  });
}

ncclResult_t ncclScatter(const void* in, void* out, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                         cudaStream_t stream) {
  return call("ncclScatter", comm, type, nullptr, [=](Communicator& c, DataType t, const Reduction&) {
    return c.scatter(in, out, count, t, root, on(stream));
  });
}

ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return call("ncclSend", comm, type, nullptr, [=](Communicator& c, DataType t, const Reduction&) {
    return c.send(data, count, t, peer, 0, on(stream));
  });
}

ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  return call("ncclRecv", comm, type, nullptr, [=](Communicator& c, DataType t, const Reduction&) {
    return c.recv(data, count, t, peer, 0, on(stream));
  });
}
