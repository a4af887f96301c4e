// Every call of ringfold.h from C99, on whatever communicator it is given, against results that are worked out here.
#include "tests/capi/every_call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ringfold/ringfold.h"

enum { kCount = 1000, kMaxRanks = 16 };

// What rank r contributes as element i; sums and products of it are exact.
static float value(int r, size_t i) { return (float)((r + 1) * (int)(i % 7 + 1)); }

static __thread char problem[512];
#define CHECK(condition)                                                                                  \
  do {                                                                                                    \
    if (!(condition)) {                                                                                   \
      snprintf(problem, sizeof problem, "line %d: %s (%s)", __LINE__, #condition, ringfold_last_error()); \
      return problem;                                                                                     \
    }                                                                                                     \
  } while (0)
#define CHECK_OK(call) CHECK((call) == RINGFOLD_OK)

// The buffers of one rank: `in` and `out` hold a block for each rank.
struct buffers {
  int n, me;
  float *in, *out;
};

static void fill(struct buffers* b) {
  for (size_t i = 0; i < (size_t)b->n * kCount; ++i) {
    b->in[i] = value(b->me, i);
    b->out[i] = -1;
  }
}

static double sum_of_ranks(int n) { return n * (n + 1) / 2.0; }

// Is out[first..first + elems) the sum over all ranks of the elements from `offset` on, times `factor`?
static int is_sum(const struct buffers* b, size_t elems, size_t offset, double factor) {
  for (size_t i = 0; i < elems; ++i) {
    if (b->out[i] != (float)(sum_of_ranks(b->n) * (double)((i + offset) % 7 + 1) * factor)) return 0;
  }
  return 1;
}

// Does out hold, for every rank r, `elems` elements of rank r's input from `offset` on?
static int is_gathered(const struct buffers* b, size_t elems, size_t offset) {
  for (int r = 0; r < b->n; ++r) {
    for (size_t i = 0; i < elems; ++i) {
      if (b->out[(size_t)r * elems + i] != value(r, offset + i)) return 0;
    }
  }
  return 1;
}

static const char* reductions(ringfold_comm* comm, struct buffers* b) {
  ringfold_call_options scaled = RINGFOLD_CALL_OPTIONS_INIT;
  ringfold_work* work = NULL;
  scaled.scale = 0.5;
  scaled.timeout_s = 60;
  fill(b);
  CHECK_OK(ringfold_all_reduce(comm, b->in, b->out, kCount, RINGFOLD_F32, RINGFOLD_SUM, NULL, NULL));
  CHECK(is_sum(b, kCount, 0, 1));
  fill(b);
  CHECK_OK(ringfold_all_reduce(comm, b->in, b->out, kCount, RINGFOLD_F32, RINGFOLD_SCALED_SUM, &scaled, &work));
  CHECK_OK(ringfold_work_wait(work));
  CHECK(is_sum(b, kCount, 0, 0.5));
  CHECK(ringfold_work_source(work) == -1);
  ringfold_work_destroy(work);
  fill(b);
  CHECK_OK(ringfold_all_reduce(comm, b->in, b->out, kCount, RINGFOLD_F32, RINGFOLD_MAX, NULL, NULL));
  CHECK(b->out[3] == value(b->n - 1, 3));
  fill(b);
  CHECK_OK(ringfold_reduce(comm, b->in, b->out, kCount, RINGFOLD_F32, RINGFOLD_SUM, b->n - 1, NULL, NULL));
  CHECK(b->me == b->n - 1 ? is_sum(b, kCount, 0, 1) : b->out[0] == -1);
  fill(b);
  CHECK_OK(ringfold_reduce_scatter(comm, b->in, b->out, kCount, RINGFOLD_F32, RINGFOLD_SUM, NULL, NULL));
  CHECK(is_sum(b, kCount, (size_t)b->me * kCount, 1));
  return NULL;
}

static const char* moves(ringfold_comm* comm, struct buffers* b) {
  const size_t own = (size_t)b->me * kCount;
  fill(b);
  CHECK_OK(ringfold_all_gather(comm, b->in, b->out, kCount, RINGFOLD_F32, NULL, NULL));
  CHECK(is_gathered(b, kCount, 0));
  fill(b);
  CHECK_OK(ringfold_broadcast(comm, b->in, b->out, kCount, RINGFOLD_F32, b->n - 1, NULL, NULL));
  CHECK(b->out[5] == value(b->n - 1, 5) && b->out[kCount - 1] == value(b->n - 1, kCount - 1));
  fill(b);
  CHECK_OK(ringfold_gather(comm, b->in, b->out, kCount, RINGFOLD_F32, 0, NULL, NULL));
  CHECK(b->me == 0 ? is_gathered(b, kCount, 0) : b->out[0] == -1);
  fill(b);
  CHECK_OK(ringfold_scatter(comm, b->in, b->out, kCount, RINGFOLD_F32, 0, NULL, NULL));
  CHECK(b->out[0] == value(0, own) && b->out[kCount - 1] == value(0, own + kCount - 1));
  fill(b);
  CHECK_OK(ringfold_all_to_all(comm, b->in, b->out, kCount, RINGFOLD_F32, NULL, NULL));
  CHECK(is_gathered(b, kCount, own));
  CHECK_OK(ringfold_barrier(comm, NULL, NULL));
  return NULL;
}

// Rank r has r + 1 elements.
static const char* uneven(ringfold_comm* comm, struct buffers* b) {
  size_t counts[kMaxRanks], mine[kMaxRanks], before = 0;
  for (int r = 0; r < b->n; ++r) {
    counts[r] = (size_t)r + 1;
    mine[r] = (size_t)b->me + 1;
    if (r < b->me) before += counts[r];
  }
  fill(b);
  CHECK_OK(ringfold_all_gather_v(comm, b->in, b->out, counts, RINGFOLD_F32, NULL, NULL));
  for (size_t r = 0, at = 0; r < (size_t)b->n; at += counts[r++]) CHECK(b->out[at + r] == value((int)r, r));
  fill(b);
  CHECK_OK(ringfold_reduce_scatter_v(comm, b->in, b->out, counts, RINGFOLD_F32, RINGFOLD_SUM, NULL, NULL));
  CHECK(is_sum(b, counts[b->me], before, 1));
  fill(b);  // to rank d: d + 1 elements
  CHECK_OK(ringfold_all_to_all_v(comm, b->in, counts, b->out, mine, RINGFOLD_F32, NULL, NULL));
  CHECK(is_gathered(b, mine[0], before));
  return NULL;
}

static const char* factors(ringfold_comm* comm, struct buffers* b) {
  ringfold_call_options options = RINGFOLD_CALL_OPTIONS_INIT;
  const double twice = 2;
  fill(b);
  if (b->me == 0) options.input_factor = &twice;  // this rank's alone
  CHECK_OK(ringfold_all_reduce(comm, b->in, b->out, kCount, RINGFOLD_F32, RINGFOLD_SUM, &options, NULL));
  double sum = value(0, 9);
  for (int r = 0; r < b->n; ++r) sum += value(r, 9);
  CHECK(b->out[9] == (float)sum);
  return NULL;
}

static const char* messages(ringfold_comm* comm, struct buffers* b) {
  const int next = (b->me + 1) % b->n, previous = (b->me + b->n - 1) % b->n;
  ringfold_work* parts[2] = {NULL, NULL};
  ringfold_work* both = NULL;
  int32_t done = 7;
  fill(b);
  CHECK_OK(ringfold_recv(comm, b->out, kCount, RINGFOLD_F32, RINGFOLD_ANY_SOURCE, 5, NULL, &parts[0]));
  CHECK_OK(ringfold_work_status(parts[0], &done));
  CHECK_OK(ringfold_send(comm, b->in, kCount, RINGFOLD_F32, next, 5, NULL, &parts[1]));
  CHECK_OK(ringfold_work_wait(parts[0]));
  CHECK(ringfold_work_source(parts[0]) == previous);
  CHECK(b->out[9] == value(previous, 9));
  CHECK_OK(ringfold_work_group(parts, 2, &both));
  CHECK(parts[0] == NULL && parts[1] == NULL);
  done = 0;
  CHECK_OK(ringfold_work_wait_for(both, 30, &done));
  CHECK(done == 1);
  done = 0;
  CHECK_OK(ringfold_work_test(both, &done));
  CHECK(done == 1);
  ringfold_work_destroy(both);
  fill(b);
  CHECK_OK(ringfold_send_recv(comm, b->in, 10, previous, b->out, 10, next, RINGFOLD_F32, 6, NULL, NULL));
  CHECK(b->out[9] == value(next, 9));
  return NULL;
}

static const char* persistent(ringfold_comm* comm, struct buffers* b) {
  ringfold_persistent* calls[4] = {NULL, NULL, NULL, NULL};
  CHECK_OK(ringfold_persistent_all_reduce(comm, b->in, b->out, kCount, RINGFOLD_F32, RINGFOLD_SUM, NULL, &calls[0]));
  CHECK_OK(
      ringfold_persistent_reduce_scatter(comm, b->in, b->out, kCount, RINGFOLD_F32, RINGFOLD_SUM, NULL, &calls[1]));
  CHECK_OK(ringfold_persistent_all_gather(comm, b->in, b->out, kCount, RINGFOLD_F32, NULL, &calls[2]));
  CHECK_OK(ringfold_persistent_broadcast(comm, b->in, b->out, kCount, RINGFOLD_F32, 0, NULL, &calls[3]));
  for (int round = 0; round < 3; ++round) {
    ringfold_work* work = NULL;
    fill(b);
    CHECK_OK(ringfold_persistent_start(calls[0], &work));
    CHECK_OK(ringfold_work_wait(work));
    ringfold_work_destroy(work);
    CHECK(is_sum(b, kCount, 0, 1));
    fill(b);
    CHECK_OK(ringfold_persistent_start(calls[1], NULL));
    CHECK(is_sum(b, kCount, (size_t)b->me * kCount, 1));
    CHECK_OK(ringfold_persistent_start(calls[2], NULL));
    CHECK(is_gathered(b, kCount, 0));
    CHECK_OK(ringfold_persistent_start(calls[3], NULL));
    CHECK(b->out[8] == value(0, 8));
  }
  for (int i = 0; i < 4; ++i) ringfold_persistent_destroy(calls[i]);
  return NULL;
}

static const char* codecs(ringfold_comm* comm, struct buffers* b) {
  ringfold_call_options options = RINGFOLD_CALL_OPTIONS_INIT;
  ringfold_codec codec, used;
  char* text = NULL;
  char** names = NULL;
  float* held = NULL;
  void* state = NULL;
  size_t count = 9, elems = 0, bytes = 0;
  uint64_t encoded = 0;
  double bound = 0;
  CHECK_OK(ringfold_codec_parse("int8", &codec));
  CHECK_OK(ringfold_codec_check(&codec));
  CHECK_OK(ringfold_codec_text(&codec, &text));
  CHECK(strcmp(text, "int8") == 0);
  ringfold_free(text);
  CHECK_OK(ringfold_codec_error_bound(&codec, &bound));
  CHECK(bound > 0.003 && bound < 0.005);
  CHECK_OK(ringfold_codec_encoded_bytes(&codec, 1024, &encoded));
  CHECK(encoded == 1024 + 64);  // a byte for each, and a scale of two for each 32
  options.codec = &codec;
  options.feedback = "gradient";
  fill(b);
  for (size_t i = 0; i < kCount; ++i) b->in[i] += 0.3f;  // so that the codes miss something
  CHECK_OK(ringfold_all_reduce(comm, b->in, b->out, kCount, RINGFOLD_F32, RINGFOLD_SUM, &options, NULL));
  for (size_t i = 0; i < kCount; ++i) {
    const double exact = sum_of_ranks(b->n) * (double)(i % 7 + 1) + 0.3 * b->n, error = b->out[i] - exact;
    CHECK(error * error <= 2 * bound * exact * 7 * 2 * bound * exact * 7);
  }
  CHECK_OK(ringfold_codec_for(comm, RINGFOLD_ALL_REDUCE, kCount, RINGFOLD_F32, RINGFOLD_SUM, 0, &codec, &used));
  CHECK(b->n == 1 || used.kind == codec.kind);
  CHECK_OK(ringfold_feedback_names(comm, &names, &count));
  if (b->n > 1) {
    CHECK(count == 1 && strcmp(names[0], "gradient") == 0 && names[1] == NULL);
    CHECK_OK(ringfold_feedback_get(comm, "gradient", &held, &elems));
    CHECK(elems == kCount);
    CHECK_OK(ringfold_feedback_save(comm, &state, &bytes));
    CHECK_OK(ringfold_feedback_reset(comm, "gradient"));
    CHECK_OK(ringfold_feedback_load(comm, state, bytes));
    CHECK_OK(ringfold_feedback_add(comm, state, bytes));
    float* twice = NULL;
    CHECK_OK(ringfold_feedback_get(comm, "gradient", &twice, &elems));
    CHECK(elems == kCount);
    for (size_t i = 0; i < kCount; ++i) CHECK(twice[i] == 2 * held[i]);
    ringfold_free(twice);
    CHECK(ringfold_feedback_load(comm, state, bytes - 1) == RINGFOLD_INVALID);
    ringfold_free(held);
    ringfold_free(state);
    CHECK_OK(ringfold_feedback_reset(comm, NULL));
    CHECK_OK(ringfold_feedback_get(comm, "gradient", &held, &elems));
    CHECK(held == NULL && elems == 0);
  }
  ringfold_free(names);
  return NULL;
}

static const char* facts(ringfold_comm* comm, struct buffers* b) {
  ringfold_counters counters = RINGFOLD_COUNTERS_INIT;
  char* text = NULL;
  int32_t* ranks = &(int32_t){7};
  size_t count = 7;
  CHECK(ringfold_comm_epoch(comm) == 0);
  CHECK(ringfold_comm_job_rank(comm) == b->me);
  CHECK_OK(ringfold_comm_waiting(comm, &ranks, &count));
  CHECK(ranks == NULL && count == 0);
  CHECK_OK(ringfold_comm_status(comm));
  CHECK_OK(ringfold_comm_host(comm, b->n - 1, &text));
  CHECK(strlen(text) > 0);
  ringfold_free(text);
  CHECK_OK(ringfold_comm_transport(comm, b->me, &text));
  CHECK(strcmp(text, "self") == 0);
  ringfold_free(text);
  CHECK_OK(ringfold_explain(comm, RINGFOLD_ALL_REDUCE, kCount, RINGFOLD_F32, RINGFOLD_SUM, 0, NULL, &text));
  CHECK(strstr(text, "all_reduce f32 x1000") != NULL);
  ringfold_free(text);
  CHECK_OK(ringfold_algorithm_for(comm, RINGFOLD_BROADCAST, kCount, RINGFOLD_F32, RINGFOLD_SUM, 0, NULL, &text));
  CHECK(strlen(text) > 0);
  ringfold_free(text);
  CHECK_OK(ringfold_comm_tuning(comm, &text));
  CHECK(b->n == 1 || strstr(text, "all_reduce") != NULL);
  ringfold_free(text);
  CHECK_OK(ringfold_comm_counters(comm, &counters));
  CHECK(counters.struct_size == sizeof counters && (b->n == 1 || counters.touched_bytes > 0));
  return NULL;
}

static const char* parts(ringfold_comm* comm, struct buffers* b) {
  ringfold_comm* part = NULL;
  CHECK_OK(ringfold_comm_split(comm, b->me % 2, -b->me, &part));
  CHECK(ringfold_comm_size(part) == (b->n + 1 - b->me % 2) / 2);
  CHECK(ringfold_comm_rank(part) == ringfold_comm_size(part) - 1 - b->me / 2);
  CHECK_OK(ringfold_barrier(part, NULL, NULL));
  ringfold_comm_destroy(part);
  part = comm;
  CHECK_OK(ringfold_comm_split(comm, b->me == 0 ? -1 : 0, 0, &part));
  CHECK((part == NULL) == (b->me == 0));
  ringfold_comm_destroy(part);
  int32_t backwards[64];
  for (int r = 0; r < b->n; ++r) backwards[r] = b->n - 1 - r;
  CHECK_OK(ringfold_comm_subset(comm, backwards, (size_t)b->n, 30, &part));
  CHECK(ringfold_comm_size(part) == b->n && ringfold_comm_rank(part) == b->n - 1 - b->me);
  CHECK_OK(ringfold_barrier(part, NULL, NULL));
  ringfold_comm_destroy(part);
  part = comm;
  CHECK(ringfold_comm_subset(comm, &(int32_t){b->n}, 1, 0, &part) == RINGFOLD_INVALID);
  CHECK(part == NULL);
  // Of memory that is on no GPU nothing can be shared, which all hear.
  const ringfold_code shared = ringfold_comm_share_memory(comm, b->in, 16);
  CHECK(shared == RINGFOLD_UNAVAILABLE || shared == RINGFOLD_INVALID);
  CHECK(ringfold_comm_unshare_memory(comm, b->in) == shared);
  CHECK_OK(ringfold_barrier(comm, NULL, NULL));
  return NULL;
}

const char* play_every_call(struct ringfold_comm* comm) {
  static const struct {
    const char* (*play)(ringfold_comm*, struct buffers*);
  } kParts[] = {{reductions}, {factors}, {moves}, {uneven}, {messages}, {persistent}, {codecs}, {facts}, {parts}};
  struct buffers b;
  void *in = NULL, *out = NULL;
  b.n = ringfold_comm_size(comm);
  b.me = ringfold_comm_rank(comm);
  CHECK(b.n <= kMaxRanks);
  CHECK_OK(ringfold_allocate(&in, (size_t)b.n * kCount * sizeof(float)));
  CHECK_OK(ringfold_allocate(&out, (size_t)b.n * kCount * sizeof(float)));
  b.in = (float*)in;
  b.out = (float*)out;
  for (size_t i = 0; i < sizeof kParts / sizeof kParts[0]; ++i) {
    const char* wrong = kParts[i].play(comm, &b);
    if (wrong != NULL) return wrong;
  }
  ringfold_deallocate(in);
  ringfold_deallocate(out);
  return NULL;
}
