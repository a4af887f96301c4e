// When a run is saved, what a saved run must have been to go on here, and how a run that was stopped ends: on top of
// checkpoint.h. Free of libtorch.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "ringfold/communicator.h"
#include "sync/strategy.h"
#include "train/args.h"
#include "train/checkpoint.h"
#include "train/dataset.h"
#include "train/holding.h"
#include "train/stop.h"

namespace ringfold::train {

// How far this rank has come: the place, and the sum of the losses of its samples of the epoch so far.
struct Progress {
  Position position;
  double epoch_loss = 0;
};

// Calls on it are collective over `comm`. Threads: one at a time. With no --checkpoint nothing happens.
class SavePoints {
 public:
  // `comm`: all ranks that train; `holding`: this one's part of a model of so many parameters. `saved_at`: the step
  // of the newest, of a run that goes on with other ranks.
  SavePoints(Communicator& comm, const Args& args, const Dataset& data, Holding holding, size_t parameters,
             size_t saved_at);

  // The newest checkpoint goes into the strategy; nothing if there is none. kInvalid: it is of another run.
  Result<std::optional<Progress>> resume(sync::Strategy& strategy);
  // Save if it is due, and say whether the run was asked to stop (`stop`: it is known that it was). What ends an
  // epoch
  // (`last_of_epoch`) is saved after it; `now` is then where the next one begins.
  Result<bool> after_step(sync::Strategy& strategy, const Progress& now, bool last_of_epoch);
  Result<bool> after_epoch(sync::Strategy& strategy, const Progress& now, bool stop);
  size_t saved_at() const { return saved_at_; }
  // Until all that was saved is on disk.
  Status finish();
  // Something failed: nothing more is asked of the others.
  void settle() { vote_.settle(); }

 private:
  Identity identity() const;
  Status save(sync::Strategy& strategy, const Progress& now);

  Communicator& comm_;
  const Args& args_;
  const Dataset& data_;
  const Holding holding_;
  const size_t parameters_;                     // of the model
  std::unique_ptr<Checkpointer> checkpointer_;  // null: none are asked for
  size_t saved_at_;
  StopVote vote_;
};

}  // namespace ringfold::train
