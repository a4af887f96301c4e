// Jobs of real processes under harm. Every case comes from a seed; RINGFOLD_CHAOS_SEED=S runs the one case of the
// chosen tests, RINGFOLD_CHAOS_FACTOR=F makes F times as many, RINGFOLD_CHAOS_FIRST=S begins with seed S.
// RINGFOLD_CHAOS_TIMES=1 prints how long verdicts took.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "tests/fault/job.h"

namespace ringfold::chaos {
namespace {

constexpr double kPatience = 25;  // for what has no limit of its own; longer than any deadline of the workers
// Under a sanitizer a program takes several times as long, and so may what is promised for the program itself.
#if defined(__SANITIZE_THREAD__)
constexpr double kSlow = 3;
#elif defined(__SANITIZE_ADDRESS__)
constexpr double kSlow = 2;
#else
constexpr double kSlow = 1;
#endif
constexpr double kDeadline = 0.8 * kSlow;                // of a call, where it matters
constexpr double kAfterDeath = 2 * kSlow;                // until all have the verdict on a rank that is gone
constexpr double kAfterSilence = kDeadline + 1 * kSlow;  // and on one that is there but does not take part

uint64_t number_from(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

// What `rdma resource WORDS` says of all devices, line by line; nothing where there are none.
std::vector<std::string> device_objects(const std::string& words = "") {
  std::vector<std::string> lines;
  if (!std::filesystem::exists("/sys/class/infiniband")) return lines;
  std::FILE* pipe = ::popen(("rdma resource " + words).c_str(), "re");
  if (pipe == nullptr) return {"rdma does not start"};
  char line[512];
  while (std::fgets(line, sizeof line, pipe) != nullptr) lines.emplace_back(line);
  EXPECT_EQ(::pclose(pipe), 0) << "rdma resource " << words;
  return lines;
}

// How long it took from the fault to the last survivor's verdict.
class Times {
 public:
  void add(double seconds) {
    std::lock_guard lock(mutex_);
    values_.push_back(seconds);
  }
  void print(const std::string& what) {
    std::sort(values_.begin(), values_.end());
    if (values_.empty() || std::getenv("RINGFOLD_CHAOS_TIMES") == nullptr) return;
    fmt::print("{}: {} verdicts, min {:.4f} s, median {:.4f} s, p90 {:.4f} s, max {:.4f} s\n", what, values_.size(),
               values_.front(), values_[values_.size() / 2], values_[values_.size() * 9 / 10], values_.back());
  }

 private:
  std::mutex mutex_;
  std::vector<double> values_;
};

// One case: a job, what was done to it, and what is wrong with what it did.
class Case {
 public:
  Case(uint64_t seed, Job::Options options)
      : seed_(seed),
        job_((options.seed = seed, options)),
        size_(options.size),
        verbs_(options.transport == "verbs"),
        large_(options.large) {
    for (int r = 0; r < size_; ++r) members_.push_back(r);
  }
  Job& job() { return job_; }
  const std::vector<int>& members() const { return members_; }  // whom the test has left, as ranks of the job
  int round() const { return round_; }

  template <typename... A>
  void expect(bool good, fmt::format_string<A...> text, A&&... a) {
    if (!good) problems_.push_back(fmt::format(text, std::forward<A>(a)...));
  }
  bool good() const { return problems_.empty(); }

  // All members have a communicator, which consists of them.
  bool expect_ready() { return expect_all("ready", kPatience); }
  bool expect_twenty() { return expect_all("twenty", kPatience); }

  // From now on these are gone (killed or stopped): nothing is expected of them but what the caller expects.
  void lose(int rank) { std::erase(members_, rank); }

  // All members report one verdict, which names one of `culprits` (ranks of the job), no later than `limit` seconds
  // after `since`; returns how long it took.
  double expect_verdict(const std::vector<int>& culprits, double since, double limit, const std::string& code) {
    const auto communicator = job_.find(members_.front(), "ready", round_)->members;
    const bool came = job_.wait(std::max(0.0, since + limit - now_s()) + 5, [&] {
      return std::all_of(members_.begin(), members_.end(),
                         [&](int r) { return job_.find(r, "verdict", round_) != nullptr; });
    });
    expect(came, "no verdict everywhere within {} s and 5 more", limit);
    if (!came) return 0;
    const Event& first = *job_.find(members_.front(), "verdict", round_);
    double last = 0;
    for (int r : members_) {
      const Event& v = *job_.find(r, "verdict", round_);
      last = std::max(last, v.at - since);
      expect(v.text == first.text, "rank {} has the verdict \"{}\", rank {} \"{}\"", members_.front(), first.text, r,
             v.text);
    }
    const int named = first.rank >= 0 && first.rank < static_cast<int>(communicator.size())
                          ? communicator[static_cast<size_t>(first.rank)]
                          : -1;
    // Where only two ranks have made the call, nobody can tell which of them is wrong; the verdict then names both.
    const bool even = first.code == "mismatch" &&
                      first.text.find(fmt::format(" where rank {} called ", culprits.front())) != std::string::npos;
    expect(even || std::find(culprits.begin(), culprits.end(), named) != culprits.end(),
           "the verdict \"{}\" names rank {} of the job, not {}", first.text, named, fmt::join(culprits, " or "));
    expect(code.empty() || first.code == code, "the verdict \"{}\" has the code {}, not {}", first.text, first.code,
           code);
    const double lost = standstill_since(since);
    expect(last <= limit + lost,
           "the last verdict came after {:.3f} s, the limit is {} s, and the machine stood still {:.3f} s", last,
           limit, lost);
    ++round_;
    return last;
  }

  // A rank that was stopped and runs again: its verdict names itself, it may not reconfigure, and it ends by itself.
  void expect_left_out(int rank) {
    expect(job_.wait_for_exit(rank, kPatience), "rank {}, which was left out, does not end", rank);
    if (!good()) return;
    const Event *verdict = job_.find(rank, "verdict", round_ - 1), *out = job_.find(rank, "out");
    const auto& communicator = job_.find(rank, "ready", round_ - 1)->members;
    expect(verdict != nullptr && verdict->rank >= 0 && communicator[static_cast<size_t>(verdict->rank)] == rank,
           "rank {}, which was left out, has the verdict \"{}\"", rank, verdict ? verdict->text : "none");
    expect(out != nullptr && out->code == "denied", "rank {}, which was left out, was told \"{}\"", rank,
           out ? out->text : "nothing");
    expect(job_.exit_status(rank) == 0, "rank {}, which was left out, ended with status {:#x}", rank,
           job_.exit_status(rank));
  }

  // After several deaths at once: however many verdicts it took, the members had the same, and are among themselves.
  void expect_together(const std::vector<int>& victims) {
    auto last_round = [&](int r) { return job_.events(r).empty() ? -1 : job_.events(r).back().round; };
    const bool came = job_.wait(kPatience, [&] {
      return std::all_of(members_.begin(), members_.end(), [&](int r) {
        const Event* ready = job_.find(r, "ready", last_round(r));
        return ready != nullptr && ready->members == members_ && job_.find(r, "twenty", ready->round) != nullptr;
      });
    });
    expect(came, "ranks {} do not come together", fmt::join(members_, ","));
    if (!came) return;
    const int front = members_.front();
    for (round_ = 0; round_ < last_round(front); ++round_) {
      const auto communicator = job_.find(front, "ready", round_)->members;
      for (int r : members_) {
        const Event *mine = job_.find(front, "verdict", round_), *theirs = job_.find(r, "verdict", round_);
        expect(theirs != nullptr && theirs->text == mine->text, "rank {} has the verdict \"{}\", rank {} \"{}\"",
               front, mine->text, r, theirs != nullptr ? theirs->text : "none");
        const int named = mine->rank >= 0 ? communicator[static_cast<size_t>(mine->rank)] : -1;
        expect(std::find(victims.begin(), victims.end(), named) != victims.end(),
               "the verdict \"{}\" names none of {}", mine->text, fmt::join(victims, ","));
      }
    }
  }

  // The members end in order, and nothing is left of anybody.
  void end() {
    if (good()) {
      job_.ask_to_end();
      for (int r : members_) {
        expect(job_.wait_for_exit(r, kPatience), "rank {} does not end", r);
        expect(!job_.running(r) && job_.exit_status(r) == 0, "rank {} ended with status {:#x}", r,
               job_.exit_status(r));
      }
      expect(job_.leftovers().empty(), "files are left: {}", fmt::join(job_.leftovers(), ", "));
    }
    for (int r = 0; r < size_; ++r) {
      for (const Event& e : job_.events(r)) expect(e.kind != "wrong", "rank {}: {}", r, e.text);
    }
    if (good()) return;
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    const auto name =
        info == nullptr ? std::string("*") : fmt::format("{}.{}", info->test_suite_name(), info->name());
    ADD_FAILURE() << fmt::format("seed {}: {}\nto repeat: RINGFOLD_CHAOS_SEED={} {} --gtest_filter={}\n{}", seed_,
                                 fmt::join(problems_, "\n  "), seed_,
                                 std::filesystem::read_symlink("/proc/self/exe").string(), name, job_.logs());
  }

 private:
  // A survivor has a queue pair for each other member, and memory registered for itself and the lanes to each; of
  // large calls that of four at a time, five pieces each at most, and as much that was freed since.
  void expect_no_device_object_of_old(int rank) {
    const size_t own = large_ ? 40 : 0;
    const auto of_process = fmt::format(" pid {} ", job_.pid(rank));
    for (const auto& [what, most] :
         {std::pair("qp", members_.size() - 1), {"mr", 1 + 8 * (members_.size() - 1) + own}}) {
      const auto lines = device_objects(std::string("show ") + what);
      const auto count = static_cast<size_t>(
          std::count_if(lines.begin(), lines.end(), [&](auto& l) { return l.find(of_process) != l.npos; }));
      expect(count <= most && (count > 0 || members_.size() == 1), "rank {} of {} has {} of the device's {}", rank,
             members_.size(), count, what);
    }
  }
  bool expect_all(const std::string& kind, double seconds) {
    if (!good()) return false;
    const bool came = job_.wait(seconds, [&] {
      return std::all_of(members_.begin(), members_.end(),
                         [&](int r) { return job_.find(r, kind, round_) != nullptr; });
    });
    expect(came, "not all survivors are \"{}\" in round {} within {} s", kind, round_, seconds);
    for (int r : members_) {
      const Event* e = job_.find(r, kind, round_);
      if (e != nullptr && kind == "ready") {
        expect(e->members == members_, "rank {} has a communicator of {}, not of {}", r, fmt::join(e->members, ","),
               fmt::join(members_, ","));
      }
      if (e != nullptr && kind == "twenty") {
        // Each process has a segment and a directory of regions; none of the dead may stay mapped. (Large calls
        // have segments of their own.)
        const Event* usage = job_.find(r, "usage", round_);
        expect(large_ || usage->segments <= 2 * static_cast<int>(members_.size()), "rank {} still maps {} segments",
               r, usage->segments);
        if (verbs_) expect_no_device_object_of_old(r);
      }
    }
    return good();
  }

  const uint64_t seed_;
  Job job_;
  const int size_;
  const bool verbs_, large_;
  std::vector<int> members_;
  int round_ = 0;
  std::vector<std::string> problems_;
};

// Runs the case of each of `count` seeds, several side by side where they mostly wait.
void for_seeds(uint64_t first, uint64_t count, int side_by_side, const std::function<void(uint64_t)>& run) {
  if (const auto one = number_from("RINGFOLD_CHAOS_SEED", 0)) return run(one);
  count *= number_from("RINGFOLD_CHAOS_FACTOR", 1);
  first = number_from("RINGFOLD_CHAOS_FIRST", first);
  const auto objects = device_objects();
  std::atomic<uint64_t> next{first};
  std::vector<std::thread> threads;
  for (int t = 0; t < side_by_side; ++t) {
    threads.emplace_back([&] {
      for (uint64_t seed; (seed = next.fetch_add(1)) < first + count && !testing::Test::HasFailure();) run(seed);
    });
  }
  for (auto& t : threads) t.join();
  // No worker is left, nor anything that outlives them.
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "a process is left";
  EXPECT_EQ(device_objects(), objects) << "queue pairs, memory or other objects are left";
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    EXPECT_EQ(entry.path().string().find("ringfold"), std::string::npos) << entry.path();
  }
}

using Dice = std::mt19937_64;
int below(Dice& dice, int n) { return static_cast<int>(dice() % static_cast<uint64_t>(n)); }
void pause_up_to(Dice& dice, int milliseconds) {
  ::usleep(static_cast<useconds_t>(below(dice, milliseconds * 1000 + 1)));
}

// ---- kills ----

class Kills : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Transports, Kills, testing::Values("shm", "tcp", "auto"),
                         [](const auto& info) { return info.param; });

// Where there is RDMA (suite rdma).
INSTANTIATE_TEST_SUITE_P(Rdma, Kills, testing::Values("verbs", "ucx"), [](const auto& info) { return info.param; });
int kills_over(const std::string& transport, int many, int few) {
  return transport == "verbs" ? 6 : transport == "ucx" ? 3 : transport == "auto" ? few : many;
}

// Kills a rank at a random moment, most often one, sometimes a second one after the survivors have gone on.
// `at_end`: looks at the case before its members end.
void kill_at_random(
    uint64_t cases, const Job::Options& options, const std::string& what,
    const std::function<void(Case&)>& at_end = [](Case&) {}) {
  Times times;
  for_seeds(1, cases, 1, [&](uint64_t seed) {
    Dice dice(seed);
    Job::Options sized = options;
    sized.size = 2 + below(dice, 4);
    Case c(seed, sized);
    for (int kills = 1 + (below(dice, 4) == 0 ? 1 : 0); kills > 0 && c.members().size() > 1; --kills) {
      if (!c.expect_ready()) break;
      pause_up_to(dice, options.large ? 1000 : 60);  // the first large calls take slots only
      const int victim = c.members()[static_cast<size_t>(below(dice, static_cast<int>(c.members().size())))];
      if (options.large) {  // else most die while they check what they have got
        const auto calls = [&] { return std::ranges::count(c.job().events(victim), "begun", &Event::kind); };
        c.job().wait(kPatience, [&, before = calls()] { return calls() > before; });
        pause_up_to(dice, 30);
      }
      const double at = now_s();
      c.job().signal(victim, SIGKILL);
      c.lose(victim);
      times.add(c.expect_verdict({victim}, at, kAfterDeath, "peer lost"));
      if (!c.good()) break;
    }
    c.expect_ready() && c.expect_twenty();
    at_end(c);
    c.end();
  });
  times.print(what);
}

TEST_P(Kills, SurvivorsAgreeWithin2SecondsAndGoOn) {
  const std::string transport = GetParam();
  kill_at_random(kills_over(transport, 75, 20), {.transport = transport}, "kill over " + transport);
}

// Where the peers write straight to what was offered to them, or read what was put.
class LargeKills : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Rdma, LargeKills, testing::Values("verbs", "ucx"),
                         [](const auto& info) { return info.param; });

