// Collectives, messages, persistent calls and works.
#include "capi/capi.h"

using namespace ringfold;        // NOLINT: this file is the outside of that namespace
using namespace ringfold::capi;  // NOLINT

namespace {

// What every call does: reads the arguments that all have, and starts with them. `body(call, type, op)` makes a Work.
using MaybeOp = std::optional<ringfold_op>;
constexpr MaybeOp kNoOp;
template <typename Body>
ringfold_code start(const char* function, bool handle, ringfold_type type, MaybeOp op,
                    const ringfold_call_options* options, ringfold_work** work, const Body& body) noexcept {
  return guarded([&]() -> Status {
    if (work != nullptr) *work = nullptr;
    if (!handle) return invalid(function, "the handle is NULL");
    CallArguments call;
    RINGFOLD_TRY(to_call(options, &call));
    DataType known_type = DataType::kU8;
    RINGFOLD_TRY(to_type(type, &known_type));
    ReduceOp known_op;
    if (op) RINGFOLD_TRY(to_op(*op, call.scale, &known_op));
    if (work == nullptr) {
      Work started = body(call.options, known_type, known_op);
      return started.wait();
    }
    // Before the call starts: nobody could wait for one that there is no memory to tell of.
    auto made = std::make_unique<ringfold_work>();
    made->work = body(call.options, known_type, known_op);
    if (made->work.done()) RINGFOLD_TRY(made->work.wait());
    *work = made.release();
    return {};
  });
}

template <typename Body>
ringfold_code persist(const char* function, ringfold_comm* comm, ringfold_type type, MaybeOp op,
                      const ringfold_call_options* options, ringfold_persistent** call, const Body& body) noexcept {
  return guarded([&]() -> Status {
    if (call != nullptr) *call = nullptr;
    if (comm == nullptr || call == nullptr) return invalid(function, "comm or call is NULL");
    CallArguments arguments;
    RINGFOLD_TRY(to_call(options, &arguments));
    DataType known_type = DataType::kU8;
    RINGFOLD_TRY(to_type(type, &known_type));
    ReduceOp known_op;
    if (op) RINGFOLD_TRY(to_op(*op, arguments.scale, &known_op));
    Result<Persistent> made = body(arguments.options, known_type, known_op);
    if (!made.ok()) return made.status();
    *call = new ringfold_persistent{*std::move(made)};
    return {};
  });
}

Status check_counts(const char* function, const ringfold_comm* comm, const size_t* counts) {
  if (comm == nullptr) return invalid(function, "comm is NULL");
  return counts == nullptr ? invalid(function, "counts is NULL: it takes one count per rank") : Status();
}

std::span<const size_t> per_rank(const ringfold_comm* comm, const size_t* counts) {
  return {counts, static_cast<size_t>(comm->comm.size())};
}

}  // namespace

ringfold_code ringfold_all_reduce(ringfold_comm* comm, const void* input, void* output, size_t count,
                                  ringfold_type type, ringfold_op op, const ringfold_call_options* options,
                                  ringfold_work** work) {
  return start("ringfold_all_reduce", comm, type, op, options, work,
               [&](const CallOptions& o, DataType t, ReduceOp r) {
                 return comm->comm.all_reduce(input, output, count, t, r, o);
               });
}

ringfold_code ringfold_reduce(ringfold_comm* comm, const void* input, void* output, size_t count, ringfold_type type,
                              ringfold_op op, int32_t root, const ringfold_call_options* options,
                              ringfold_work** work) {
  return start("ringfold_reduce", comm, type, op, options, work, [&](const CallOptions& o, DataType t, ReduceOp r) {
    return comm->comm.reduce(input, output, count, t, r, root, o);
  });
}

ringfold_code ringfold_reduce_scatter(ringfold_comm* comm, const void* input, void* output, size_t count,
                                      ringfold_type type, ringfold_op op, const ringfold_call_options* options,
                                      ringfold_work** work) {
  return start("ringfold_reduce_scatter", comm, type, op, options, work,
               [&](const CallOptions& o, DataType t, ReduceOp r) {
                 return comm->comm.reduce_scatter(input, output, count, t, r, o);
               });
}

ringfold_code ringfold_all_gather(ringfold_comm* comm, const void* input, void* output, size_t count,
                                  ringfold_type type, const ringfold_call_options* options, ringfold_work** work) {
  return start(
      "ringfold_all_gather", comm, type, kNoOp, options, work,
      [&](const CallOptions& o, DataType t, ReduceOp) { return comm->comm.all_gather(input, output, count, t, o); });
}

ringfold_code ringfold_broadcast(ringfold_comm* comm, const void* input, void* output, size_t count,
                                 ringfold_type type, int32_t root, const ringfold_call_options* options,
                                 ringfold_work** work) {
  return start("ringfold_broadcast", comm, type, kNoOp, options, work,
               [&](const CallOptions& o, DataType t, ReduceOp) {
                 return comm->comm.broadcast(input, output, count, t, root, o);
               });
}

