// Collectives, messages, persistent calls and works.
#include "capi/capi.h"

using namespace ringfold;        // NOLINT: this file is the outside of that namespace
using namespace ringfold::capi;  // NOLINT

namespace {

// What all calls take beside their buffers.
struct Call {
  CallOptions options;
  DataType type = DataType::kU8;
  ReduceOp op;
};
constexpr std::optional<ringfold_op> kNoOp;
Status to_call(ringfold_type type, std::optional<ringfold_op> op, const ringfold_call_options* options, Call* call) {
  double scale = 0;
  RINGFOLD_TRY(to_call_options(options, &call->options, &scale));
  RINGFOLD_TRY(to_type(type, &call->type));
  return op ? to_op(*op, scale, &call->op) : Status();
}

// Waits for the work that `body` makes, or gives it away.
template <typename Body>
Status start(ringfold_work** work, const Body& body) {
  if (work == nullptr) {
    Work started = body();
    return started.wait();
  }
  // Before the call starts: nobody could wait for one that there is no memory to tell of.
  auto made = std::make_unique<ringfold_work>();
  made->work = body();
  if (made->work.done()) RINGFOLD_TRY(made->work.wait());
  *work = made.release();
  return {};
}

// A call: `body(const Call&)` makes its Work.
template <typename Body>
ringfold_code start(const char* function, std::initializer_list<Required> arguments, ringfold_type type,
                    std::optional<ringfold_op> op, const ringfold_call_options* options, ringfold_work** work,
                    const Body& body) noexcept {
  clear(work);
  return guarded(function, arguments, [&]() -> Status {
    Call call;
    RINGFOLD_TRY(to_call(type, op, options, &call));
    return start(work, [&] { return body(call); });
  });
}

// `body(const Call&)` makes the Result<Persistent>.
template <typename Body>
ringfold_code persist(const char* function, ringfold_comm* comm, ringfold_type type, std::optional<ringfold_op> op,
                      const ringfold_call_options* options, ringfold_persistent** call, const Body& body) noexcept {
  clear(call);
  return guarded(function, {{"comm", comm}, {"call", call}}, [&]() -> Status {
    Call known;
    RINGFOLD_TRY(to_call(type, op, options, &known));
    Result<Persistent> made = body(known);
    if (!made.ok()) return made.status();
    *call = new ringfold_persistent{*std::move(made)};
    return {};
  });
}

std::span<const size_t> per_rank(const ringfold_comm* comm, const size_t* counts) {
  return {counts, static_cast<size_t>(comm->comm.size())};
}

}  // namespace

ringfold_code ringfold_all_reduce(ringfold_comm* comm, const void* input, void* output, size_t count,
                                  ringfold_type type, ringfold_op op, const ringfold_call_options* options,
                                  ringfold_work** work) {
  return start(__func__, {{"comm", comm}}, type, op, options, work,
               [&](const Call& c) { return comm->comm.all_reduce(input, output, count, c.type, c.op, c.options); });
}

ringfold_code ringfold_reduce(ringfold_comm* comm, const void* input, void* output, size_t count, ringfold_type type,
                              ringfold_op op, int32_t root, const ringfold_call_options* options,
                              ringfold_work** work) {
  return start(__func__, {{"comm", comm}}, type, op, options, work,
               [&](const Call& c) { return comm->comm.reduce(input, output, count, c.type, c.op, root, c.options); });
}

ringfold_code ringfold_reduce_scatter(ringfold_comm* comm, const void* input, void* output, size_t count,
                                      ringfold_type type, ringfold_op op, const ringfold_call_options* options,
                                      ringfold_work** work) {
  return start(__func__, {{"comm", comm}}, type, op, options, work, [&](const Call& c) {
    return comm->comm.reduce_scatter(input, output, count, c.type, c.op, c.options);
  });
}

ringfold_code ringfold_all_gather(ringfold_comm* comm, const void* input, void* output, size_t count,
                                  ringfold_type type, const ringfold_call_options* options, ringfold_work** work) {
  return start(__func__, {{"comm", comm}}, type, kNoOp, options, work,
               [&](const Call& c) { return comm->comm.all_gather(input, output, count, c.type, c.options); });
}

