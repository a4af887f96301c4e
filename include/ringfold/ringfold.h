// Ringfold's C interface (C99): what the C++ interface offers, with opaque handles and codes, but for a meeting place
// of the program's own (Exchange) and groups that are told of calls on streams (CallOptions::group). What the calls
// mean, which arguments must be the same on all ranks, and what failure does is said in communicator.h and work.h.
//
//   ringfold_comm* comm;
//   if (ringfold_comm_init(&comm, NULL) != RINGFOLD_OK) return puts(ringfold_last_error()), 1;
//   ringfold_all_reduce(comm, gradient, gradient, n, RINGFOLD_F32, RINGFOLD_AVG, NULL, NULL);   // waits
//   ringfold_comm_destroy(comm);
//
// Errors. Functions return RINGFOLD_OK or the code of the failure, and set what ringfold_last_error() and
// ringfold_last_verdict() tell on the calling thread; success leaves both alone. No C++ exception leaves a function.
//
// Ownership. What comes back through a pointer to a pointer belongs to the caller: handles until the _destroy of
// their kind (NULL is allowed), text and bytes until ringfold_free(). After a failure it is NULL. Strings that go in
// are copied. Buffers belong to a call from its start until its work is done. Handles hold on to what they need: a
// communicator may be destroyed before its works, which then end with RINGFOLD_ABORTED.
//
// Threads. Every function from any thread; but a handle that is destroyed must not be in use by another thread, and
// threads that use one communicator at once must agree on the order of collectives on all ranks.
//
// ABI. Within soname libringfold.so.0 functions and constants are added, never changed. Structures that may grow
// begin with their size, as the caller's header knows it: always start from the _INIT macro. A library that is older
// than the header refuses members that it does not know unless they are zero, which always means the default.
#ifndef RINGFOLD_RINGFOLD_H
#define RINGFOLD_RINGFOLD_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RINGFOLD_C_API __attribute__((visibility("default")))

typedef struct ringfold_comm ringfold_comm;
typedef struct ringfold_work ringfold_work;
typedef struct ringfold_persistent ringfold_persistent;

typedef int32_t ringfold_code;
enum {
  RINGFOLD_OK = 0,
  RINGFOLD_INVALID = 1,      // the caller's arguments, configuration or input file; nothing was started
  RINGFOLD_MISMATCH = 2,     // ranks made calls that do not belong together
  RINGFOLD_TIMEOUT = 3,      // a deadline passed and nobody is known to be dead
  RINGFOLD_PEER_LOST = 4,    // a rank's process or its connection ended, or it stopped answering
  RINGFOLD_ABORTED = 5,      // this side was told to abort, or the communicator was aborted earlier
  RINGFOLD_UNAVAILABLE = 6,  // a device, interface or package is missing
  RINGFOLD_DENIED = 7,       // a peer failed to prove the shared key, or the system refused access
  RINGFOLD_PROTOCOL = 8,     // bytes that no correct peer sends
  RINGFOLD_IO = 9,           // the system reported an error
  RINGFOLD_INTERNAL = 10     // a fault of Ringfold's own, or no memory
};

typedef int32_t ringfold_type;
enum {
  RINGFOLD_F64 = 0,
  RINGFOLD_F32 = 1,
  RINGFOLD_F16 = 2,
  RINGFOLD_BF16 = 3,
  RINGFOLD_I8 = 4,
  RINGFOLD_U8 = 5,
  RINGFOLD_I32 = 6,
  RINGFOLD_U32 = 7,
  RINGFOLD_I64 = 8,
  RINGFOLD_U64 = 9
};

typedef int32_t ringfold_op;
enum {
  RINGFOLD_SUM = 0,
  RINGFOLD_PROD = 1,
  RINGFOLD_MIN = 2,
  RINGFOLD_MAX = 3,
  RINGFOLD_AVG = 4,
  RINGFOLD_SCALED_SUM = 5  // times ringfold_call_options.scale
};

typedef int32_t ringfold_collective;
enum {
  RINGFOLD_ALL_REDUCE = 0,
  RINGFOLD_REDUCE = 1,
  RINGFOLD_REDUCE_SCATTER = 2,
  RINGFOLD_ALL_GATHER = 3,
  RINGFOLD_BROADCAST = 4,
  RINGFOLD_GATHER = 5,
  RINGFOLD_SCATTER = 6,
  RINGFOLD_ALL_TO_ALL = 7,
  RINGFOLD_BARRIER = 8
};

#define RINGFOLD_ANY_SOURCE (-1)

