#include "train/stop.h"

#include <signal.h>

#include <atomic>

namespace ringfold::train {
namespace {
std::atomic<bool> g_stop = false;
static_assert(std::atomic<bool>::is_always_lock_free);
extern "C" void on_sigterm(int) { g_stop = true; }
}  // namespace

void save_on_sigterm() {
  struct sigaction action {};
  action.sa_handler = on_sigterm;
  action.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);  // a second one ends at once
  ::sigaction(SIGTERM, &action, nullptr);
}
bool stop_requested() { return g_stop; }
void request_stop(bool stop) { g_stop = stop; }

Result<bool> StopVote::next() {
  RINGFOLD_TRY(asking_.wait());
  if (any_asked_ != 0) return true;
  asked_ = stop_requested() ? 1 : 0;
  asking_ = comm_.all_reduce(&asked_, &any_asked_, 1, DataType::kI32, kMax);
  return false;
}

Result<bool> StopVote::now() {
  int32_t asked = stop_requested() ? 1 : 0;
  RINGFOLD_TRY(comm_.all_reduce(&asked, &asked, 1, DataType::kI32, kMax).wait());
  return asked != 0;
}

}  // namespace ringfold::train
