#include "nccl/shim.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <thread>

using ringfold::Status;

Status ncclComm::follow(ringfold::Work work) {
  if (work.done()) return work.wait();
  work.then([kept = late](const Status& status) {
    if (status.ok()) return;
    const std::lock_guard lock(kept->mutex);
    if (kept->status.ok()) kept->status = status;
  });
  constexpr size_t kMany = 64;
  if (works.size() >= kMany) std::erase_if(works, [](const ringfold::Work& w) { return w.done(); });
  works.push_back(std::move(work));
  return {};
}

Status ncclComm::drain() {
  Status first;
  for (auto& work : works) {
    Status s = work.wait();
    if (first.ok()) first = s;
  }
  works.clear();
  return first;
}

namespace ringfold::nccl {
namespace {

struct Last {
  std::mutex mutex;
  std::string message;
};
// Never destroyed: programs ask at their very end.
Last& last() {
  static Last* const kLast = new Last;
  return *kLast;
}

void keep(const std::string& message) {
  static const bool kPrint = [] {
    const char* level = std::getenv("NCCL_DEBUG");
    return level != nullptr && *level != '\0' && std::string_view(level) != "VERSION";
  }();
  const std::lock_guard lock(last().mutex);
  last().message = message;
  if (kPrint) std::fprintf(stderr, "ringfold (as NCCL): %s\n", message.c_str());
}

struct Steps {
  int depth = 0;
  std::vector<Step> makes, calls;
};
thread_local Steps group;
thread_local Group* ending = nullptr;

}  // namespace

std::string last_error() {
  const std::lock_guard lock(last().mutex);
  return last().message;
}

ncclResult_t finish(const Status& status) {
  if (status.ok()) return ncclSuccess;
  keep(status.to_string());
  switch (status.code()) {
    case Code::kOk: return ncclSuccess;
    case Code::kInvalid: return ncclInvalidArgument;
    case Code::kMismatch: return ncclInvalidUsage;
    case Code::kTimeout:
    case Code::kPeerLost:
    case Code::kAborted: return ncclRemoteError;
    case Code::kUnavailable:
    case Code::kDenied:
    case Code::kProtocol:
    case Code::kIo: break;
    case Code::kInternal: return ncclInternalError;
  }
  return status.message().find("CUDA driver") != std::string::npos ? ncclUnhandledCudaError : ncclSystemError;
}

ncclResult_t refuse(const std::string& why) {
  keep(why);
  return ncclInvalidUsage;
}

ncclResult_t run_or_defer(bool makes, Step step) {
  if (group.depth == 0) return finish(step());
  (makes ? group.makes : group.calls).push_back(std::move(step));
  return ncclSuccess;
}

Group* ending_group() { return ending; }

ncclResult_t begin_group() {
  ++group.depth;
  return ncclSuccess;
}

ncclResult_t end_group() {
  if (group.depth == 0)
    return refuse("ncclGroupEnd: there is no group: ncclGroupStart was not called on this thread");
  if (--group.depth > 0) return ncclSuccess;
  const Steps now = std::exchange(group, {});
  std::vector<Status> made(now.makes.size());
  if (made.size() == 1) {
    made[0] = now.makes[0]();
  } else {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < made.size(); ++i) threads.emplace_back([&, i] { made[i] = now.makes[i](); });
    for (auto& t : threads) t.join();
  }
  for (const Status& s : made) {
    if (!s.ok()) return finish(s);
  }
  // All of them, since the peers of each wait for it.
  Status first;
  Group calls;
  ending = &calls;
  for (const Step& step : now.calls) {
    Status s = step();
    if (first.ok()) first = s;
  }
  ending = nullptr;
  // Holds the streams. How the calls end is for ncclCommGetAsyncError.
  Work all = calls.submit();
  if (first.ok() && all.done()) first = all.wait();
  return finish(first);
}

}  // namespace ringfold::nccl