// How f32 values travel (codec.h). Made by ringfold_codec_parse(); all zero: as they are.
typedef struct ringfold_codec {
  int32_t kind, rounding, rotate, keep, when_faster;
  int32_t reserved[3];  // zero
} ringfold_codec;

// How a communicator is made. Unset (NULL, 0, rank and size -1): from RINGFOLD_* variables, else the default.
typedef struct ringfold_options {
  size_t struct_size;
  int32_t rank, size;      // both or neither; neither: from the launcher's variables
  const char* rendezvous;  // "host:port" or "dir:/path"
  double timeout_s;        // deadline of every call, and of init itself
  const char* transport;   // "auto", "shm", "tcp"
  const char* algorithm;   // "auto", "ring", "tree", ...
  const char* key_file;    // the job's shared key
  const char* codec;       // of all_reduce and reduce_scatter of f32 where a call does not say: "int8", "auto", ...
  int32_t deterministic;   // not 0: the same bits whatever the size, algorithm and transport
  int32_t background;      // not 0: a thread drives calls that nobody waits for
  int32_t open;      // not 0, on all ranks: processes may join in the place of lost ranks (ringfold_comm_reconfigure)
  int32_t reserved;  // zero
  const char* key;   // the job's shared key itself, 16 characters or more, instead of a file
} ringfold_options;
#define RINGFOLD_OPTIONS_INIT \
  { sizeof(ringfold_options), -1, -1, NULL, 0, NULL, NULL, NULL, NULL, 0, 0, 0, 0, NULL }

// Of one call; where a function takes a pointer to it, NULL stands for all defaults.
typedef struct ringfold_call_options {
  size_t struct_size;
  double timeout_s;             // 0: the communicator's
  const ringfold_codec* codec;  // NULL: the communicator's; the same on all ranks
  const char* feedback;         // name of the tensor whose error feedback the codes use; NULL: none
  double scale;                 // of RINGFOLD_SCALED_SUM, the same on all ranks
  void* stream;  // CUDA stream that the call is ordered in; NULL: none (the default stream is (void*)1)
  // Of all_reduce, reduce and reduce_scatter: what this rank's values are multiplied by before they are reduced;
  // NULL: nothing. Ranks may give different ones.
  const double* input_factor;
  const char* label;  // of messages: what this one is, in words for verdicts; NULL: none
} ringfold_call_options;
#define RINGFOLD_CALL_OPTIONS_INIT \
  { sizeof(ringfold_call_options), 0, NULL, NULL, 0, NULL, NULL, NULL }

// What the survivors of a failed collective agree on. The strings belong to the library, until the calling thread's
// next call that fails.
typedef struct ringfold_verdict {
  size_t struct_size;
  int32_t rank;           // the culprit, as a rank of the communicator; -1 when nobody can be named
  uint32_t epoch;         // in which it happened
  uint64_t sequence;      // number of the call on the communicator, from 1
  ringfold_code code;     // never RINGFOLD_OK
  const char* host;       // the culprit's
  const char* operation;  // "all_reduce", or "" when no call was in flight
  const char* cause;      // in words
} ringfold_verdict;
#define RINGFOLD_VERDICT_INIT \
  { sizeof(ringfold_verdict), -1, 0, 0, RINGFOLD_OK, NULL, NULL, NULL }

// What communication has cost this rank so far (counters.h).
typedef struct ringfold_counters {
  size_t struct_size;
  uint64_t touched_bytes, system_calls, yields, sleeps, wakeups;
} ringfold_counters;
#define RINGFOLD_COUNTERS_INIT \
  { sizeof(ringfold_counters), 0, 0, 0, 0, 0 }

// ---- names, versions, errors, memory ----
RINGFOLD_C_API const char* ringfold_version(void);  // of the library that is linked: "0.1.0"
// Of the last call that failed on this thread: what, where, what to do; "" when none has. Until the next that fails.
RINGFOLD_C_API const char* ringfold_last_error(void);
// 1 and the verdict if that failure was one on which the survivors agreed, else 0.
RINGFOLD_C_API int ringfold_last_verdict(ringfold_verdict* verdict);
// "peer lost", "f32", "scaled_sum", "all_reduce"; "?" for a number that is none.
RINGFOLD_C_API const char* ringfold_code_name(ringfold_code code);
RINGFOLD_C_API const char* ringfold_type_name(ringfold_type type);
RINGFOLD_C_API const char* ringfold_op_name(ringfold_op op);
RINGFOLD_C_API const char* ringfold_collective_name(ringfold_collective collective);
RINGFOLD_C_API size_t ringfold_type_size(ringfold_type type);  // bytes of an element; 0: no type
RINGFOLD_C_API void ringfold_free(void* text_or_bytes);
// Zeroed memory that ranks on the same host read in place (memory.h). Back with ringfold_deallocate().
RINGFOLD_C_API ringfold_code ringfold_allocate(void** memory, size_t bytes);
// The same in the memory of a CUDA device by its number, -1: the calling thread's. All calls take device memory
// (communicator.h).
RINGFOLD_C_API ringfold_code ringfold_allocate_on_device(void** memory, size_t bytes, int32_t device);
RINGFOLD_C_API void ringfold_deallocate(void* memory);