ringfold_code ringfold_gather(ringfold_comm* comm, const void* input, void* output, size_t count, ringfold_type type,
                              int32_t root, const ringfold_call_options* options, ringfold_work** work) {
  return start("ringfold_gather", comm, type, kNoOp, options, work, [&](const CallOptions& o, DataType t, ReduceOp) {
    return comm->comm.gather(input, output, count, t, root, o);
  });
}

ringfold_code ringfold_scatter(ringfold_comm* comm, const void* input, void* output, size_t count, ringfold_type type,
                               int32_t root, const ringfold_call_options* options, ringfold_work** work) {
  return start("ringfold_scatter", comm, type, kNoOp, options, work, [&](const CallOptions& o, DataType t, ReduceOp) {
    return comm->comm.scatter(input, output, count, t, root, o);
  });
}

ringfold_code ringfold_all_to_all(ringfold_comm* comm, const void* input, void* output, size_t count,
                                  ringfold_type type, const ringfold_call_options* options, ringfold_work** work) {
  return start(
      "ringfold_all_to_all", comm, type, kNoOp, options, work,
      [&](const CallOptions& o, DataType t, ReduceOp) { return comm->comm.all_to_all(input, output, count, t, o); });
}

ringfold_code ringfold_barrier(ringfold_comm* comm, const ringfold_call_options* options, ringfold_work** work) {
  return start("ringfold_barrier", comm, RINGFOLD_U8, kNoOp, options, work,
               [&](const CallOptions& o, DataType, ReduceOp) { return comm->comm.barrier(o); });
}

ringfold_code ringfold_all_gather_v(ringfold_comm* comm, const void* input, void* output, const size_t* counts,
                                    ringfold_type type, const ringfold_call_options* options, ringfold_work** work) {
  return start("ringfold_all_gather_v", comm, type, kNoOp, options, work,
               [&](const CallOptions& o, DataType t, ReduceOp) {
                 if (Status s = check_counts("ringfold_all_gather_v", comm, counts); !s.ok()) return Work(s);
                 return comm->comm.all_gather_v(input, output, per_rank(comm, counts), t, o);
               });
}

ringfold_code ringfold_reduce_scatter_v(ringfold_comm* comm, const void* input, void* output, const size_t* counts,
                                        ringfold_type type, ringfold_op op, const ringfold_call_options* options,
                                        ringfold_work** work) {
  return start("ringfold_reduce_scatter_v", comm, type, op, options, work,
               [&](const CallOptions& o, DataType t, ReduceOp r) {
                 if (Status s = check_counts("ringfold_reduce_scatter_v", comm, counts); !s.ok()) return Work(s);
                 return comm->comm.reduce_scatter_v(input, output, per_rank(comm, counts), t, r, o);
               });
}

ringfold_code ringfold_all_to_all_v(ringfold_comm* comm, const void* input, const size_t* send_counts, void* output,
                                    const size_t* receive_counts, ringfold_type type,
                                    const ringfold_call_options* options, ringfold_work** work) {
  return start("ringfold_all_to_all_v", comm, type, kNoOp, options, work,
               [&](const CallOptions& o, DataType t, ReduceOp) {
                 if (Status s = check_counts("ringfold_all_to_all_v", comm, send_counts); !s.ok()) return Work(s);
                 if (Status s = check_counts("ringfold_all_to_all_v", comm, receive_counts); !s.ok()) return Work(s);
                 return comm->comm.all_to_all_v(input, per_rank(comm, send_counts), output,
                                                per_rank(comm, receive_counts), t, o);
               });
}

ringfold_code ringfold_send(ringfold_comm* comm, const void* data, size_t count, ringfold_type type, int32_t peer,
                            int64_t tag, const ringfold_call_options* options, ringfold_work** work) {
  return start("ringfold_send", comm, type, kNoOp, options, work, [&](const CallOptions& o, DataType t, ReduceOp) {
    return comm->comm.send(data, count, t, peer, tag, o);
  });
}

ringfold_code ringfold_recv(ringfold_comm* comm, void* data, size_t count, ringfold_type type, int32_t peer,
                            int64_t tag, const ringfold_call_options* options, ringfold_work** work) {
  return start("ringfold_recv", comm, type, kNoOp, options, work, [&](const CallOptions& o, DataType t, ReduceOp) {
    return comm->comm.recv(data, count, t, peer, tag, o);
  });
}

ringfold_code ringfold_send_recv(ringfold_comm* comm, const void* send_data, size_t send_count, int32_t to,
                                 void* recv_data, size_t recv_count, int32_t from, ringfold_type type, int64_t tag,
                                 const ringfold_call_options* options, ringfold_work** work) {
  return start("ringfold_send_recv", comm, type, kNoOp, options, work,
               [&](const CallOptions& o, DataType t, ReduceOp) {
                 return comm->comm.send_recv(send_data, send_count, to, recv_data, recv_count, from, t, tag, o);
               });
}

// ---- persistent calls ----

