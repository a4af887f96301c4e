// Checkpoints: sharded, atomic, written while training goes on.
//
//   DIR/step-00000400.part/rank-0 ...      while it is being written; of no use to anybody
//   DIR/step-00000400/rank-0 ...           complete: every rank's file is on disk, and the manifest knows their sizes
//   DIR/step-00000400/manifest.json        and hashes
//
// A rank gives its share of the state, a copy, and goes on; a thread writes and syncs the file. Ranks that are done
// tell rank 0, which writes the manifest and gives the folder its name by a rename: whenever the job dies, what bears
// the name is whole. The two newest are kept. All ranks see one folder (one host, or a shared file system).
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "ringfold/communicator.h"
#include "sync/state.h"

namespace ringfold::train {

// How far a run had come.
struct Position {
  size_t step = 0;      // of the run
  int epoch = 1;        // in which it goes on
  size_t in_epoch = 0;  // steps of it that are done
};

// What must be the same for a run to go on ("model", "batch", ...), as text.
using Identity = std::map<std::string, std::string>;

class Checkpointer {
 public:
  // `folder` is made if there is none. Threads: one at a time. Outlived by the communicator.
  Checkpointer(Communicator& comm, std::string folder, Identity identity);
  ~Checkpointer();
  Checkpointer(const Checkpointer&) = delete;

  // All ranks, at the same place. Finishes the one before, if it is still being written.
  Status begin(sync::State share, const Position& position);
  // To be called now and then (every step): takes the next one further. `wait`: until it is complete; all ranks then.
  Status advance(bool wait);

 private:
  struct Report {  // of a rank, to rank 0
    uint64_t step = 0, bytes = 0, hash = 0, ok = 0;
  };
  void write(std::string bytes);
  Status commit();

  Communicator& comm_;
  const std::string folder_;
  const Identity identity_;
  bool active_ = false;
  Position position_;
  std::thread writer_;
  std::atomic<bool> written_ = false;
  Report report_;
  std::string error_;  // of the writer
  bool told_ = false;
  Work telling_;
  std::vector<Report> reports_;  // rank 0
  std::vector<Work> hearing_;
};

struct Loaded {
  Position position;
  int ranks = 0;  // of the run that wrote it
  sync::State state;
};
// Collective. The newest complete checkpoint, the same on all ranks; nothing if there is none. kInvalid: it is of
// another run, or damaged; the message says where. kIo: it cannot be read.
Result<std::optional<Loaded>> load_checkpoint(Communicator& comm, const std::string& folder,
                                              const Identity& identity);

}  // namespace ringfold::train
