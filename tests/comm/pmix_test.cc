// PMIx: does what src/comm/pmix_abi.h says of it agree with its headers, and what if its server does not answer?
#include <gtest/gtest.h>

#if __has_include(<pmix.h>)
#include <pmix.h>
#endif

#include <future>
#include <memory>

#include "comm/blocking_calls.h"
#include "comm/pmix.h"
#include "comm/pmix_abi.h"

namespace ringfold::comm {
namespace {

TEST(Pmix, TheHeadersSayTheSame) {
#ifndef PMIX_RANK_WILDCARD
  GTEST_SKIP() << "no pmix.h here (Debian: libpmix-dev)";
#else
  static_assert(sizeof(pmix::Process) == sizeof(pmix_proc_t));
  static_assert(offsetof(pmix::Process, rank) == offsetof(pmix_proc_t, rank));
  static_assert(sizeof(pmix::Value) == sizeof(pmix_value_t));
  static_assert(offsetof(pmix::Value, bytes) == offsetof(pmix_value_t, data.bo.bytes));
  static_assert(offsetof(pmix::Value, bytes.size) == offsetof(pmix_value_t, data.bo.size));
  static_assert(sizeof(pmix::Info) == sizeof(pmix_info_t));
  static_assert(offsetof(pmix::Info, value) == offsetof(pmix_info_t, value));
  static_assert(sizeof(pmix_data_type_t) == 2 && sizeof(pmix_scope_t) == 1 && sizeof(pmix_status_t) == 4);
  EXPECT_EQ(pmix::Value::kBool, PMIX_BOOL);
  EXPECT_EQ(pmix::Value::kUint16, PMIX_UINT16);
  EXPECT_EQ(pmix::Value::kUint32, PMIX_UINT32);
  EXPECT_EQ(pmix::Value::kBytes, PMIX_BYTE_OBJECT);
  EXPECT_EQ(pmix::kToEverybody, PMIX_GLOBAL);
  EXPECT_EQ(pmix::kWholeJob, PMIX_RANK_WILDCARD);
  EXPECT_EQ(pmix::kSuccess, PMIX_SUCCESS);
  EXPECT_STREQ(pmix::kJobSize, PMIX_JOB_SIZE);
  EXPECT_STREQ(pmix::kLocalSize, PMIX_LOCAL_SIZE);
  EXPECT_STREQ(pmix::kLocalRank, PMIX_LOCAL_RANK);
  EXPECT_STREQ(pmix::kCollectData, PMIX_COLLECT_DATA);
#endif
}

TEST(Pmix, WithoutAServerItSaysSo) {
  const auto job = system_pmix().job(20);
  if (job.status().message().find("libpmix.so.2: cannot open") != std::string::npos)
    GTEST_SKIP() << "no libpmix here (Debian: libpmix2)";
  EXPECT_EQ(job.status().code(), Code::kUnavailable) << job.status().to_string();
  EXPECT_NE(job.status().message().find("PMIx_Init"), std::string::npos) << job.status().message();
}

TEST(BlockingCalls, ReturnWhatTheCallReturns) {
  const double forever = 1e6;
  BlockingCalls calls("the oracle");
  EXPECT_EQ(*calls.call<int>(forever, [] { return Result<int>(42); }), 42);
  EXPECT_EQ(
      calls.call<int>(forever, [] { return Result<int>(Status(Code::kUnavailable, "closed")); }).status().message(),
      "closed");
  bool ended = false;
  calls.unless_stuck([&] { ended = true; });
  EXPECT_TRUE(ended);
}

// kTimeout for all: another code would send the caller to meet the others in another way, where nobody is.
TEST(BlockingCalls, AfterOneThatDidNotReturnTheOthersTimeOutAtOnce) {
  struct Answer {
    std::promise<void> given, taken;
  };
  const auto answer = std::make_shared<Answer>();  // the thread may be the last to have it
  BlockingCalls calls("the oracle");
  const auto first = calls.call<int>(0.01, [answer] {
    answer->given.get_future().wait();
    answer->taken.set_value();
    return Result<int>(1);
  });
  EXPECT_EQ(first.status().code(), Code::kTimeout);
  EXPECT_EQ(first.status().message(), "the oracle has not answered within 0.01 s");
  const auto second = calls.call<int>(1e6, [] { return Result<int>(2); });
  EXPECT_EQ(second.status().code(), Code::kTimeout);
  EXPECT_EQ(second.status().message(), "the oracle has not answered an earlier call");
  calls.unless_stuck([] { ADD_FAILURE() << "an end beside a call"; });
  answer->given.set_value();
  answer->taken.get_future().wait();
}

}  // namespace
}  // namespace ringfold::comm
