#include "ringfold/work.h"

#include <algorithm>

#include "exec/engine.h"

namespace ringfold {

struct Work::Group {
  std::vector<Work> works;
};

Work::Work(const Work& other)
    : request_(other.request_), group_(other.group_), status_(other.status_), source_(other.source_) {
  if (request_ != nullptr) request_->ref();
}
Work& Work::operator=(Work other) noexcept {
  std::swap(request_, other.request_);
  std::swap(group_, other.group_);
  std::swap(status_, other.status_);
  std::swap(source_, other.source_);
  return *this;
}
void Work::drop() { request_->unref(); }

bool Work::test() {
  if (group_) {
    bool all = true;
    for (Work& w : group_->works) all &= w.test();
    return all;
  }
  return request_ == nullptr || request_->done() || request_->domain->engine()->test(*request_);
}

bool Work::done() const {
  if (group_) return std::all_of(group_->works.begin(), group_->works.end(), [](const Work& w) { return w.done(); });
  return request_ == nullptr || request_->done();
}

Status Work::wait() {
  if (group_) {
    Status first;
    for (Work& w : group_->works) {
      Status s = w.wait();
      if (first.ok()) first = s;
    }
    return first;
  }
  if (request_ == nullptr) return status_;
  if (!request_->done()) request_->domain->engine()->wait(*request_, base::Deadline::never());
  return request_->status();
}

Status Work::wait_for(double seconds) {
  const auto until = base::Deadline::after(base::duration_of(seconds));
  const Status late(Code::kTimeout, "the call has not completed within the time that wait_for was given; it goes on");
  if (group_) {
    Status first;
    for (Work& w : group_->works) {
      if (w.request_ != nullptr && !w.request_->done() && !w.request_->domain->engine()->wait(*w.request_, until))
        return late;
      Status s = w.group_ ? w.wait_for(base::seconds_of(until.left())) : w.wait();
      if (first.ok()) first = s;
    }
    return first;
  }
  if (request_ == nullptr) return status_;
  if (!request_->done() && !request_->domain->engine()->wait(*request_, until)) return late;
  return request_->status();
}

void Work::then(std::function<void(const Status&)> callback) {
  if (group_) {
    // The last of them to complete calls back.
    struct Pending {
      std::mutex mutex;
      size_t left;
      std::vector<Status> statuses;
      std::function<void(const Status&)> callback;
    };
    auto pending = std::make_shared<Pending>();
    pending->left = group_->works.size();
    pending->statuses.resize(pending->left);
    pending->callback = std::move(callback);
    if (pending->left == 0) return pending->callback({});
    for (size_t i = 0; i < group_->works.size(); ++i) {
      group_->works[i].then([pending, i](const Status& s) {
        {
          std::lock_guard lock(pending->mutex);
          pending->statuses[i] = s;
          if (--pending->left > 0) return;
        }
        Status first;
        for (const Status& status : pending->statuses) {
          if (first.ok()) first = status;
        }
        pending->callback(first);
      });
    }
    return;
  }
  if (request_ == nullptr) return callback(status_);
  if (request_->done()) return callback(request_->status());
  request_->domain->engine()->then(*request_, std::move(callback));
}

int Work::source() const {
  if (request_ == nullptr) return source_;
  return request_->came_from();
}

Work Work::all(std::vector<Work> works) {
  Work work;
  work.group_ = std::make_shared<Group>(Group{std::move(works)});
  return work;
}

}  // namespace ringfold