TEST_P(LargeKills, SurvivorsAgreeAndNothingIsWrittenToWhatWasOffered) {
  const std::string transport = GetParam();
  int cases = 0, with_offers = 0;
  kill_at_random(kills_over(transport, 0, 0), {.transport = transport, .large = true},
                 "kill among large calls over " + transport, [&](Case& c) {
                   ++cases;
                   with_offers += c.job().logs().find("had been offered a place") != std::string::npos;
                 });
  fmt::print("{} jobs, {} of them with places offered when a rank was killed\n", cases, with_offers);
  if (transport == "verbs" && cases >= 10) {  // of few it may happen to be none
    EXPECT_GT(with_offers, 0);
  }
}

// Two ranks die within a few milliseconds, often while the others agree or reconfigure.
TEST_P(Kills, TwoAtOnceLeaveTheOthersTogether) {
  const std::string transport = GetParam();
  for_seeds(1, kills_over(transport, 20, 10), 1, [&](uint64_t seed) {
    Dice dice(seed);
    Case c(seed, {.size = 3 + below(dice, 3), .transport = transport});
    if (c.expect_ready()) {
      pause_up_to(dice, 60);
      std::vector<int> victims = c.members();
      std::shuffle(victims.begin(), victims.end(), dice);
      victims.resize(2);
      for (int v : victims) {
        c.job().signal(v, SIGKILL);
        c.lose(v);
        pause_up_to(dice, 15);
      }
      c.expect_together(victims);
    }
    c.end();
  });
}