ringfold_code ringfold_persistent_all_reduce(ringfold_comm* comm, const void* input, void* output, size_t count,
                                             ringfold_type type, ringfold_op op, const ringfold_call_options* options,
                                             ringfold_persistent** call) {
  return persist("ringfold_persistent_all_reduce", comm, type, op, options, call,
                 [&](const CallOptions& o, DataType t, ReduceOp r) {
                   return comm->comm.persistent_all_reduce(input, output, count, t, r, o);
                 });
}

ringfold_code ringfold_persistent_reduce_scatter(ringfold_comm* comm, const void* input, void* output, size_t count,
                                                 ringfold_type type, ringfold_op op,
                                                 const ringfold_call_options* options, ringfold_persistent** call) {
  return persist("ringfold_persistent_reduce_scatter", comm, type, op, options, call,
                 [&](const CallOptions& o, DataType t, ReduceOp r) {
                   return comm->comm.persistent_reduce_scatter(input, output, count, t, r, o);
                 });
}

ringfold_code ringfold_persistent_all_gather(ringfold_comm* comm, const void* input, void* output, size_t count,
                                             ringfold_type type, const ringfold_call_options* options,
                                             ringfold_persistent** call) {
  return persist("ringfold_persistent_all_gather", comm, type, kNoOp, options, call,
                 [&](const CallOptions& o, DataType t, ReduceOp) {
                   return comm->comm.persistent_all_gather(input, output, count, t, o);
                 });
}

ringfold_code ringfold_persistent_broadcast(ringfold_comm* comm, const void* input, void* output, size_t count,
                                            ringfold_type type, int32_t root, const ringfold_call_options* options,
                                            ringfold_persistent** call) {
  return persist("ringfold_persistent_broadcast", comm, type, kNoOp, options, call,
                 [&](const CallOptions& o, DataType t, ReduceOp) {
                   return comm->comm.persistent_broadcast(input, output, count, t, root, o);
                 });
}

ringfold_code ringfold_persistent_start(ringfold_persistent* call, ringfold_work** work) {
  return start("ringfold_persistent_start", call, RINGFOLD_U8, kNoOp, nullptr, work,
               [&](const CallOptions&, DataType, ReduceOp) { return call->call.start(); });
}

void ringfold_persistent_destroy(ringfold_persistent* call) {
  guarded([&] {
    delete call;
    return Status();
  });
}

// ---- works ----

ringfold_code ringfold_work_wait(ringfold_work* work) {
  return guarded([&] { return work == nullptr ? invalid("ringfold_work_wait", "work is NULL") : work->work.wait(); });
}

ringfold_code ringfold_work_wait_for(ringfold_work* work, double seconds, int32_t* done) {
  return guarded([&]() -> Status {
    if (work == nullptr || done == nullptr) return invalid("ringfold_work_wait_for", "work or done is NULL");
    Status status = work->work.wait_for(seconds);
    *done = work->work.done();
    // It may have ended just after the wait gave up.
    return *done != 0 ? work->work.wait() : status;
  });
}

ringfold_code ringfold_work_test(ringfold_work* work, int32_t* done) {
  return guarded([&]() -> Status {
    if (work == nullptr || done == nullptr) return invalid("ringfold_work_test", "work or done is NULL");
    *done = work->work.test();
    return *done != 0 ? work->work.wait() : Status();
  });
}

ringfold_code ringfold_work_status(const ringfold_work* work, int32_t* done) {
  return guarded([&]() -> Status {
    if (work == nullptr || done == nullptr) return invalid("ringfold_work_status", "work or done is NULL");
    *done = work->work.done();
    return *done != 0 ? Work(work->work).wait() : Status();
  });
}

int32_t ringfold_work_source(const ringfold_work* work) { return work == nullptr ? -1 : work->work.source(); }

ringfold_code ringfold_work_then(ringfold_work* work, ringfold_callback callback, void* user) {
  return guarded([&]() -> Status {
    if (work == nullptr || callback == nullptr) return invalid("ringfold_work_then", "work or callback is NULL");
    work->work.then([callback, user](const Status& status) { callback(user, finish(status)); });
    return {};
  });
}

ringfold_code ringfold_work_group(ringfold_work** works, size_t count, ringfold_work** group) {
  return guarded([&]() -> Status {
    if (group != nullptr) *group = nullptr;
    if (works == nullptr && count > 0) return invalid("ringfold_work_group", "works is NULL");
    std::vector<Work> parts;
    parts.reserve(count);
    bool missing = false;
    for (size_t i = 0; i < count; ++i) {
      const std::unique_ptr<ringfold_work> owned(std::exchange(works[i], nullptr));
      missing = missing || owned == nullptr;
      if (owned) parts.push_back(owned->work);
    }
    if (missing || group == nullptr) return invalid("ringfold_work_group", "group or one of works is NULL");
    *group = new ringfold_work{Work::all(std::move(parts))};
    return {};
  });
}

void ringfold_work_destroy(ringfold_work* work) {
  guarded([&] {
    delete work;
    return Status();
  });
}
