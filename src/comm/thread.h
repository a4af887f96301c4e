// Threads that Ringfold keeps inside somebody else's process: they have a name, and leave its signals to its own
// threads.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <thread>
#include <utility>

namespace ringfold::comm {

// `name`: at most 15 characters.
template <typename F>
std::thread start_thread(const char* name, F body) {
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread([name, body = std::move(body)]() mutable {
    ::pthread_setname_np(::pthread_self(), name);
    body();
  });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

}  // namespace ringfold::comm
