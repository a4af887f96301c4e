// Communicators, and what belongs to the library as a whole.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "nccl/shim.h"

using namespace ringfold;        // NOLINT: this file is the outside of that namespace
using namespace ringfold::nccl;  // NOLINT

namespace {

// What the functions are of NCCL: no windows and no device communicators are asked of this version.
constexpr int kVersion = 22600;

Status not_ready(const char* function, ncclComm_t comm) {
  if (comm == nullptr) return {Code::kInvalid, fmt::format("{}: comm is NULL", function)};
  if (comm->ready) return {};
  return {Code::kInvalid, fmt::format("{}: the communicator is not there before the end of its group", function)};
}

int device_here() {
  auto device = current_device();
  return device.ok() ? device->ordinal : 0;
}

Status check_config(const char* function, const ncclConfig_t* config) {
  if (config == nullptr || config->magic == kNcclConfigMagic) return {};
  return {Code::kInvalid, fmt::format("{}: config was not made by NCCL_CONFIG_INITIALIZER", function)};
}

Options options_for(int rank, int size) {
  Options options;
  options.rank = rank;
  options.size = size;
  options.background = true;
  return options;
}

void adopt(ncclComm* comm, Communicator made) {
  comm->rank = made.rank();
  comm->size = made.size();
  comm->comm = std::move(made);
  comm->ready = true;
}

ncclResult_t join(const char* function, ncclComm_t* comm, int ranks, const ncclUniqueId& id, int rank,
                  const ncclConfig_t* config) {
  if (comm == nullptr) return finish({Code::kInvalid, fmt::format("{}: comm is NULL", function)});
  *comm = nullptr;
  if (ranks < 1 || rank < 0 || rank >= ranks) {
    return finish({Code::kInvalid, fmt::format("{}: rank {} of {}", function, rank, ranks)});
  }
  if (Status s = check_config(function, config); !s.ok()) return finish(s);
  auto meeting = read_id(id);
  if (!meeting.ok()) return finish(meeting.status());
  auto* made = new ncclComm;
  made->rank = rank;
  made->size = ranks;
  made->device = device_here();
  *comm = made;
  const ncclResult_t result = run_or_defer(true, [made, comm, meeting = *meeting, rank, ranks]() -> Status {
    Options options = options_for(rank, ranks);
    if (ranks > 1) {
      options.rendezvous = meeting.address;
      options.key = meeting.key;
    }
    auto joined = Communicator::init(options);
    if (!joined.ok()) {
      *comm = nullptr;
      delete made;
      return joined.status();
    }
    adopt(made, *std::move(joined));
    return {};
  });
  return result;
}

// Makes a communicator out of `comm`, with its device: of those that `make` leaves out it is NULL.
ncclResult_t derive(ncclComm_t comm, ncclComm_t* part, std::function<Result<Communicator>()> make, bool takes_part) {
  *part = nullptr;
  auto* made = takes_part ? new ncclComm : nullptr;
  if (made != nullptr) made->device = comm->device;
  *part = made;
  return run_or_defer(true, [made, part, make = std::move(make)]() -> Status {
    auto derived = make();
    if (derived.ok() && made != nullptr) adopt(made, *std::move(derived));
    if (derived.ok()) return {};
    *part = nullptr;
    delete made;
    return derived.status();
  });
}

}  // namespace

ncclResult_t ncclGetVersion(int* version) {
  if (version == nullptr) return finish({Code::kInvalid, "ncclGetVersion: version is NULL"});
  *version = kVersion;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "the CUDA driver reported an error; ncclGetLastError tells more";
    case ncclSystemError: return "the system reported an error; ncclGetLastError tells more";
    case ncclInternalError: return "internal error of Ringfold; ncclGetLastError tells more";
    case ncclInvalidArgument: return "invalid argument; ncclGetLastError tells more";
    case ncclInvalidUsage: return "invalid usage, or not supported by Ringfold; ncclGetLastError tells more";
    case ncclRemoteError: return "another rank failed, left, or did not answer; ncclGetLastError tells more";
    case ncclInProgress: return "in progress";
  }
  return "unknown result code";
}

const char* ncclGetLastError(ncclComm_t) {
  thread_local std::string text;
  text = last_error();
  return text.c_str();
}

ncclResult_t ncclMemAlloc(void** memory, size_t bytes) {
  if (memory == nullptr) return finish({Code::kInvalid, "ncclMemAlloc: memory is NULL"});
  *memory = nullptr;
  auto made = allocate(bytes, Device{});
  if (!made.ok()) return finish(made.status());
  *memory = *made;
  return ncclSuccess;
}

ncclResult_t ncclMemFree(void* memory) {
  deallocate(memory);
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() { return begin_group(); }
ncclResult_t ncclGroupEnd() { return end_group(); }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  if (id == nullptr) return finish({Code::kInvalid, "ncclGetUniqueId: id is NULL"});
  auto made = make_id();
  if (!made.ok()) return finish(made.status());
  *id = *made;
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  return join("ncclCommInitRank", comm, ranks, id, rank, nullptr);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  return join("ncclCommInitRankConfig", comm, ranks, id, rank, config);
}

// The ranks meet at the first id: there is one list of ranks, whatever their number.
ncclResult_t ncclCommInitRankScalable(ncclComm_t* comm, int ranks, int rank, int id_count, ncclUniqueId* ids,
                                      ncclConfig_t* config) {
  if (id_count < 1 || ids == nullptr) return finish({Code::kInvalid, "ncclCommInitRankScalable: there is no id"});
  return join("ncclCommInitRankScalable", comm, ranks, ids[0], rank, config);
}

