// Communicators, tuning and error feedback.
#include <cstdlib>

#include "capi/capi.h"

using namespace ringfold;        // NOLINT: this file is the outside of that namespace
using namespace ringfold::capi;  // NOLINT

namespace {

Status check_rank(const char* function, const ringfold_comm* comm, int32_t rank) {
  if (rank >= 0 && rank < comm->comm.size()) return {};
  return invalid(function, std::to_string(rank) + " is not a rank of 0.." + std::to_string(comm->comm.size() - 1));
}

// What explain, algorithm_for and codec_for ask about.
struct Question {
  Collective collective = Collective::kAllReduce;
  DataType type = DataType::kF32;
  ReduceOp op;
  std::optional<Codec> codec;
};
Status to_question(const char* function, const ringfold_comm* comm, ringfold_collective collective,
                   ringfold_type type, ringfold_op op, int32_t root, const ringfold_codec* codec,
                   Question* question) {
  RINGFOLD_TRY(check_rank(function, comm, root));
  RINGFOLD_TRY(to_collective(collective, &question->collective));
  RINGFOLD_TRY(to_type(type, &question->type));
  RINGFOLD_TRY(to_op(op, 1, &question->op));
  if (codec != nullptr) RINGFOLD_TRY(to_codec(*codec, &question->codec.emplace()));
  return {};
}

// Hands `made` over as a handle.
Status give_comm(Result<Communicator> made, ringfold_comm** out) {
  if (!made.ok()) return made.status();
  *out = new ringfold_comm{*std::move(made)};
  return {};
}

}  // namespace

ringfold_code ringfold_comm_init(ringfold_comm** comm, const ringfold_options* options) {
  return guarded(__func__, {{"comm", comm}}, [&]() -> Status {
    *comm = nullptr;
    Options known;
    RINGFOLD_TRY(to_options(options, &known));
    return give_comm(Communicator::init(known), comm);
  });
}

ringfold_code ringfold_comm_init_local(ringfold_comm** comms, int32_t ranks, const ringfold_options* options) {
  return guarded(__func__, {{"comms", comms}}, [&]() -> Status {
    for (int32_t r = 0; r < ranks; ++r) comms[r] = nullptr;
    Options known;
    RINGFOLD_TRY(to_options(options, &known));
    auto made = Communicator::init_local(ranks, known);
    if (!made.ok()) return made.status();
    std::vector<std::unique_ptr<ringfold_comm>> handles;
    for (auto& comm : *made) handles.push_back(std::make_unique<ringfold_comm>(ringfold_comm{std::move(comm)}));
    for (auto& handle : handles) *comms++ = handle.release();
    return {};
  });
}

void ringfold_comm_destroy(ringfold_comm* comm) { destroy(comm); }

int32_t ringfold_comm_rank(const ringfold_comm* comm) { return comm == nullptr ? -1 : comm->comm.rank(); }
int32_t ringfold_comm_size(const ringfold_comm* comm) { return comm == nullptr ? -1 : comm->comm.size(); }
uint32_t ringfold_comm_epoch(const ringfold_comm* comm) { return comm == nullptr ? 0 : comm->comm.epoch(); }
int32_t ringfold_comm_job_rank(const ringfold_comm* comm) { return comm == nullptr ? -1 : comm->comm.job_rank(); }

ringfold_code ringfold_comm_status(const ringfold_comm* comm) {
  return guarded(__func__, {{"comm", comm}}, [&] { return comm->comm.status(); });
}

ringfold_code ringfold_comm_host(const ringfold_comm* comm, int32_t rank, char** host) {
  clear(host);
  return guarded(__func__, {{"comm", comm}, {"host", host}}, [&]() -> Status {
    RINGFOLD_TRY(check_rank("ringfold_comm_host", comm, rank));
    return give_text(comm->comm.host_of(rank), host);
  });
}

ringfold_code ringfold_comm_transport(const ringfold_comm* comm, int32_t peer, char** transport) {
  clear(transport);
  return guarded(__func__, {{"comm", comm}, {"transport", transport}}, [&]() -> Status {
    RINGFOLD_TRY(check_rank("ringfold_comm_transport", comm, peer));
    return give_text(comm->comm.transport_to(peer), transport);
  });
}

