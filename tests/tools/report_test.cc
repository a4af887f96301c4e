// `ringfold report`, from outside: what the page says of a log, whatever state the log is in.
#include <gtest/gtest.h>

#include <string>

#include "tests/tools/command.h"

namespace ringfold::test {
namespace {

const std::string kStart = R"({"event":"start","model":"cnn","ranks":2,"transport":"tcp","codec":"int8","epochs":2})"
                           "\n";
const std::string kStep =
    R"({"event":"step","epoch":1,"step":50,"loss":1.5,"lr":0.1,"samples_per_s":1000.0,"comm_share":0.25})"
    "\n";

class Report : public testing::Test {
 protected:
  Outcome report(const std::string& log, const Words& more = {}) {
    Words words = {"report", folder_.write("run.jsonl", log, 0600)};
    words.insert(words.end(), more.begin(), more.end());
    return ringfold(words);
  }
  std::string page_of(const std::string& log, const Words& more = {}) {
    const Outcome made = report(log, more);
    EXPECT_EQ(made.status, 0) << made.err;
    EXPECT_EQ(made.out, at("run.jsonl.html") + "\n");
    return read_file(at("run.jsonl.html"));
  }
  std::string at(const std::string& name) const { return folder_.path() + "/" + name; }
  const Folder folder_;
};

int holds(const std::string& text, const std::string& part) { return count(text, part); }

TEST_F(Report, needs_nothing_from_elsewhere_and_escapes_what_the_log_says) {
  const std::string page = page_of(
      kStart + kStep +
      R"({"event":"decision","step":50,"seen":"<script>alert(1)</script> & \"slow\"","changed":"codec: none -> int8"})"
      "\n");
  EXPECT_EQ(holds(page, "<script"), 0);
  EXPECT_EQ(holds(page, "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;slow&quot;"), 1);
  EXPECT_EQ(holds(page, "codec: none -&gt; int8"), 1);
  EXPECT_EQ(holds(page, "http"), 0) << "a link, picture or script from elsewhere";
  EXPECT_EQ(holds(page, "<svg"), holds(page, "</svg>"));
}

TEST_F(Report, draws_each_logged_loss_where_it_belongs) {
  std::string log = kStart;
  for (int i = 0; i <= 10; ++i)
    log += R"({"event":"step","epoch":1,"step":)" + std::to_string(i * 10) + R"(,"loss":)" +
           (i == 5 ? "null" : std::to_string(i)) + R"(,"lr":0.1,"samples_per_s":1,"comm_share":0})" + "\n";
  const std::string page = page_of(log);
  // Loss 0 at step 0 is the plot's lower left corner, 10 at 100 its upper right one; the loss that was no number is a
  // gap.
  const size_t at = page.find("d=\"M");
  const std::string path = page.substr(at, page.find('"', at + 3) - at);
  EXPECT_EQ(path.rfind("d=\"M66.0 260.0 L", 0), 0u) << path;
  EXPECT_NE(path.find("L526.0 30.0"), std::string::npos) << path;
  EXPECT_EQ(holds(path, "M"), 2) << path;
  EXPECT_EQ(holds(path, "L"), 8) << path;
}

TEST_F(Report, splits_each_ranks_step_into_computing_waiting_and_communicating) {
  const std::string page = page_of(
      kStart + R"({"event":"times","step":10,"steps":10,"compute_s":[0.1,0.3],"exposed_s":[0.25,0.05]})" + "\n" +
      R"({"event":"times","step":20,"steps":10,"compute_s":[0.1,0.3],"exposed_s":[0.27,0.07]})" + "\n");
  for (const char* part : {"rank 0, computing: 10", "rank 0, waiting for others: 20", "rank 0, communicating: 6",
                           "rank 1, computing: 30", "rank 1, waiting for others: 0", "rank 1, communicating: 6"}) {
    EXPECT_EQ(holds(page, std::string("<title>") + part + "</title>"), 1) << part;
  }
  EXPECT_EQ(holds(page, "Mean of 20 steps"), 1);
}