ncclResult_t ncclCommInitAll(ncclComm_t* comms, int ranks, const int* devices) {
  if (comms == nullptr || ranks < 1) {
    return finish({Code::kInvalid, fmt::format("ncclCommInitAll: comms is NULL, or {} ranks", ranks)});
  }
  std::fill(comms, comms + ranks, nullptr);
  Options options;
  options.background = true;
  auto made = Communicator::init_local(ranks, options);
  if (!made.ok()) return finish(made.status());
  for (int r = 0; r < ranks; ++r) {
    comms[r] = new ncclComm;
    comms[r]->device = devices != nullptr ? devices[r] : r;
    adopt(comms[r], std::move((*made)[static_cast<size_t>(r)]));
  }
  return ncclSuccess;
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* part, ncclConfig_t* config) {
  if (Status s = not_ready("ncclCommSplit", comm); !s.ok()) return finish(s);
  if (Status s = check_config("ncclCommSplit", config); !s.ok()) return finish(s);
  if (part == nullptr) return finish({Code::kInvalid, "ncclCommSplit: newcomm is NULL"});
  return derive(
      comm, part, [comm, color, key] { return comm->comm.split(color, key); }, color >= 0);
}

// Of a communicator that has failed, the survivors go on, who are for the ranks to agree on: whom the caller excludes
// does not matter then. Else those that are not excluded.
ncclResult_t ncclCommShrink(ncclComm_t comm, int* excluded, int excluded_count, ncclComm_t* rest,
                            ncclConfig_t* config, int) {
  if (Status s = not_ready("ncclCommShrink", comm); !s.ok()) return finish(s);
  if (Status s = check_config("ncclCommShrink", config); !s.ok()) return finish(s);
  if (rest == nullptr || (excluded == nullptr && excluded_count > 0)) {
    return finish({Code::kInvalid, "ncclCommShrink: newcomm, or the list of excluded ranks, is NULL"});
  }
  std::vector<int> members;
  for (int r = 0; r < comm->size; ++r) {
    if (std::find(excluded, excluded + excluded_count, r) == excluded + excluded_count) members.push_back(r);
  }
  return derive(
      comm, rest,
      [comm, members] { return comm->comm.status().ok() ? comm->comm.subset(members) : comm->comm.reconfigure(); },
      true);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  if (Status s = not_ready("ncclCommFinalize", comm); !s.ok()) return finish(s);
  return finish(comm->drain());
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (comm == nullptr) return ncclSuccess;
  if (Status s = not_ready("ncclCommDestroy", comm); !s.ok()) return finish(s);
  // How calls ended was for ncclCommGetAsyncError to tell.
  (void)comm->drain();
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (comm == nullptr) return ncclSuccess;
  if (Status s = not_ready("ncclCommAbort", comm); !s.ok()) return finish(s);
  comm->comm.abort("ncclCommAbort was called");
  // So that the others hear of it before this rank leaves.
  for (int i = 0; i < 2000 && comm->comm.status().ok(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  (void)comm->drain();
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* result) {
  if (comm == nullptr || result == nullptr) {
    return finish({Code::kInvalid, "ncclCommGetAsyncError: comm or result is NULL"});
  }
  if (!comm->ready) return *result = ncclInProgress, ncclSuccess;
  Status status = comm->comm.status();
  if (status.ok()) {
    const std::lock_guard lock(comm->late->mutex);
    status = comm->late->status;
  }
  *result = finish(status);
  return ncclSuccess;
}

ncclResult_t ncclCommCount(ncclComm_t comm, int* count) {
  if (comm == nullptr || count == nullptr) return finish({Code::kInvalid, "ncclCommCount: comm or count is NULL"});
  *count = comm->size;
  return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(ncclComm_t comm, int* device) {
  if (comm == nullptr || device == nullptr) {
    return finish({Code::kInvalid, "ncclCommCuDevice: comm or device is NULL"});
  }
  *device = comm->device;
  return ncclSuccess;
}

ncclResult_t ncclCommUserRank(ncclComm_t comm, int* rank) {
  if (comm == nullptr || rank == nullptr) return finish({Code::kInvalid, "ncclCommUserRank: comm or rank is NULL"});
  *rank = comm->rank;
  return ncclSuccess;
}

// A promise of the caller's that needs nothing here: all memory goes the same way.
ncclResult_t ncclCommRegister(ncclComm_t comm, void* memory, size_t, void** handle) {
  if (comm == nullptr || handle == nullptr) {
    return finish({Code::kInvalid, "ncclCommRegister: comm or handle is NULL"});
  }
  *handle = memory;
  return ncclSuccess;
}
ncclResult_t ncclCommDeregister(ncclComm_t, void*) { return ncclSuccess; }

ncclResult_t ncclGroupSimulateEnd(void*) {
  return refuse("ncclGroupSimulateEnd: Ringfold does not estimate calls this way; `ringfold explain` does");
}
ncclResult_t ncclCommWindowRegister(ncclComm_t, void*, size_t, ncclWindow_t* window, int) {
  if (window != nullptr) *window = nullptr;
  return refuse("ncclCommWindowRegister: Ringfold has no symmetric windows; go on without them");
}
ncclResult_t ncclCommWindowDeregister(ncclComm_t, ncclWindow_t) {
  return refuse("ncclCommWindowDeregister: Ringfold has no symmetric windows");
}
ncclResult_t ncclDevCommCreate(ncclComm_t, const void*, void*) {
  return refuse("ncclDevCommCreate: Ringfold has no interface for kernels of the caller's");
}
ncclResult_t ncclDevCommDestroy(ncclComm_t, const void*) {
  return refuse("ncclDevCommDestroy: Ringfold has no interface for kernels of the caller's");
}