ringfold_code ringfold_broadcast(ringfold_comm* comm, const void* input, void* output, size_t count,
                                 ringfold_type type, int32_t root, const ringfold_call_options* options,
                                 ringfold_work** work) {
  return start(__func__, {{"comm", comm}}, type, kNoOp, options, work,
               [&](const Call& c) { return comm->comm.broadcast(input, output, count, c.type, root, c.options); });
}

ringfold_code ringfold_gather(ringfold_comm* comm, const void* input, void* output, size_t count, ringfold_type type,
                              int32_t root, const ringfold_call_options* options, ringfold_work** work) {
  return start(__func__, {{"comm", comm}}, type, kNoOp, options, work,
               [&](const Call& c) { return comm->comm.gather(input, output, count, c.type, root, c.options); });
}

ringfold_code ringfold_scatter(ringfold_comm* comm, const void* input, void* output, size_t count, ringfold_type type,
                               int32_t root, const ringfold_call_options* options, ringfold_work** work) {
  return start(__func__, {{"comm", comm}}, type, kNoOp, options, work,
               [&](const Call& c) { return comm->comm.scatter(input, output, count, c.type, root, c.options); });
}

ringfold_code ringfold_all_to_all(ringfold_comm* comm, const void* input, void* output, size_t count,
                                  ringfold_type type, const ringfold_call_options* options, ringfold_work** work) {
  return start(__func__, {{"comm", comm}}, type, kNoOp, options, work,
               [&](const Call& c) { return comm->comm.all_to_all(input, output, count, c.type, c.options); });
}

ringfold_code ringfold_barrier(ringfold_comm* comm, const ringfold_call_options* options, ringfold_work** work) {
  return start(__func__, {{"comm", comm}}, RINGFOLD_U8, kNoOp, options, work,
               [&](const Call& c) { return comm->comm.barrier(c.options); });
}

ringfold_code ringfold_all_gather_v(ringfold_comm* comm, const void* input, void* output, const size_t* counts,
                                    ringfold_type type, const ringfold_call_options* options, ringfold_work** work) {
  return start(__func__, {{"comm", comm}, {"counts", counts}}, type, kNoOp, options, work, [&](const Call& c) {
    return comm->comm.all_gather_v(input, output, per_rank(comm, counts), c.type, c.options);
  });
}

ringfold_code ringfold_reduce_scatter_v(ringfold_comm* comm, const void* input, void* output, const size_t* counts,
                                        ringfold_type type, ringfold_op op, const ringfold_call_options* options,
                                        ringfold_work** work) {
  return start(__func__, {{"comm", comm}, {"counts", counts}}, type, op, options, work, [&](const Call& c) {
    return comm->comm.reduce_scatter_v(input, output, per_rank(comm, counts), c.type, c.op, c.options);
  });
}

ringfold_code ringfold_all_to_all_v(ringfold_comm* comm, const void* input, const size_t* send_counts, void* output,
                                    const size_t* receive_counts, ringfold_type type,
                                    const ringfold_call_options* options, ringfold_work** work) {
  return start(__func__, {{"comm", comm}, {"send_counts", send_counts}, {"receive_counts", receive_counts}}, type,
               kNoOp, options, work, [&](const Call& c) {
                 return comm->comm.all_to_all_v(input, per_rank(comm, send_counts), output,
                                                per_rank(comm, receive_counts), c.type, c.options);
               });
}

ringfold_code ringfold_send(ringfold_comm* comm, const void* data, size_t count, ringfold_type type, int32_t peer,
                            int64_t tag, const ringfold_call_options* options, ringfold_work** work) {
  return start(__func__, {{"comm", comm}}, type, kNoOp, options, work,
               [&](const Call& c) { return comm->comm.send(data, count, c.type, peer, tag, c.options); });
}

ringfold_code ringfold_recv(ringfold_comm* comm, void* data, size_t count, ringfold_type type, int32_t peer,
                            int64_t tag, const ringfold_call_options* options, ringfold_work** work) {
  return start(__func__, {{"comm", comm}}, type, kNoOp, options, work,
               [&](const Call& c) { return comm->comm.recv(data, count, c.type, peer, tag, c.options); });
}

