// One rank of a chaos run: makes the seeded stream of calls until it is told to end, checks every result, and after
// each verdict reconfigures and goes on. Tells what happens as one line of JSON per event on standard output.
//
//   chaos_worker RANK SIZE SEED RENDEZVOUS TRANSPORT DEADLINE_S [FAULT@EPOCH:INDEX,...]
//
// The key comes from RINGFOLD_KEY_FILE, the limit for joining from RINGFOLD_TIMEOUT. CHAOS_LARGE=1 makes
// large calls, on memory from ringfold::allocate. A line on standard input, or its end, asks to end; the ranks agree
// on when. FAULT is what this rank does wrong itself, at the first fitting call from INDEX on in that epoch:
//   skip         does not make a call, and goes on with the next
//   stall        makes no calls until it hears of a verdict
//   leave, quit  ends the process in the middle, with or without leaving the job in order
//   abort        Communicator::abort
//   count, type, op, root, kind   makes another call than the others
//   end          ends the process on that epoch's verdict, whatever the index, without leaving the job in order
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "base/clock.h"
#include "comm/impl.h"
#include "ringfold/memory.h"
#include "tests/fault/stream.h"

namespace ringfold::chaos {
namespace {

// ringfold::allocate, for containers.
class Allocated final : public std::pmr::memory_resource {
  void* do_allocate(size_t bytes, size_t) override {
    auto memory = ringfold::allocate(bytes);
    if (!memory.ok()) throw std::bad_alloc();
    return *memory;
  }
  void do_deallocate(void* memory, size_t, size_t) override { ringfold::deallocate(memory); }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }
};

struct Fault {
  std::string what;
  uint32_t epoch = 0;
  uint64_t index = 0;
};

std::string json_text(std::string_view text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c < 32 ? ' ' : static_cast<char>(c);
  }
  return out + "\"";
}

class Worker {
 public:
  Worker(int rank, int size, uint64_t seed, double deadline_s, std::vector<Fault> faults)
      : rank_(rank), size_(size), seed_(seed), deadline_s_(deadline_s), faults_(std::move(faults)) {}

  int run(const std::string& rendezvous, const std::string& transport) {
    Options options;
    options.rank = rank_;
    options.size = size_;
    options.rendezvous = rendezvous;
    options.transport = transport;
    auto comm = Communicator::init(options);
    if (!comm.ok()) return tell("refused", fmt::format("\"text\":{}", json_text(comm.status().to_string()))), 3;
    for (round_ = 0;; ++round_) {
      tell("ready",
           fmt::format("\"rank\":{},\"members\":[{}]", comm->rank(), fmt::join(comm->impl()->members(), ",")));
      if (stream(*comm)) break;
      if (std::any_of(faults_.begin(), faults_.end(),
                      [&](const Fault& f) { return f.what == "end" && f.epoch == comm->epoch(); })) {
        std::_Exit(0);
      }
      auto next = comm->reconfigure();
      if (!next.ok()) {
        tell("out", fmt::format("\"code\":\"{}\",\"text\":{}", name_of(next.status().code()),
                                json_text(next.status().to_string())));
        return next.status().code() == Code::kDenied ? 0 : 4;
      }
      comm = std::move(next);
    }
    tell("end", "\"ok\":true");
    return 0;
  }

 private:
  void tell(const char* event, const std::string& fields) {
    const auto now =
        std::chrono::duration_cast<std::chrono::nanoseconds>(base::Clock::now().time_since_epoch()).count();
    const auto line = fmt::format("{{\"event\":\"{}\",\"round\":{},\"t\":{},{}}}\n", event, round_, now, fields);
    [[maybe_unused]] auto n = ::write(STDOUT_FILENO, line.data(), line.size());
  }
  void tell_usage() {
    namespace fs = std::filesystem;
    const auto fds = std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
    std::set<std::string> segments;
    std::ifstream maps("/proc/self/maps");
    std::string range, access, offset, device, inode, path;
    for (std::string line; std::getline(maps, line);) {
      if (line.find("/memfd:") == std::string::npos) continue;
      std::istringstream(line) >> range >> access >> offset >> device >> inode;
      segments.insert(inode);
    }
    tell("usage", fmt::format("\"fds\":{},\"segments\":{}", fds, segments.size()));
  }
  bool asked_to_end() {
    char byte;
    const auto n = ::read(STDIN_FILENO, &byte, 1);
    return ending_ = ending_ || n >= 0;
  }