// A program that ends on its verdict, as most do, ends its links too: nobody may take that for one more death.
TEST_P(Kills, WhoEndsOnTheVerdictIsNotTakenForDead) {
  const std::string transport = GetParam();
  for_seeds(1, kills_over(transport, 60, 20), 1, [&](uint64_t seed) {
    Dice dice(seed);
    const int size = 3 + below(dice, 3);
    std::map<int, std::string> faults;
    for (int r = 0; r < size; ++r) faults[r] = "end@0:0";
    Case c(seed, {.size = size, .transport = transport, .faults = faults});
    if (c.expect_ready()) {
      pause_up_to(dice, 60);
      const int victim = below(dice, size);
      const double at = now_s();
      c.job().signal(victim, SIGKILL);
      c.lose(victim);
      c.expect_verdict({victim}, at, kAfterDeath, "peer lost");
    }
    c.end();
  });
}

// ---- stops ----

TEST(Stops, TheStoppedRankIsLeftOutAndLearnsIt) {
  Times times;
  for_seeds(1, 20, 4, [&](uint64_t seed) {
    Dice dice(seed);
    const char* transports[] = {"shm", "tcp", "auto"};
    Case c(seed, {.size = 2 + below(dice, 4), .transport = transports[below(dice, 3)], .deadline_s = kDeadline});
    if (c.expect_ready()) {
      pause_up_to(dice, 60);
      const int victim = below(dice, static_cast<int>(c.members().size()));
      const double at = now_s();
      c.job().signal(victim, SIGSTOP);
      c.lose(victim);
      times.add(c.expect_verdict({victim}, at, kAfterSilence, ""));
      pause_up_to(dice, 300);
      c.job().signal(victim, SIGCONT);
      c.expect_left_out(victim);
      c.expect_ready() && c.expect_twenty();
    }
    c.end();
  });
  times.print("stop");
}