// ---- codecs ----
// "none", "int8", "int4+rotate", "topk:0.01", "auto", ... and back.
RINGFOLD_C_API ringfold_code ringfold_codec_parse(const char* text, ringfold_codec* codec);
RINGFOLD_C_API ringfold_code ringfold_codec_text(const ringfold_codec* codec, char** text);
RINGFOLD_C_API ringfold_code ringfold_codec_check(const ringfold_codec* codec);
// Largest error of one coding, as a share of the largest magnitude in its block; infinity: no bound that is of use.
RINGFOLD_C_API ringfold_code ringfold_codec_error_bound(const ringfold_codec* codec, double* bound);
RINGFOLD_C_API ringfold_code ringfold_codec_encoded_bytes(const ringfold_codec* codec, uint64_t elems,
                                                          uint64_t* bytes);

// ---- communicators ----
RINGFOLD_C_API ringfold_code ringfold_comm_init(ringfold_comm** comm, const ringfold_options* options);
// `ranks` communicators of one group in this process, for ranks as threads: comms[r] is rank r's.
RINGFOLD_C_API ringfold_code ringfold_comm_init_local(ringfold_comm** comms, int32_t ranks,
                                                      const ringfold_options* options);
RINGFOLD_C_API void ringfold_comm_destroy(ringfold_comm* comm);
RINGFOLD_C_API int32_t ringfold_comm_rank(const ringfold_comm* comm);    // -1: comm is NULL
RINGFOLD_C_API int32_t ringfold_comm_size(const ringfold_comm* comm);    // -1: comm is NULL
RINGFOLD_C_API uint32_t ringfold_comm_epoch(const ringfold_comm* comm);  // 0, then one more for each reconfigure
// Of this process in its job: the same in all of its communicators. -1: comm is NULL.
RINGFOLD_C_API int32_t ringfold_comm_job_rank(const ringfold_comm* comm);
RINGFOLD_C_API ringfold_code ringfold_comm_status(const ringfold_comm* comm);  // OK while usable
RINGFOLD_C_API ringfold_code ringfold_comm_host(const ringfold_comm* comm, int32_t rank, char** host);
RINGFOLD_C_API ringfold_code ringfold_comm_transport(const ringfold_comm* comm, int32_t peer, char** transport);
// Collective. color < 0: *part is NULL.
RINGFOLD_C_API ringfold_code ringfold_comm_split(ringfold_comm* comm, int32_t color, int32_t key,
                                                 ringfold_comm** part);
// Collective among `ranks` only, `count` ranks of `comm` in the same order on each of them. timeout_s 0: the
// communicator's.
RINGFOLD_C_API ringfold_code ringfold_comm_subset(ringfold_comm* comm, const int32_t* ranks, size_t count,
                                                  double timeout_s, ringfold_comm** part);
// After a verdict: a communicator of the survivors. `comm` stays the caller's, to be destroyed. In a job that is open
// one process that has come in the place of a lost rank is taken in with it, as the last rank (communicator.h).
RINGFOLD_C_API ringfold_code ringfold_comm_reconfigure(ringfold_comm* comm, ringfold_comm** survivors);
// Ranks of the job that have come back and wait for that, as far as this rank knows: `*count` of them; NULL and 0:
// none. To take one in when nothing has failed, one rank aborts the communicator.
RINGFOLD_C_API ringfold_code ringfold_comm_waiting(const ringfold_comm* comm, int32_t** ranks, size_t* count);
// Collective: all ranks' GPUs use this memory of cudaMalloc where it lies, until it is unshared (communicator.h).
// RINGFOLD_UNAVAILABLE, the same on all ranks: why not; calls work all the same.
RINGFOLD_C_API ringfold_code ringfold_comm_share_memory(ringfold_comm* comm, void* memory, size_t bytes);
RINGFOLD_C_API ringfold_code ringfold_comm_unshare_memory(ringfold_comm* comm, void* memory);
RINGFOLD_C_API ringfold_code ringfold_comm_abort(ringfold_comm* comm, const char* cause);
RINGFOLD_C_API ringfold_code ringfold_comm_counters(ringfold_comm* comm, ringfold_counters* counters);

