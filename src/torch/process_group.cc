#include "torch/process_group.h"

#include <Python.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "torch/store.h"

namespace ringfold::pytorch {
namespace {

using std::chrono::milliseconds;

// For the time of a call that may wait, on a thread that may hold Python's lock.
class WithoutGil {
 public:
  WithoutGil() : state_(Py_IsInitialized() != 0 && PyGILState_Check() != 0 ? PyEval_SaveThread() : nullptr) {}
  ~WithoutGil() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

std::mutex groups_mutex;
// Plain pointers: c10's weak ones would keep a group's destructor, which leaves it, from running.
std::vector<std::pair<pid_t, ProcessGroupRingfold*>> groups;
std::weak_ptr<Communicator> default_communicator;  // for groups within the default one; as long as that one has it

std::shared_ptr<Communicator> take(const char* what, Result<Communicator> made) {
  if (!made.ok()) throw Error(what, made.status());
  return std::make_shared<Communicator>(*std::move(made));
}

}  // namespace

c10::intrusive_ptr<ProcessGroupRingfold> ProcessGroupRingfold::create(const c10::intrusive_ptr<c10d::Store>& store,
                                                                      int rank, int size,
                                                                      const GroupOptions& options) {
  const WithoutGil released;
  std::shared_ptr<Communicator> parent;
  if (!options.global_ranks.empty() && !options.own()) {
    const std::lock_guard lock(groups_mutex);
    parent = default_communicator.lock();
  }
  std::shared_ptr<Communicator> made;
  if (parent) {
    const std::vector<int> ranks(options.global_ranks.begin(), options.global_ranks.end());
    made = take("new_group", parent->subset(ranks, options.timeout_s));
  } else {
    ringfold::Options own;
    own.rank = rank;
    own.size = size;
    if (size > 1) own.exchange = exchange_through(store, rank, size);
    own.timeout_s = options.timeout_s;
    own.codec = options.codec;
    own.algorithm = options.algorithm;
    own.transport = options.transport;
    own.deterministic = options.deterministic;
    own.background = true;
    made = take("init_process_group", Communicator::init(own));
  }
  if (options.global_ranks.empty()) {
    const std::lock_guard lock(groups_mutex);
    default_communicator = made;
  }
  return c10::make_intrusive<ProcessGroupRingfold>(store, rank, size, options, std::move(made));
}

// A group's destructor waits for these: until then it is whole.
void ProcessGroupRingfold::abort_all(const std::string& cause) {
  const WithoutGil released;
  const std::lock_guard lock(groups_mutex);
  for (auto [process, group] : groups) {
    if (process != ::getpid()) continue;
    try {
      group->abort_for(cause);
    } catch (const Error&) {  // it was shut down
    }
  }
}

void ProcessGroupRingfold::shutdown_all() {
  const WithoutGil released;
  const std::lock_guard lock(groups_mutex);
  for (auto [process, group] : groups) {
    if (process == ::getpid()) group->shutdown();
  }
}

ProcessGroupRingfold::ProcessGroupRingfold(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
                                           const GroupOptions& options, std::shared_ptr<Communicator> communicator)
    : GroupBase(rank, size),
      store_(std::move(store)),
      timeout_s_(options.timeout_s),
      communicator_(std::move(communicator)) {
  if (!options.codec.empty()) {
    auto codec = parse_codec(options.codec);
    if (!codec.ok()) throw Error("Options", codec.status());
    codec_ = *codec;
  }
  const std::lock_guard lock(groups_mutex);
  groups.emplace_back(process_, this);
}

ProcessGroupRingfold::~ProcessGroupRingfold() {
  const WithoutGil released;
  if (::getpid() == process_) {
    const std::lock_guard lock(groups_mutex);
    std::erase(groups, std::pair(process_, this));
  }
  shutdown();
  if (::getpid() == process_) completer_->stop();
}

void ProcessGroupRingfold::shutdown() {
  const WithoutGil released;
  std::shared_ptr<Communicator> last;
  {
    const std::lock_guard lock(mutex_);
    last.swap(communicator_);
  }
  if (::getpid() != process_) {  // a fork of the rank: the connections are its parent's, and it has no threads
    static_cast<void>(new std::shared_ptr<Communicator>(std::move(last)));
    return;
  }
  if (!last || getSize() == 1) return;
  leave_together(*store_, getSize(), *last, std::chrono::duration<double>(std::min(timeout_s_ / 2, 5.0)));
}

void ProcessGroupRingfold::abort_for(const std::string& cause) {
  const WithoutGil released;
  const auto ending = communicator();
  ending->abort(cause);
  // Until all know: if this rank left before, that would be all that the others hear.
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (ending->status().ok() && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(milliseconds(1));
  }
}

std::shared_ptr<Communicator> ProcessGroupRingfold::communicator() const {
  const std::lock_guard lock(mutex_);
  if (!communicator_) throw Error("this process group", Status(Code::kAborted, "it was shut down"));
  return communicator_;
}

void ProcessGroupRingfold::monitoredBarrier(const c10d::BarrierOptions& options, bool wait_all) {
  const WithoutGil released;
  const auto timeout = options.timeout.count() >= 0
                           ? options.timeout
                           : std::chrono::duration_cast<milliseconds>(std::chrono::duration<double>(timeout_s_));
  const std::string missing =
      meet(*store_, "ringfold/barrier/" + std::to_string(barriers_++), getRank(), getSize(), timeout, wait_all);
  if (!missing.empty()) throw Error("monitored_barrier", Status(Code::kTimeout, missing));
}

}  // namespace ringfold::pytorch
