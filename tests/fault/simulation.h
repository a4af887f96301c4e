// A whole job in virtual time: 2 to 8 ranks, each with the shipping engine, domain and agreement, on the simulated
// network (transports/sim), make one random stream of calls while faults drawn from the seed befall them. After every
// verdict the survivors form the next epoch and go on with the stream.
//
// What the comm layer does between those parts with threads and sockets (src/comm/guard) is done here with events: a
// fault goes to the agreement, its messages travel the simulated control network, aborting suspends the domain, a
// decision ends it.
#pragma once

#include <fmt/format.h>

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "comm/agreement.h"
#include "exec/engine.h"
#include "tests/exec/call.h"
#include "transports/sim/sim.h"

namespace ringfold::test {

// What befalls the job.
enum class Harm : uint8_t { kNone, kKill, kStop, kStopAndResume, kSkip, kMismatch, kSlow, kSeveral };
inline constexpr int kHarms = 8;
std::string_view name_of(Harm harm);
inline Harm harm_of(uint64_t seed) { return static_cast<Harm>(seed % kHarms); }

struct Outcome {
  std::vector<std::string> wrong;  // empty: all properties held
  int verdicts = 0;                // epochs that ended with one
  uint64_t calls = 0;              // completed with the right result
  int undecidable = 0;             // verdicts on wrong calls where nobody could tell whose was wrong
};

class Simulation {
 public:
  Simulation(uint64_t seed, bool trace);
  ~Simulation();
  Outcome run();

 private:
  struct Fault {
    Harm harm;
    int process;
    base::TimePoint at{};
    uint64_t item = 0;  // kSkip, kMismatch
  };
  struct Flight {  // a call that has been made
    uint64_t item = 0;
    bool checked = true;  // its result is known: not that of the culprit's own wrong call
    std::unique_ptr<Buffers> buffers;
    exec::Ref<exec::Run> run;
    exec::Ref<exec::Message> send, receive;
    std::vector<uint64_t> source, target, expected;
    base::TimePoint deadline{};
    bool done() const { return run ? run->done() : send->done() && receive->done(); }
    const Status& status() const {
      return run ? run->status() : !send->status().ok() ? send->status() : receive->status();
    }
  };
  struct Group;
  struct Member {  // a process in one epoch
    Group* group = nullptr;
    int process = 0, rank = 0;
    std::shared_ptr<exec::Domain> domain;
    std::unique_ptr<comm::Agreement> agreement;
    std::deque<Flight> flying;
    std::vector<Flight> landed;  // buffers that late events may still refer to
    uint64_t next = 0;           // item of the stream
    base::TimePoint rests_until{};
    base::TimePoint timer{};
    bool suspended = false, decided = false, concluding = false;
    uint64_t called = 0;  // collectives, when it aborted
  };
  struct Group {  // an epoch
    uint32_t epoch = 0;
    std::vector<int> processes;
    std::vector<std::unique_ptr<Member>> members;
    std::optional<comm::Decision> decision;
    bool followed = false;  // the next epoch has begun
  };

  void plan_faults();
  void form(const std::vector<int>& processes, uint32_t epoch, uint64_t first_item);
  bool turn(int process);
  bool collect(Member& m);
  void issue(Member& m);
  Call call_of(uint64_t item, int ranks) const;
  bool is_message(uint64_t item) const;
  void start_call(Member& m, uint64_t item, bool tampered);
  void start_message(Member& m, uint64_t item);
  void tamper(Call& call, uint64_t item) const;
  comm::Standing standing(Member& m);
  void on_fault(Member& m, const exec::Fault& fault);
  void pump(Member& m);
  void conclude_soon(Member& m);
  void kill(int process);
  void tell_of_death(Member& m, int dead);
  void follow_up();
  void judge(const Group& group);
  bool finished() const;
  const Fault* fault_at(int process, Harm harm, uint64_t item) const;
  Member* member_of(int process) { return current_[static_cast<size_t>(process)]; }
  template <typename... A>
  void trace(fmt::format_string<A...> format, A&&... args) const {
    if (tracing_) note(fmt::format(format, std::forward<A>(args)...));
  }
  void note(const std::string& line) const;
  void wrong(std::string what);
  std::string stuck() const;

  const uint64_t seed_;
  const bool tracing_;
  sim::World world_;
  int processes_ = 0;
  uint64_t items_ = 0;
  size_t window_ = 1;
  base::Duration timeout_{}, bound_{};
  std::vector<Fault> faults_;
  std::vector<std::shared_ptr<exec::Engine>> engines_;  // by process
  std::vector<std::unique_ptr<Group>> groups_;
  std::vector<Member*> current_;  // by process; null: left out
  std::set<int> dead_, stopped_for_good_, ever_stopped_;
  std::map<int, std::set<int>> known_dead_;  // by process: of whom it has heard
  Outcome outcome_;
};

}  // namespace ringfold::test
