// Work: the handle on a call that may still be running.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "ringfold/status.h"

namespace ringfold {

namespace exec {
class Request;
class Engine;
}  // namespace exec

// Every call of a Communicator returns one. Copies share the call. It completes exactly once, with the first cause; a
// call that could not be started is complete from the beginning and carries the reason.
//
// Progress. Work moves when somebody drives: wait(), test(), any other call on any communicator of the rank, or the
// background thread (Options::background). A Work that nobody waits for and no thread drives stands still, as do its
// peers.
//
// Buffers belong to the call from its start until it is done; not before then may they be read, written or freed.
// Dropping the handle does not cancel the call.
//
// Threads: every function from any thread.
class RINGFOLD_API Work {
 public:
  Work() = default;  // complete and ok
  explicit Work(Status status) : status_(std::move(status)) {}
  Work(const Work& other);
  Work(Work&& other) noexcept
      : request_(std::exchange(other.request_, nullptr)),
        group_(std::move(other.group_)),
        status_(std::move(other.status_)),
        source_(other.source_) {}
  Work& operator=(Work other) noexcept;
  ~Work() {
    if (request_ != nullptr) drop();
  }

  // Drives without waiting; has the call completed?
  bool test();
  // Has it completed? Drives nothing.
  bool done() const;
  // Drives until the call has completed. Returns its status: by the deadline that the call was made with (plus the
  // time the ranks take to agree on a verdict) at the latest.
  Status wait();
  // The same, but gives up after `seconds`: kTimeout then, and the call goes on.
  Status wait_for(double seconds);
  // Calls `callback` with the final status, once: at once if the call is complete, otherwise on the thread that
  // completes it. No lock is held; the callback may make further calls but must not wait for them. It may drop the
  // last handle of a communicator, which then ends on another thread.
  void then(std::function<void(const Status&)> callback);
  // Receives: the rank that the message came from, once complete; -1 before and for all else.
  int source() const;

  // One handle for several calls: complete when all are; its status is the first that is not ok, in the order given.
  static Work all(std::vector<Work> works);

 private:
  friend class Communicator;
  friend struct WorkAccess;
  struct Group;
  void drop();
  exec::Request* request_ = nullptr;  // owned reference; null: complete with status_, or a group
  std::shared_ptr<Group> group_;
  Status status_;
  int source_ = -1;  // of a receive that was complete from the beginning
};

}  // namespace ringfold
