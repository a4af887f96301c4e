// The C interface, over libringfold.so alone: right results, refusals, and what a failure tells.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <latch>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "ringfold/ringfold.h"
#include "ringfold/ringfold.hpp"  // both headers may meet
#include "tests/capi/every_call.h"

namespace {

using Comms = std::vector<ringfold_comm*>;

Comms make(int ranks, double timeout_s = 60) {
  ringfold_options options = RINGFOLD_OPTIONS_INIT;
  options.timeout_s = timeout_s;
  Comms comms(static_cast<size_t>(ranks));
  EXPECT_EQ(ringfold_comm_init_local(comms.data(), ranks, &options), RINGFOLD_OK) << ringfold_last_error();
  return comms;
}
void destroy(const Comms& comms) {
  for (auto* comm : comms) ringfold_comm_destroy(comm);
}

template <typename Body>
void on_ranks(const Comms& comms, const Body& body) {
  std::vector<std::thread> threads;
  for (size_t r = 0; r < comms.size(); ++r) threads.emplace_back([&, r] { body(comms[r], static_cast<int>(r)); });
  for (auto& t : threads) t.join();
}

bool says(const char* part) { return std::strstr(ringfold_last_error(), part) != nullptr; }

TEST(CInterface, EveryCallFromCHasTheRightResult) {
  for (int ranks : {1, 2, 3, 4}) {
    const Comms comms = make(ranks);
    on_ranks(comms, [](ringfold_comm* comm, int rank) {
      const char* wrong = play_every_call(comm);
      EXPECT_STREQ(wrong == nullptr ? "" : wrong, "") << "rank " << rank;
    });
    destroy(comms);
  }
}

TEST(CInterface, TuningMeasuresAndChoosesAnew) {
  const Comms comms = make(2);
  on_ranks(comms, [](ringfold_comm* comm, int) {
    EXPECT_EQ(ringfold_comm_tune(comm, 0.2), RINGFOLD_OK) << ringfold_last_error();
    char* text = nullptr;
    EXPECT_EQ(ringfold_comm_tuning(comm, &text), RINGFOLD_OK);
    EXPECT_NE(std::string(text).find("measured"), std::string::npos) << text;
    ringfold_free(text);
  });
  destroy(comms);
}

TEST(CInterface, EveryNumberHasTheNameThatTheCppInterfaceGivesIt) {
  EXPECT_STREQ(ringfold_version(), RINGFOLD_VERSION);
  const char* codes[] = {"ok",          "invalid argument", "mismatch",       "timeout",   "peer lost",     "aborted",
                         "unavailable", "denied",           "protocol error", "I/O error", "internal error"};
  for (int c = 0; c <= RINGFOLD_INTERNAL; ++c) EXPECT_STREQ(ringfold_code_name(c), codes[c]);
  const char* types[] = {"f64", "f32", "f16", "bf16", "i8", "u8", "i32", "u32", "i64", "u64"};
  const size_t sizes[] = {8, 4, 2, 2, 1, 1, 4, 4, 8, 8};
  for (int t = 0; t <= RINGFOLD_U64; ++t) {
    EXPECT_STREQ(ringfold_type_name(t), types[t]);
    EXPECT_EQ(ringfold_type_size(t), sizes[t]);
  }
  const char* ops[] = {"sum", "prod", "min", "max", "avg", "scaled_sum"};
  for (int o = 0; o <= RINGFOLD_SCALED_SUM; ++o) EXPECT_STREQ(ringfold_op_name(o), ops[o]);
  const char* collectives[] = {"all_reduce", "reduce",  "reduce_scatter", "all_gather", "broadcast",
                               "gather",     "scatter", "all_to_all",     "barrier"};
  for (int c = 0; c <= RINGFOLD_BARRIER; ++c) EXPECT_STREQ(ringfold_collective_name(c), collectives[c]);
  for (int wrong : {-1, 99, std::numeric_limits<int>::min()}) {
    EXPECT_STREQ(ringfold_code_name(wrong), "?");
    EXPECT_STREQ(ringfold_type_name(wrong), "?");
    EXPECT_STREQ(ringfold_op_name(wrong), "?");
    EXPECT_STREQ(ringfold_collective_name(wrong), "?");
    EXPECT_EQ(ringfold_type_size(wrong), 0U);
  }
}

TEST(CInterface, WrongArgumentsAreRefusedAndNamedAndStartNothing) {
  const Comms comms = make(1);
  ringfold_comm* comm = comms[0];
  float x = 1;
  size_t count = 1;
  int32_t done = 0;
  auto* work = reinterpret_cast<ringfold_work*>(&x);  // a failure has to set it to null
  EXPECT_EQ(ringfold_all_reduce(nullptr, &x, &x, 1, RINGFOLD_F32, RINGFOLD_SUM, nullptr, &work), RINGFOLD_INVALID);
  EXPECT_EQ(work, nullptr);
  EXPECT_TRUE(says("ringfold_all_reduce: comm is NULL")) << ringfold_last_error();
  EXPECT_EQ(ringfold_all_reduce(comm, &x, &x, 1, 77, RINGFOLD_SUM, nullptr, nullptr), RINGFOLD_INVALID);
  EXPECT_TRUE(says("77 is no data type"));
  for (int op : {-1, 6, std::numeric_limits<int>::min()}) {
    EXPECT_EQ(ringfold_all_reduce(comm, &x, &x, 1, RINGFOLD_F32, op, nullptr, nullptr), RINGFOLD_INVALID);
    EXPECT_TRUE(says("is no reduction")) << ringfold_last_error();
  }
  EXPECT_EQ(ringfold_all_reduce(comm, &x, &x, 1, RINGFOLD_F32, RINGFOLD_SCALED_SUM, nullptr, nullptr),
            RINGFOLD_INVALID);
  EXPECT_TRUE(says("ringfold_call_options.scale"));
  EXPECT_EQ(ringfold_all_reduce(comm, nullptr, &x, 1, RINGFOLD_F32, RINGFOLD_SUM, nullptr, &work), RINGFOLD_INVALID);
  EXPECT_TRUE(says("input is null"));  // at once, though there is a place for a work
  EXPECT_EQ(work, nullptr);
  EXPECT_EQ(ringfold_broadcast(comm, &x, &x, 1, RINGFOLD_F32, 3, nullptr, nullptr), RINGFOLD_INVALID);
  EXPECT_EQ(ringfold_send(comm, &x, 1, RINGFOLD_F32, 5, 0, nullptr, nullptr), RINGFOLD_INVALID);
  EXPECT_EQ(ringfold_all_gather_v(comm, &x, &x, nullptr, RINGFOLD_F32, nullptr, nullptr), RINGFOLD_INVALID);
  EXPECT_TRUE(says("counts is NULL"));
  EXPECT_EQ(ringfold_all_to_all_v(nullptr, &x, &count, &x, &count, RINGFOLD_F32, nullptr, nullptr), RINGFOLD_INVALID);
  char* text = nullptr;
  EXPECT_EQ(ringfold_comm_host(comm, 1, &text), RINGFOLD_INVALID);
  EXPECT_TRUE(says("1 is not a rank of 0..0"));
  EXPECT_EQ(ringfold_comm_transport(comm, -1, &text), RINGFOLD_INVALID);
  EXPECT_EQ(ringfold_explain(comm, 42, 1, RINGFOLD_F32, RINGFOLD_SUM, 0, nullptr, &text), RINGFOLD_INVALID);
  EXPECT_TRUE(says("42 is no collective"));
  ringfold_codec codec = {};
  EXPECT_EQ(ringfold_codec_parse("int9", &codec), RINGFOLD_INVALID);
  codec.kind = 200;
  EXPECT_EQ(ringfold_codec_check(&codec), RINGFOLD_INVALID);
  codec = {};
  codec.reserved[2] = 1;
  EXPECT_EQ(ringfold_codec_check(&codec), RINGFOLD_INVALID);
  EXPECT_EQ(ringfold_work_wait(nullptr), RINGFOLD_INVALID);
  EXPECT_EQ(ringfold_work_test(nullptr, &done), RINGFOLD_INVALID);
  EXPECT_EQ(ringfold_persistent_start(nullptr, nullptr), RINGFOLD_INVALID);
  EXPECT_EQ(ringfold_comm_split(nullptr, 0, 0, nullptr), RINGFOLD_INVALID);
  EXPECT_EQ(ringfold_comm_init(nullptr, nullptr), RINGFOLD_INVALID);
  EXPECT_EQ(ringfold_feedback_get(comm, nullptr, nullptr, nullptr), RINGFOLD_INVALID);
  void* memory = &x;
  EXPECT_EQ(ringfold_allocate(&memory, std::numeric_limits<size_t>::max() / 2), RINGFOLD_UNAVAILABLE);
  EXPECT_EQ(memory, nullptr);
  EXPECT_EQ(ringfold_comm_rank(nullptr), -1);
  EXPECT_EQ(ringfold_comm_job_rank(nullptr), -1);
  EXPECT_EQ(ringfold_comm_waiting(comm, nullptr, &count), RINGFOLD_INVALID);
  EXPECT_TRUE(says("ringfold_comm_waiting: ranks is NULL")) << ringfold_last_error();
  ringfold_comm_destroy(nullptr);
  ringfold_work_destroy(nullptr);
  ringfold_persistent_destroy(nullptr);
  ringfold_deallocate(nullptr);
  ringfold_free(nullptr);
  EXPECT_EQ(ringfold_all_reduce(comm, &x, &x, 1, RINGFOLD_F32, RINGFOLD_SUM, nullptr, nullptr), RINGFOLD_OK);
  EXPECT_EQ(x, 1);
  destroy(comms);
}

TEST(CInterface, OptionsThatAreWrongAreRefused) {
  ringfold_options options = RINGFOLD_OPTIONS_INIT;
  ringfold_comm* comm = nullptr;
  options.transport = "pigeon";
  EXPECT_EQ(ringfold_comm_init(&comm, &options), RINGFOLD_INVALID);
  EXPECT_TRUE(says("pigeon")) << ringfold_last_error();
  options = RINGFOLD_OPTIONS_INIT;
  options.rank = 3;
  options.size = 2;
  EXPECT_EQ(ringfold_comm_init(&comm, &options), RINGFOLD_INVALID);
  EXPECT_EQ(comm, nullptr);
  options = RINGFOLD_OPTIONS_INIT;
  options.reserved = 1;
  EXPECT_EQ(ringfold_comm_init(&comm, &options), RINGFOLD_INVALID);
  EXPECT_TRUE(says("reserved")) << ringfold_last_error();
  options = RINGFOLD_OPTIONS_INIT;
  options.rank = 0;
  options.size = 2;
  options.rendezvous = "127.0.0.1:1";
  options.key = "short";
  EXPECT_EQ(ringfold_comm_init(&comm, &options), RINGFOLD_INVALID);
  EXPECT_TRUE(says("16")) << ringfold_last_error();
  EXPECT_EQ(ringfold_comm_init_local(&comm, 0, nullptr), RINGFOLD_INVALID);
}

TEST(CInterface, AVerdictSaysWhatAMessageWas) {
  ringfold_comm* comms[2] = {};
  ASSERT_EQ(ringfold_comm_init_local(comms, 2, nullptr), RINGFOLD_OK);
  ringfold_call_options options = RINGFOLD_CALL_OPTIONS_INIT;
  options.label = "the gradient of micro-batch 3";
  options.timeout_s = 0.1;
  float x = 0;
  EXPECT_EQ(ringfold_recv(comms[0], &x, 1, RINGFOLD_F32, 1, 7, &options, nullptr), RINGFOLD_TIMEOUT);
  EXPECT_TRUE(says("the gradient of micro-batch 3")) << ringfold_last_error();
  for (ringfold_comm* comm : comms) ringfold_comm_destroy(comm);
}

// What a program built with another version of the header passes.
TEST(CInterface, StructuresOfOlderAndNewerHeadersAreUnderstoodOrRefused) {
  struct Older {
    size_t struct_size;
    int32_t rank, size;
  } older = {sizeof older, 0, 1};
  ringfold_comm* comm = nullptr;
  ASSERT_EQ(ringfold_comm_init(&comm, reinterpret_cast<ringfold_options*>(&older)), RINGFOLD_OK)
      << ringfold_last_error();
  EXPECT_EQ(ringfold_comm_size(comm), 1);

  struct Newer {
    ringfold_call_options known = RINGFOLD_CALL_OPTIONS_INIT;
    void* fresh = nullptr;
  } newer;
  newer.known.struct_size = sizeof newer;
  EXPECT_EQ(ringfold_barrier(comm, &newer.known, nullptr), RINGFOLD_OK) << ringfold_last_error();
  newer.fresh = &newer;
  EXPECT_EQ(ringfold_barrier(comm, &newer.known, nullptr), RINGFOLD_INVALID);
  EXPECT_TRUE(says("older than the header")) << ringfold_last_error();
  ringfold_call_options unset = {};
  EXPECT_EQ(ringfold_barrier(comm, &unset, nullptr), RINGFOLD_INVALID);
  EXPECT_TRUE(says("_INIT"));

  struct OlderCounters {
    size_t struct_size;
    uint64_t touched_bytes;
    uint64_t guard;
  } counters = {2 * sizeof(uint64_t), 0, 77};
  EXPECT_EQ(ringfold_comm_counters(comm, reinterpret_cast<ringfold_counters*>(&counters)), RINGFOLD_OK);
  EXPECT_EQ(counters.guard, 77U);
  EXPECT_EQ(counters.struct_size, 2 * sizeof(uint64_t));
  ringfold_comm_destroy(comm);
}

TEST(CInterface, AFailureIsToldOfPerThreadAndNamesWhatTheSurvivorsAgreedOn) {
  const Comms comms = make(3);
  const std::string mine = ringfold_last_error();
  on_ranks(comms, [](ringfold_comm* comm, int rank) {
    float x = 1;
    ringfold_verdict verdict = RINGFOLD_VERDICT_INIT;
    EXPECT_STREQ(ringfold_last_error(), "");
    EXPECT_EQ(ringfold_last_verdict(&verdict), 0);
    // Rank 1 gives another count.
    const ringfold_code code =
        ringfold_all_reduce(comm, &x, &x, rank == 1 ? 0 : 1, RINGFOLD_F32, RINGFOLD_SUM, nullptr, nullptr);
    EXPECT_EQ(code, RINGFOLD_MISMATCH);
    ASSERT_EQ(ringfold_last_verdict(&verdict), 1) << ringfold_last_error();
    EXPECT_EQ(verdict.rank, 1);
    EXPECT_EQ(verdict.code, RINGFOLD_MISMATCH);
    EXPECT_EQ(verdict.sequence, 1U);
    EXPECT_STREQ(verdict.operation, "all_reduce");
    EXPECT_GT(std::strlen(verdict.host), 0U);
    EXPECT_GT(std::strlen(verdict.cause), 0U);
    EXPECT_EQ(ringfold_comm_status(comm), RINGFOLD_MISMATCH);
    EXPECT_EQ(ringfold_barrier(comm, nullptr, nullptr), RINGFOLD_MISMATCH);
    ringfold_comm* next = nullptr;
    ASSERT_EQ(ringfold_comm_reconfigure(comm, &next), RINGFOLD_OK) << ringfold_last_error();
    EXPECT_EQ(ringfold_comm_epoch(next), 1U);
    EXPECT_EQ(ringfold_barrier(next, nullptr, nullptr), RINGFOLD_OK);
    ringfold_comm_destroy(next);
    // A later success leaves the failure to be read.
    EXPECT_EQ(ringfold_last_verdict(&verdict), 1);
  });
  EXPECT_EQ(ringfold_last_error(), mine);
  destroy(comms);
}

TEST(CInterface, AbortEndsCallsInFlightAndTheirCallbacksAreToldWhy) {
  const Comms comms = make(2);
  float x = 0;
  ringfold_work* work = nullptr;
  int32_t done = 9;
  ASSERT_EQ(ringfold_recv(comms[0], &x, 1, RINGFOLD_F32, 1, 0, nullptr, &work), RINGFOLD_OK);
  EXPECT_EQ(ringfold_work_test(work, &done), RINGFOLD_OK);
  EXPECT_EQ(done, 0);
  EXPECT_EQ(ringfold_work_wait_for(work, 0.001, &done), RINGFOLD_TIMEOUT);
  EXPECT_EQ(done, 0);
  struct Told {
    ringfold_code code = -1;
    int calls = 0, culprit = -1;
    std::latch over{1};
  } told;
  ASSERT_EQ(ringfold_work_then(
                work,
                [](void* user, ringfold_code code) {
                  auto* to = static_cast<Told*>(user);
                  ringfold_verdict verdict = RINGFOLD_VERDICT_INIT;
                  to->code = code;
                  to->calls += 1;
                  if (ringfold_last_verdict(&verdict) == 1) to->culprit = verdict.rank;
                  to->over.count_down();
                },
                &told),
            RINGFOLD_OK);
  EXPECT_EQ(ringfold_comm_abort(comms[1], "enough"), RINGFOLD_OK);
  EXPECT_EQ(ringfold_work_wait(work), RINGFOLD_ABORTED);
  EXPECT_TRUE(says("enough")) << ringfold_last_error();
  EXPECT_EQ(ringfold_work_status(work, &done), RINGFOLD_ABORTED);
  EXPECT_EQ(done, 1);
  told.over.wait();  // the thread that completes the call tells its waiters first
  EXPECT_EQ(told.code, RINGFOLD_ABORTED);
  EXPECT_EQ(told.calls, 1);
  EXPECT_EQ(told.culprit, 1);
  ringfold_work_destroy(work);
  destroy(comms);
}

TEST(CInterface, AWorkMayOutliveItsCommunicator) {
  const Comms comms = make(2);
  float x = 0;
  ringfold_work* work = nullptr;
  ASSERT_EQ(ringfold_recv(comms[0], &x, 1, RINGFOLD_F32, 1, 0, nullptr, &work), RINGFOLD_OK);
  destroy(comms);
  EXPECT_EQ(ringfold_work_wait(work), RINGFOLD_ABORTED) << ringfold_last_error();
  ringfold_work_destroy(work);
}

TEST(CInterface, AGroupTakesItsPartsOverEvenWhereItFails) {
  const Comms comms = make(1);
  float x = 3, y = 0;
  ringfold_work* works[3] = {nullptr, nullptr, nullptr};
  ASSERT_EQ(ringfold_send(comms[0], &x, 1, RINGFOLD_F32, 0, 1, nullptr, &works[0]), RINGFOLD_OK);
  ringfold_work* group = nullptr;
  EXPECT_EQ(ringfold_work_group(works, 2, &group), RINGFOLD_INVALID);  // the second is missing
  EXPECT_EQ(works[0], nullptr);
  EXPECT_EQ(group, nullptr);
  EXPECT_EQ(ringfold_recv(comms[0], &y, 1, RINGFOLD_F32, 0, 1, nullptr, nullptr), RINGFOLD_OK);
  EXPECT_EQ(y, 3);  // the call went on
  EXPECT_EQ(ringfold_work_group(nullptr, 0, &group), RINGFOLD_OK);
  EXPECT_EQ(ringfold_work_wait(group), RINGFOLD_OK);
  ringfold_work_destroy(group);
  destroy(comms);
}

}  // namespace