ringfold_code ringfold_comm_split(ringfold_comm* comm, int32_t color, int32_t key, ringfold_comm** part) {
  clear(part);
  return guarded(__func__, {{"comm", comm}, {"part", part}}, [&]() -> Status {
    auto made = comm->comm.split(color, key);
    if (made.ok() && color < 0) return {};
    return give_comm(std::move(made), part);
  });
}

ringfold_code ringfold_comm_subset(ringfold_comm* comm, const int32_t* ranks, size_t count, double timeout_s,
                                   ringfold_comm** part) {
  clear(part);
  return guarded(__func__, {{"comm", comm}, {"ranks", ranks}, {"part", part}}, [&]() -> Status {
    const std::vector<int> list(ranks, ranks + count);
    return give_comm(comm->comm.subset(list, timeout_s), part);
  });
}

ringfold_code ringfold_comm_share_memory(ringfold_comm* comm, void* memory, size_t bytes) {
  return guarded(__func__, {{"comm", comm}, {"memory", memory}},
                 [&]() -> Status { return comm->comm.share_memory(memory, bytes); });
}

ringfold_code ringfold_comm_unshare_memory(ringfold_comm* comm, void* memory) {
  return guarded(__func__, {{"comm", comm}, {"memory", memory}},
                 [&]() -> Status { return comm->comm.unshare_memory(memory); });
}

ringfold_code ringfold_comm_reconfigure(ringfold_comm* comm, ringfold_comm** survivors) {
  clear(survivors);
  return guarded(__func__, {{"comm", comm}, {"survivors", survivors}},
                 [&]() -> Status { return give_comm(comm->comm.reconfigure(), survivors); });
}

ringfold_code ringfold_comm_waiting(const ringfold_comm* comm, int32_t** ranks, size_t* count) {
  clear(ranks);
  return guarded(__func__, {{"comm", comm}, {"ranks", ranks}, {"count", count}}, [&]() -> Status {
    const std::vector<int32_t> waiting = comm->comm.waiting();
    *count = 0;
    RINGFOLD_TRY(give_array(std::span(waiting), ranks));
    *count = waiting.size();
    return {};
  });
}

ringfold_code ringfold_comm_abort(ringfold_comm* comm, const char* cause) {
  return guarded(__func__, {{"comm", comm}}, [&]() -> Status {
    comm->comm.abort(cause == nullptr ? "" : cause);
    return {};
  });
}

ringfold_code ringfold_comm_counters(ringfold_comm* comm, ringfold_counters* counters) {
  return guarded(__func__, {{"comm", comm}}, [&]() -> Status {
    const Counters now = comm->comm.counters();
    const ringfold_counters result = {.struct_size = 0,
                                      .touched_bytes = now.touched_bytes,
                                      .system_calls = now.system_calls,
                                      .yields = now.yields,
                                      .sleeps = now.sleeps,
                                      .wakeups = now.wakeups};
    return write_struct("ringfold_counters", result, counters);
  });
}

// ---- tuning and explaining ----

ringfold_code ringfold_comm_tune(ringfold_comm* comm, double seconds) {
  return guarded(__func__, {{"comm", comm}}, [&] { return comm->comm.tune(seconds); });
}

ringfold_code ringfold_comm_tuning(ringfold_comm* comm, char** text) {
  clear(text);
  return guarded(__func__, {{"comm", comm}, {"text", text}},
                 [&]() -> Status { return give_text(comm->comm.tuning(), text); });
}

ringfold_code ringfold_explain(ringfold_comm* comm, ringfold_collective collective, size_t count, ringfold_type type,
                               ringfold_op op, int32_t root, const ringfold_codec* codec, char** text) {
  clear(text);
  return guarded(__func__, {{"comm", comm}, {"text", text}}, [&]() -> Status {
    Question q;
    RINGFOLD_TRY(to_question("ringfold_explain", comm, collective, type, op, root, codec, &q));
    return give_text(comm->comm.explain(q.collective, count, q.type, q.op, root, q.codec), text);
  });
}