TEST(Stops, AShortOneDisturbsNobody) {
  for_seeds(1, 8, 4, [&](uint64_t seed) {
    Dice dice(seed);
    Case c(seed, {.size = 2 + below(dice, 4), .transport = seed % 2 == 0 ? "shm" : "tcp"});
    if (c.expect_ready()) {
      for (int i = 0; i < 3; ++i) {
        const int victim = below(dice, static_cast<int>(c.members().size()));
        c.job().signal(victim, SIGSTOP);
        pause_up_to(dice, 400);
        c.job().signal(victim, SIGCONT);
        pause_up_to(dice, 50);
      }
      c.expect_ready() && c.expect_twenty();
    }
    c.end();
    EXPECT_EQ(c.job().find(0, "verdict"), nullptr) << seed;
  });
}

// ---- wrong calls ----

struct Sabotage {
  const char* what;
  int cases;
  bool dies;
  const char* code;  // "": several are right
  double limit;      // seconds from the fault to the verdict
};
class Wrong : public testing::TestWithParam<Sabotage> {};
INSTANTIATE_TEST_SUITE_P(Calls, Wrong,
                         testing::Values(Sabotage{"skip", 20, false, "", kAfterSilence},
                                         Sabotage{"stall", 8, false, "timeout", kAfterSilence},
                                         Sabotage{"count", 8, false, "mismatch", kAfterSilence},
                                         Sabotage{"type", 8, false, "mismatch", kAfterSilence},
                                         Sabotage{"op", 8, false, "mismatch", kAfterSilence},
                                         Sabotage{"root", 8, false, "mismatch", kAfterSilence},
                                         Sabotage{"kind", 8, false, "mismatch", kAfterSilence},
                                         Sabotage{"leave", 8, true, "peer lost", kAfterDeath},
                                         Sabotage{"quit", 8, true, "peer lost", kAfterDeath},
                                         Sabotage{"abort", 8, false, "aborted", kAfterDeath}),
                         [](const auto& info) { return info.param.what; });