TEST_F(Report, says_of_a_run_that_did_not_end_how_far_it_came_and_why) {
  std::string page = page_of(kStart + kStep + R"({"event":"step","ep)");
  EXPECT_EQ(holds(page, ">not finished<"), 1);
  EXPECT_EQ(holds(page, "The log is cut"), 1);
  page = page_of(kStart + R"({"event":"error","code":"kPeerLost","message":"rank 1 on b: its connection ended"})" +
                 "\n");
  EXPECT_EQ(holds(page, ">failed<"), 1);
  EXPECT_EQ(holds(page, "rank 1 on b: its connection ended"), 1);
  page = page_of(kStart + kStep + R"({"event":"end","test_accuracy":0.8734,"replicas_equal":true,"ranks":2})" + "\n");
  EXPECT_EQ(holds(page, ">0.8734<"), 2) << "among the tiles, and in the table";
  EXPECT_EQ(holds(page, "not finished"), 0);
}

TEST_F(Report, draws_a_pipelines_trace) {
  const std::string trace =
      folder_.write("trace.json",
                    R"({"traceEvents":[{"ph":"M","name":"process_name","pid":0},)"
                    R"({"ph":"X","name":"F0","cat":"forward","ts":5000,"dur":1000,"pid":0,"tid":0},)"
                    R"({"ph":"X","name":"F0","cat":"forward","ts":7000,"dur":2000,"pid":0,"tid":1}]})",
                    0600);
  const std::string page = page_of(kStart, {"--trace", trace});
  EXPECT_EQ(holds(page, "<title>F0: 0 to 1</title>"), 1);
  EXPECT_EQ(holds(page, "<title>F0: 2 to 4</title>"), 1);
}

TEST_F(Report, draws_the_last_steps_of_a_pipeline_that_the_log_has) {
  const std::string begin = R"({"event":"timeline","step_s":0.008,"idle":0.25,"spans":[)";
  const std::string page = page_of(kStart + begin +
                                   R"([0,"forward",0,3,0.0,1.5],[1,"backward",1,3,1.5,8.0]]})"
                                   "\n");
  EXPECT_EQ(holds(page, "<title>forward of micro-batch 3 on stage 0: 0 to 1.5</title>"), 1);
  EXPECT_EQ(holds(page, "<title>backward of micro-batch 3 on stage 1: 1.5 to 8</title>"), 1);
  EXPECT_EQ(holds(page, "A step takes 8 ms, of which a rank does not compute for 25 % on average."), 1);
  EXPECT_EQ(holds(page, ">rank 1</text>"), 1);
  EXPECT_EQ(holds(page, "would leave"), 0);  // kStart names no schedule
  std::string start = kStart;
  start.insert(start.rfind('}'),
               R"(,"pipeline":4,"pipeline_schedule":"1f1b","micro_batches":8,"layers_of_stages":[2,1,1,2])");
  // (p - 1) (F + B) of (m + p - 1) (F + B): 3 of 11.
  EXPECT_EQ(holds(page_of(start + begin + R"([0,"forward",0,3,0.0,1.5]]})" + "\n"), "would leave 27 %."), 1);
  for (const char* wrong : {R"([-1,"forward",0,3,0,1]]})", R"([2000000000,"forward",0,3,0,1]]})",
                            R"([0,"forward",0]]})", R"([0,1,0,3,0,1]]})"})
    EXPECT_EQ(report(kStart + begin + wrong + "\n").status, 1) << wrong;
}

TEST_F(Report, names_what_is_wrong_with_its_input) {
  Outcome bad = report(kStart + "{\"event\":\"step\",\"step\":\"x\"}\n" + kStep);
  EXPECT_EQ(bad.status, 1);
  EXPECT_NE(bad.err.find("run.jsonl:2 is no line of a run's log"), std::string::npos) << bad.err;
  bad = report(kStep);
  EXPECT_EQ(bad.status, 1);
  EXPECT_NE(bad.err.find("has no \"start\" event"), std::string::npos) << bad.err;
  bad = report(kStart + R"({"event":"times","step":1,"steps":1,"compute_s":[1,2],"exposed_s":[1]})" + "\n");
  EXPECT_EQ(bad.status, 1);
  bad = report(kStart, {"--trace", folder_.write("trace.json", "{}", 0600)});
  EXPECT_EQ(bad.status, 1);
  EXPECT_NE(bad.err.find("no trace in Chrome's format"), std::string::npos) << bad.err;
  bad = ringfold({"report", at("absent.jsonl")});
  EXPECT_EQ(bad.status, 3);
  EXPECT_NE(bad.err.find("absent.jsonl: No such file"), std::string::npos) << bad.err;
  bad = report(kStart, {"-o", at("no/such/folder.html")});
  EXPECT_EQ(bad.status, 3);
}

}  // namespace
}  // namespace ringfold::test