  // Makes this rank's own fault, if its time has come. False: the step is not made at all.
  bool sabotage(Communicator& comm, uint64_t index, Step& step) {
    auto fault = std::find_if(faults_.begin(), faults_.end(), [&](const Fault& f) {
      return f.epoch == comm.epoch() && f.index <= index && f.what != "end";
    });
    if (fault == faults_.end()) return true;
    const std::string what = fault->what;
    const Step before = step;
    bool make = true;
    if (auto change = parse_change(what)) {
      auto other = changed(step, *change, comm.rank(), seed_ + index);
      if (!other) return true;
      step = *other;
    } else if (what == "skip") {
      const Step next = make_step(seed_, comm.epoch(), index + 1, comm.size(), large_);
      // A call that is followed by one just like it cannot be missed.
      if (step.kind != Step::Kind::kCollective || next.kind != Step::Kind::kCollective || comm.size() < 2 ||
          step.call.contract() == next.call.contract()) {
        return true;
      }
      make = false;
    }
    faults_.erase(fault);
    tell("fault",
         fmt::format("\"index\":{},\"text\":{}", index,
                     json_text(what + ": " + before.to_string() + (make ? " becomes " + step.to_string() : ""))));
    if (what == "quit") std::_Exit(0);
    if (what == "leave") {
      comm = Communicator();
      std::exit(0);
    }
    if (what == "abort") comm.abort("as the test wants");
    if (what == "stall") {
      const auto until = base::Deadline::after(std::chrono::seconds(20));
      while (comm.status().ok() && !until.passed()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return make;
  }

  // True: all have agreed to end. False: a verdict.
  bool stream(Communicator& comm) {
    for (uint64_t index = 0, made = 0;;) {
      std::vector<std::pair<uint64_t, std::unique_ptr<Flight>>> flights;
      bool together = true;
      for (; together && flights.size() < 4; ++index) {
        Step step = make_step(seed_, comm.epoch(), index, comm.size(), large_);
        together = step.together;
        if (!sabotage(comm, index, step)) continue;
        flights.emplace_back(index, std::make_unique<Flight>(comm, step, deadline_s_, asked_to_end(), memory_));
      }
      if (large_) tell("begun", "\"ok\":true");
      std::string verdict;
      bool end = false;
      for (auto& [number, flight] : flights) {
        const Status status = flight->wait();
        const std::string wrong = status.ok() ? flight->check() : "";
        tell("call", fmt::format("\"index\":{},\"ok\":{},\"text\":{}", number, status.ok(),
                                 json_text(status.ok() ? flight->step().to_string()
                                                       : flight->step().to_string() + ": " + status.to_string())));
        if (!wrong.empty()) tell("wrong", fmt::format("\"index\":{},\"text\":{}", number, json_text(wrong)));
        end |= flight->agreed_to_end() && status.ok();
        if (!status.ok() && verdict.empty()) {
          verdict = status.to_string();
          const Verdict* v = status.verdict();
          tell("verdict",
               fmt::format("\"rank\":{},\"code\":\"{}\",\"text\":{}", v ? v->rank : -2, name_of(status.code()),
                           json_text(v ? v->to_string() : "no verdict: " + verdict)));
        } else if (status.ok() ? false : status.to_string() != verdict) {
          tell("wrong",
               fmt::format("\"index\":{},\"text\":{}", number, json_text("another status: " + status.to_string())));
        }
      }
      if (!verdict.empty()) {
        if (const auto s = comm.status(); s.to_string() != verdict) {
          tell("wrong", fmt::format("\"text\":{}", json_text("Communicator::status says " + s.to_string())));
        }
        for (auto& [number, flight] : flights) {
          flight->scribble();
          ended_.push_back(std::move(flight));
        }
        return false;
      }
      if (end) return true;
      const auto before = made;
      made += flights.size();
      if (before < 20 && made >= 20) {
        tell_usage();
        for (const auto& flight : ended_) {
          if (!flight->scribbled())
            tell("wrong",
                 fmt::format("\"text\":{}", json_text(flight->step().to_string() + ": written after its end")));
        }
        ended_.clear();
        tell("twenty", "\"ok\":true");
      }
    }
  }

  const int rank_, size_;
  const uint64_t seed_;
  const double deadline_s_;
  const bool large_ = std::getenv("CHAOS_LARGE") != nullptr;
  Allocated allocated_;
  std::pmr::memory_resource* const memory_ = large_ ? &allocated_ : std::pmr::new_delete_resource();
  std::vector<std::unique_ptr<Flight>> ended_;  // in an error, since the last communicator's
  std::vector<Fault> faults_;
  int round_ = 0;
  bool ending_ = false;
};

}  // namespace
}  // namespace ringfold::chaos

int main(int argc, char** argv) {
  if (argc != 7 && argc != 8) {
    std::fprintf(stderr,
                 "usage: chaos_worker RANK SIZE SEED RENDEZVOUS TRANSPORT DEADLINE_S [FAULT@EPOCH:INDEX,...]\n");
    return 2;
  }
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::signal(SIGPIPE, SIG_IGN);
  ::fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK);
  std::vector<ringfold::chaos::Fault> faults;
  std::istringstream list(argc == 8 ? argv[7] : "");
  for (std::string text; std::getline(list, text, ',');) {
    const auto at = text.find('@'), colon = text.find(':');
    faults.push_back({text.substr(0, at), static_cast<uint32_t>(std::stoul(text.substr(at + 1))),
                      std::stoull(text.substr(colon + 1))});
  }
  ringfold::chaos::Worker worker(std::atoi(argv[1]), std::atoi(argv[2]), std::strtoull(argv[3], nullptr, 10),
                                 std::atof(argv[6]), std::move(faults));
  return worker.run(argv[4], argv[5]);
}