TEST_P(Wrong, AllAgreeOnWhoItWasAndGoOn) {
  const Sabotage s = GetParam();
  Times times;
  for_seeds(1, static_cast<uint64_t>(s.cases), 2, [&](uint64_t seed) {
    Dice dice(seed);
    const char* transports[] = {"shm", "tcp", "auto"};
    const int size = 2 + below(dice, 4), culprit = below(dice, size);
    Case c(seed, {.size = size,
                  .transport = transports[below(dice, 3)],
                  .deadline_s = s.limit == kAfterDeath ? 10 : kDeadline,
                  .faults = {{culprit, fmt::format("{}@0:{}", s.what, 3 + below(dice, 60))}}});
    if (c.expect_ready()) {
      c.job().wait(kPatience, [&] { return c.job().find(culprit, "fault") != nullptr; });
      const Event* fault = c.job().find(culprit, "fault");
      c.expect(fault != nullptr, "rank {} did nothing wrong", culprit);
      if (fault != nullptr) {
        const double at = fault->at;
        if (s.dies) c.lose(culprit);
        times.add(c.expect_verdict({culprit}, at, s.limit, s.code));
        c.expect_ready() && c.expect_twenty();
      }
    }
    c.end();
  });
  times.print(s.what);
}

// ---- leaks ----