ringfold_code ringfold_algorithm_for(ringfold_comm* comm, ringfold_collective collective, size_t count,
                                     ringfold_type type, ringfold_op op, int32_t root, const ringfold_codec* codec,
                                     char** name) {
  clear(name);
  return guarded(__func__, {{"comm", comm}, {"name", name}}, [&]() -> Status {
    Question q;
    RINGFOLD_TRY(to_question("ringfold_algorithm_for", comm, collective, type, op, root, codec, &q));
    return give_text(comm->comm.algorithm_for(q.collective, count, q.type, q.op, root, q.codec), name);
  });
}

ringfold_code ringfold_codec_for(ringfold_comm* comm, ringfold_collective collective, size_t count,
                                 ringfold_type type, ringfold_op op, int32_t root, const ringfold_codec* codec,
                                 ringfold_codec* used) {
  return guarded(__func__, {{"comm", comm}, {"used", used}}, [&]() -> Status {
    Question q;
    RINGFOLD_TRY(to_question("ringfold_codec_for", comm, collective, type, op, root, codec, &q));
    *used = from_codec(comm->comm.codec_for(q.collective, count, q.type, q.op, root, q.codec));
    return {};
  });
}

// ---- error feedback ----

ringfold_code ringfold_feedback_names(ringfold_comm* comm, char*** names, size_t* count) {
  return guarded(__func__, {{"comm", comm}, {"names", names}, {"count", count}}, [&]() -> Status {
    *names = nullptr;
    // One block: the pointers, then what they point to.
    const auto all = comm->comm.error_feedback().names();
    size_t bytes = (all.size() + 1) * sizeof(char*);
    for (const auto& name : all) bytes += name.size() + 1;
    auto** block = static_cast<char**>(std::malloc(bytes));
    if (block == nullptr) throw std::bad_alloc();
    auto* text = reinterpret_cast<char*>(block + all.size() + 1);
    for (size_t i = 0; i < all.size(); ++i) {
      block[i] = text;
      std::memcpy(text, all[i].c_str(), all[i].size() + 1);
      text += all[i].size() + 1;
    }
    block[all.size()] = nullptr;
    *names = block;
    *count = all.size();
    return {};
  });
}

ringfold_code ringfold_feedback_get(ringfold_comm* comm, const char* name, float** values, size_t* elems) {
  return guarded(__func__, {{"comm", comm}, {"name", name}, {"values", values}, {"elems", elems}}, [&]() -> Status {
    *values = nullptr;
    *elems = 0;
    const std::vector<float> held = comm->comm.error_feedback().get(name);
    RINGFOLD_TRY(give_array(std::span(held), values));
    *elems = held.size();
    return {};
  });
}

ringfold_code ringfold_feedback_reset(ringfold_comm* comm, const char* name) {
  return guarded(__func__, {{"comm", comm}}, [&]() -> Status {
    if (name == nullptr) {
      comm->comm.error_feedback().reset();
    } else {
      comm->comm.error_feedback().reset(name);
    }
    return {};
  });
}

ringfold_code ringfold_feedback_save(ringfold_comm* comm, void** state, size_t* bytes) {
  clear(state);
  return guarded(__func__, {{"comm", comm}, {"state", state}, {"bytes", bytes}},
                 [&]() -> Status { return give_bytes(comm->comm.error_feedback().save(), state, bytes); });
}

ringfold_code ringfold_feedback_load(ringfold_comm* comm, const void* state, size_t bytes) {
  return guarded(__func__, {{"comm", comm}, {"state", bytes == 0 ? "" : state}}, [&] {
    return comm->comm.error_feedback().load({static_cast<const char*>(state), bytes});
  });
}

ringfold_code ringfold_feedback_add(ringfold_comm* comm, const void* state, size_t bytes) {
  return guarded(__func__, {{"comm", comm}, {"state", bytes == 0 ? "" : state}}, [&] {
    return comm->comm.error_feedback().add({static_cast<const char*>(state), bytes});
  });
}