ringfold_code ringfold_send_recv(ringfold_comm* comm, const void* send_data, size_t send_count, int32_t to,
                                 void* recv_data, size_t recv_count, int32_t from, ringfold_type type, int64_t tag,
                                 const ringfold_call_options* options, ringfold_work** work) {
  return start(__func__, {{"comm", comm}}, type, kNoOp, options, work, [&](const Call& c) {
    return comm->comm.send_recv(send_data, send_count, to, recv_data, recv_count, from, c.type, tag, c.options);
  });
}

// ---- persistent calls ----

ringfold_code ringfold_persistent_all_reduce(ringfold_comm* comm, const void* input, void* output, size_t count,
                                             ringfold_type type, ringfold_op op, const ringfold_call_options* options,
                                             ringfold_persistent** call) {
  return persist(__func__, comm, type, op, options, call, [&](const Call& c) {
    return comm->comm.persistent_all_reduce(input, output, count, c.type, c.op, c.options);
  });
}

ringfold_code ringfold_persistent_reduce_scatter(ringfold_comm* comm, const void* input, void* output, size_t count,
                                                 ringfold_type type, ringfold_op op,
                                                 const ringfold_call_options* options, ringfold_persistent** call) {
  return persist(__func__, comm, type, op, options, call, [&](const Call& c) {
    return comm->comm.persistent_reduce_scatter(input, output, count, c.type, c.op, c.options);
  });
}

ringfold_code ringfold_persistent_all_gather(ringfold_comm* comm, const void* input, void* output, size_t count,
                                             ringfold_type type, const ringfold_call_options* options,
                                             ringfold_persistent** call) {
  return persist(__func__, comm, type, kNoOp, options, call, [&](const Call& c) {
    return comm->comm.persistent_all_gather(input, output, count, c.type, c.options);
  });
}

ringfold_code ringfold_persistent_broadcast(ringfold_comm* comm, const void* input, void* output, size_t count,
                                            ringfold_type type, int32_t root, const ringfold_call_options* options,
                                            ringfold_persistent** call) {
  return persist(__func__, comm, type, kNoOp, options, call, [&](const Call& c) {
    return comm->comm.persistent_broadcast(input, output, count, c.type, root, c.options);
  });
}

ringfold_code ringfold_persistent_start(ringfold_persistent* call, ringfold_work** work) {
  clear(work);
  return guarded(__func__, {{"call", call}}, [&] { return start(work, [&] { return call->call.start(); }); });
}

void ringfold_persistent_destroy(ringfold_persistent* call) { destroy(call); }

// ---- works ----

ringfold_code ringfold_work_wait(ringfold_work* work) {
  return guarded(__func__, {{"work", work}}, [&] { return work->work.wait(); });
}

ringfold_code ringfold_work_wait_for(ringfold_work* work, double seconds, int32_t* done) {
  return guarded(__func__, {{"work", work}, {"done", done}}, [&]() -> Status {
    Status status = work->work.wait_for(seconds);
    *done = work->work.done();
    // It may have ended just after the wait gave up.
    return *done != 0 ? work->work.wait() : status;
  });
}

ringfold_code ringfold_work_test(ringfold_work* work, int32_t* done) {
  return guarded(__func__, {{"work", work}, {"done", done}}, [&]() -> Status {
    *done = work->work.test();
    return *done != 0 ? work->work.wait() : Status();
  });
}

ringfold_code ringfold_work_status(const ringfold_work* work, int32_t* done) {
  return guarded(__func__, {{"work", work}, {"done", done}}, [&]() -> Status {
    *done = work->work.done();
    return *done != 0 ? Work(work->work).wait() : Status();
  });
}

int32_t ringfold_work_source(const ringfold_work* work) { return work == nullptr ? -1 : work->work.source(); }

ringfold_code ringfold_work_then(ringfold_work* work, ringfold_callback callback, void* user) {
  return guarded(__func__, {{"work", work}, {"callback", callback}}, [&]() -> Status {
    work->work.then([callback, user](const Status& status) { callback(user, finish(status)); });
    return {};
  });
}

ringfold_code ringfold_work_group(ringfold_work** works, size_t count, ringfold_work** group) {
  clear(group);
  return guarded(__func__, {}, [&]() -> Status {
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

void ringfold_work_destroy(ringfold_work* work) { destroy(work); }
