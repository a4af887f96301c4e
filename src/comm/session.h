// What one rank shares among all of its communicators: settings, the control mesh and the engine.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/handshake.h"
#include "comm/config.h"
#include "comm/control.h"
#include "exec/engine.h"
#include "ringfold/communicator.h"
#include "ringfold/status.h"

namespace ringfold::comm {

// Shared by its communicators; ends with the last of them. Immutable but for what its members guard themselves.
struct Session {
  Config config;
  Launch launch;
  std::optional<base::Key> key;   // none when the job is this process alone
  std::shared_ptr<LocalHub> hub;  // ranks as threads only
  std::unique_ptr<Control> control;
  std::shared_ptr<exec::Engine> engine;
  base::Duration timeout{};
  bool in_process = false;  // ranks are threads of this process

  ~Session() {
    if (engine) engine->stop();
  }

  // Joins the job that the options and the environment describe.
  static Result<std::shared_ptr<Session>> join(const Options& options);
  // One session per rank, all in this process.
  static Result<std::vector<std::shared_ptr<Session>>> local(int ranks, const Options& options);

 private:
  Status configure(const Options& options);
  void start_engine(bool background);
};

}  // namespace ringfold::comm