class Leaks : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Transports, Leaks, testing::Values("shm", "tcp"),
                         [](const auto& info) { return info.param; });

TEST_P(Leaks, TenReconfigurationsLeaveNoDescriptorOrSegmentBehind) {
  for_seeds(1, 1, 1, [&](uint64_t seed) {
    std::map<int, std::string> faults;
    for (int epoch = 0; epoch < 10; ++epoch)
      faults[epoch % 3] += fmt::format("{}abort@{}:40", faults[epoch % 3].empty() ? "" : ",", epoch);
    Case c(seed, {.size = 3, .transport = GetParam(), .faults = faults});
    for (int epoch = 0; epoch < 10 && c.expect_ready() && c.expect_twenty(); ++epoch) {
      c.job().wait(kPatience, [&] { return c.job().find(epoch % 3, "fault", epoch) != nullptr; });
      const Event* fault = c.job().find(epoch % 3, "fault", epoch);
      c.expect(fault != nullptr, "no abort in epoch {}", epoch);
      if (fault != nullptr) c.expect_verdict({epoch % 3}, fault->at, kAfterDeath, "aborted");
    }
    c.expect_ready() && c.expect_twenty();
    // The least of three looks: what an epoch had may still be closing when the next one is looked at.
    auto least = [&](int r, int first) {
      std::pair<int64_t, int64_t> used{1 << 20, 1 << 20};
      for (int epoch = first; epoch < first + 3; ++epoch) {
        const Event* usage = c.job().find(r, "usage", epoch);
        c.expect(usage != nullptr, "rank {} did not tell what it uses in epoch {}", r, epoch);
        if (usage == nullptr) continue;
        used = {std::min<int64_t>(used.first, usage->fds), std::min<int64_t>(used.second, usage->segments)};
      }
      return used;
    };
    for (int r : c.members()) {
      const auto early = least(r, 1), late = least(r, 8);
      c.expect(
          early == late,
          "rank {} has {} descriptors and {} segments after the first reconfigurations, {} and {} after the last", r,
          early.first, early.second, late.first, late.second);
    }
    c.end();
  });
}

}  // namespace
}  // namespace ringfold::chaos