// ---- tuning and explaining ----
RINGFOLD_C_API ringfold_code ringfold_comm_tune(ringfold_comm* comm, double seconds);  // collective
RINGFOLD_C_API ringfold_code ringfold_comm_tuning(ringfold_comm* comm, char** text);
// `codec` as in ringfold_call_options.
RINGFOLD_C_API ringfold_code ringfold_explain(ringfold_comm* comm, ringfold_collective collective, size_t count,
                                              ringfold_type type, ringfold_op op, int32_t root,
                                              const ringfold_codec* codec, char** text);
RINGFOLD_C_API ringfold_code ringfold_algorithm_for(ringfold_comm* comm, ringfold_collective collective, size_t count,
                                                    ringfold_type type, ringfold_op op, int32_t root,
                                                    const ringfold_codec* codec, char** name);
RINGFOLD_C_API ringfold_code ringfold_codec_for(ringfold_comm* comm, ringfold_collective collective, size_t count,
                                                ringfold_type type, ringfold_op op, int32_t root,
                                                const ringfold_codec* codec, ringfold_codec* used);

// ---- calls ----
// `work` NULL: the call waits, and returns how it ended. Otherwise it returns at once: a code other than OK if it has
// failed already (*work is NULL then), or OK and the handle.
RINGFOLD_C_API ringfold_code ringfold_all_reduce(ringfold_comm* comm, const void* input, void* output, size_t count,
                                                 ringfold_type type, ringfold_op op,
                                                 const ringfold_call_options* options, ringfold_work** work);
RINGFOLD_C_API ringfold_code ringfold_reduce(ringfold_comm* comm, const void* input, void* output, size_t count,
                                             ringfold_type type, ringfold_op op, int32_t root,
                                             const ringfold_call_options* options, ringfold_work** work);
RINGFOLD_C_API ringfold_code ringfold_reduce_scatter(ringfold_comm* comm, const void* input, void* output,
                                                     size_t count, ringfold_type type, ringfold_op op,
                                                     const ringfold_call_options* options, ringfold_work** work);
RINGFOLD_C_API ringfold_code ringfold_all_gather(ringfold_comm* comm, const void* input, void* output, size_t count,
                                                 ringfold_type type, const ringfold_call_options* options,
                                                 ringfold_work** work);
RINGFOLD_C_API ringfold_code ringfold_broadcast(ringfold_comm* comm, const void* input, void* output, size_t count,
                                                ringfold_type type, int32_t root,
                                                const ringfold_call_options* options, ringfold_work** work);
RINGFOLD_C_API ringfold_code ringfold_gather(ringfold_comm* comm, const void* input, void* output, size_t count,
                                             ringfold_type type, int32_t root, const ringfold_call_options* options,
                                             ringfold_work** work);
RINGFOLD_C_API ringfold_code ringfold_scatter(ringfold_comm* comm, const void* input, void* output, size_t count,
                                              ringfold_type type, int32_t root, const ringfold_call_options* options,
                                              ringfold_work** work);
RINGFOLD_C_API ringfold_code ringfold_all_to_all(ringfold_comm* comm, const void* input, void* output, size_t count,
                                                 ringfold_type type, const ringfold_call_options* options,
                                                 ringfold_work** work);
RINGFOLD_C_API ringfold_code ringfold_barrier(ringfold_comm* comm, const ringfold_call_options* options,
                                              ringfold_work** work);

// counts: one per rank.
RINGFOLD_C_API ringfold_code ringfold_all_gather_v(ringfold_comm* comm, const void* input, void* output,
                                                   const size_t* counts, ringfold_type type,
                                                   const ringfold_call_options* options, ringfold_work** work);
RINGFOLD_C_API ringfold_code ringfold_reduce_scatter_v(ringfold_comm* comm, const void* input, void* output,
                                                       const size_t* counts, ringfold_type type, ringfold_op op,
                                                       const ringfold_call_options* options, ringfold_work** work);
RINGFOLD_C_API ringfold_code ringfold_all_to_all_v(ringfold_comm* comm, const void* input, const size_t* send_counts,
                                                   void* output, const size_t* receive_counts, ringfold_type type,
                                                   const ringfold_call_options* options, ringfold_work** work);

RINGFOLD_C_API ringfold_code ringfold_send(ringfold_comm* comm, const void* data, size_t count, ringfold_type type,
                                           int32_t peer, int64_t tag, const ringfold_call_options* options,
                                           ringfold_work** work);
