// Control among threads of one process: a hub with one thread that runs all callbacks in the order of their causes.
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <map>

#include "comm/control.h"
#include "comm/thread.h"

namespace ringfold::comm {
namespace {

class LocalControl;

}  // namespace

class LocalHub::Impl {
 public:
  explicit Impl(int size) : controls_(static_cast<size_t>(size)), dead_(controls_.size()) {
    thread_ = start_thread("rf-hub", [this] { run(); });
  }
  ~Impl() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }

  void post_at(base::TimePoint when, std::function<void()> task) {
    std::lock_guard lock(mutex_);
    tasks_.emplace(std::pair(when, next_++), std::move(task));
    changed_.notify_all();
  }
  void post(std::function<void()> task) { post_at(base::TimePoint::min(), std::move(task)); }
  bool on_thread() const { return std::this_thread::get_id() == thread_.get_id(); }

  void add(int rank, LocalControl* control) {
    std::lock_guard lock(mutex_);
    controls_[rank] = control;
  }
  // Afterwards no task touches the control.
  void remove(int rank) {
    std::unique_lock lock(mutex_);
    controls_[rank] = nullptr;
    if (!on_thread()) changed_.wait(lock, [&] { return busy_ != rank; });
  }
  // `task` runs on the hub's thread unless the rank is gone by then.
  void post_for(int rank, base::TimePoint when, std::function<void(LocalControl*)> task) {
    post_at(when, [this, rank, task = std::move(task)] {
      LocalControl* control = nullptr;
      {
        std::lock_guard lock(mutex_);
        control = controls_[rank];
        if (control != nullptr) busy_ = rank;
      }
      if (control == nullptr) return;
      task(control);
      std::lock_guard lock(mutex_);
      busy_ = -1;
      changed_.notify_all();
    });
  }
  bool dead(int rank) {
    std::lock_guard lock(mutex_);
    return dead_[rank];
  }
  bool kill(int rank) {
    std::lock_guard lock(mutex_);
    if (dead_[rank]) return false;
    return dead_[rank] = true;
  }
  int size() const { return static_cast<int>(controls_.size()); }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (!stop_) {
      if (tasks_.empty()) {
        changed_.wait(lock);
      } else if (auto first = tasks_.begin(); first->first.first > base::Clock::now()) {
        changed_.wait_until(lock, first->first.first);
      } else {
        auto task = std::move(first->second);
        tasks_.erase(first);
        lock.unlock();
        task();
        task = nullptr;
        lock.lock();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::pair<base::TimePoint, uint64_t>, std::function<void()>> tasks_;
  uint64_t next_ = 0;
  std::vector<LocalControl*> controls_;
  std::vector<bool> dead_;
  int busy_ = -1;  // the rank whose control the running task uses
  bool stop_ = false;
  std::thread thread_;
};

namespace {

std::vector<PeerInfo> local_peers(int size) {
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  std::vector<PeerInfo> peers(static_cast<size_t>(size));
  for (int r = 0; r < size; ++r) {
    peers[r].rank = r;
    peers[r].host = host.data();
    peers[r].host_id = peers[r].stack_id = fmt::format("process-{}", ::getpid());
    peers[r].processors = base::Processors::mine();
    peers[r].pid = ::getpid();
    peers[r].version = RINGFOLD_VERSION;
    peers[r].my_address = peers[r].address = "127.0.0.1";
  }
  return peers;
}

class LocalControl : public Control {
 public:
  LocalControl(int rank, std::shared_ptr<LocalHub::Impl> hub)
      : Control(rank, local_peers(hub->size())), hub_(std::move(hub)) {
    job_ = fmt::format("local-{}-{}", ::getpid(), fmt::ptr(hub_.get()));
    hub_->add(rank_, this);
  }
  ~LocalControl() override {
    if (hub_->kill(rank_)) report(Status(Code::kPeerLost, "left the job"), true);
    hub_->remove(rank_);
  }
  void die() { report(Status(Code::kPeerLost, "its process ended or closed the connection"), false); }

 private:
  void report(const Status& why, bool left) {
    for (int r = 0; r < size(); ++r) {
      if (r != rank_)
        hub_->post_for(r, base::TimePoint::min(),
                       [from = rank_, why, left](LocalControl* c) { c->lose(from, why, left); });
    }
  }
  void transmit(int peer, std::string_view topic, std::string_view bytes) override {
    if (hub_->dead(rank_)) return;
    hub_->post_for(peer, base::TimePoint::min(),
                   [from = rank_, topic = std::string(topic), bytes = std::string(bytes)](LocalControl* c) {
                     c->deliver(from, topic, bytes);
                   });
  }
  void post(std::function<void()> task) override { post_at(base::TimePoint::min(), std::move(task)); }
  void post_at(base::TimePoint when, std::function<void()> task) override {
    hub_->post_for(rank_, when, [task = std::move(task)](LocalControl*) { task(); });
  }
  bool on_control_thread() const override { return hub_->on_thread(); }

  std::shared_ptr<LocalHub::Impl> hub_;
};

}  // namespace

LocalHub::LocalHub(int size) : impl_(std::make_shared<Impl>(size)) {}
LocalHub::~LocalHub() = default;
std::unique_ptr<Control> LocalHub::control(int rank) { return std::make_unique<LocalControl>(rank, impl_); }

void LocalHub::kill(int rank) {
  if (!impl_->kill(rank)) return;
  impl_->post_for(rank, base::TimePoint::min(), [](LocalControl* control) { control->die(); });
}

}  // namespace ringfold::comm