// peer: a rank or RINGFOLD_ANY_SOURCE (with a work, if who it was matters).
RINGFOLD_C_API ringfold_code ringfold_recv(ringfold_comm* comm, void* data, size_t count, ringfold_type type,
                                           int32_t peer, int64_t tag, const ringfold_call_options* options,
                                           ringfold_work** work);
RINGFOLD_C_API ringfold_code ringfold_send_recv(ringfold_comm* comm, const void* send_data, size_t send_count,
                                                int32_t to, void* recv_data, size_t recv_count, int32_t from,
                                                ringfold_type type, int64_t tag, const ringfold_call_options* options,
                                                ringfold_work** work);

// ---- persistent calls: checked and looked up once, started again and again on the same buffers ----
RINGFOLD_C_API ringfold_code ringfold_persistent_all_reduce(ringfold_comm* comm, const void* input, void* output,
                                                            size_t count, ringfold_type type, ringfold_op op,
                                                            const ringfold_call_options* options,
                                                            ringfold_persistent** call);
RINGFOLD_C_API ringfold_code ringfold_persistent_reduce_scatter(ringfold_comm* comm, const void* input, void* output,
                                                                size_t count, ringfold_type type, ringfold_op op,
                                                                const ringfold_call_options* options,
                                                                ringfold_persistent** call);
RINGFOLD_C_API ringfold_code ringfold_persistent_all_gather(ringfold_comm* comm, const void* input, void* output,
                                                            size_t count, ringfold_type type,
                                                            const ringfold_call_options* options,
                                                            ringfold_persistent** call);
RINGFOLD_C_API ringfold_code ringfold_persistent_broadcast(ringfold_comm* comm, const void* input, void* output,
                                                           size_t count, ringfold_type type, int32_t root,
                                                           const ringfold_call_options* options,
                                                           ringfold_persistent** call);
// The start before must be complete. `work` as in calls.
RINGFOLD_C_API ringfold_code ringfold_persistent_start(ringfold_persistent* call, ringfold_work** work);
RINGFOLD_C_API void ringfold_persistent_destroy(ringfold_persistent* call);

// ---- works ----
// Drives until the call has completed; how it ended.
RINGFOLD_C_API ringfold_code ringfold_work_wait(ringfold_work* work);
// The same, but gives up after `seconds`: RINGFOLD_TIMEOUT then, *done is 0, and the call goes on.
RINGFOLD_C_API ringfold_code ringfold_work_wait_for(ringfold_work* work, double seconds, int32_t* done);
// Drives without waiting. *done is 0 and OK comes back while the call runs; afterwards 1 and how it ended.
RINGFOLD_C_API ringfold_code ringfold_work_test(ringfold_work* work, int32_t* done);
// The same without driving.
RINGFOLD_C_API ringfold_code ringfold_work_status(const ringfold_work* work, int32_t* done);
// Receives that are complete: the rank that the message came from; -1 for all else.
RINGFOLD_C_API int32_t ringfold_work_source(const ringfold_work* work);
// Calls back once with the final code, at once or on the thread that completes the call; ringfold_last_error() and
// ringfold_last_verdict() tell more there. The callback must not wait for calls, and no C++ exception may leave it.
typedef void (*ringfold_callback)(void* user, ringfold_code code);
RINGFOLD_C_API ringfold_code ringfold_work_then(ringfold_work* work, ringfold_callback callback, void* user);
// One handle for several calls: complete when all are, with the first failure in their order. Takes over works[0] to
// works[count - 1], which are gone afterwards (also where it fails).
RINGFOLD_C_API ringfold_code ringfold_work_group(ringfold_work** works, size_t count, ringfold_work** group);
// Does not cancel the call, which keeps its buffers until it is done.
RINGFOLD_C_API void ringfold_work_destroy(ringfold_work* work);

// ---- error feedback of this rank (error_feedback.h) ----
// *names: `*count` strings, given back by one ringfold_free(*names).
RINGFOLD_C_API ringfold_code ringfold_feedback_names(ringfold_comm* comm, char*** names, size_t* count);
// *values: `*elems` numbers, NULL and 0 for a tensor without state.
RINGFOLD_C_API ringfold_code ringfold_feedback_get(ringfold_comm* comm, const char* name, float** values,
                                                   size_t* elems);
RINGFOLD_C_API ringfold_code ringfold_feedback_reset(ringfold_comm* comm, const char* name);  // NULL: all
RINGFOLD_C_API ringfold_code ringfold_feedback_save(ringfold_comm* comm, void** state, size_t* bytes);
RINGFOLD_C_API ringfold_code ringfold_feedback_load(ringfold_comm* comm, const void* state, size_t bytes);
RINGFOLD_C_API ringfold_code ringfold_feedback_add(ringfold_comm* comm, const void* state, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
