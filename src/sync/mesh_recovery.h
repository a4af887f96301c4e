// A mesh that has lost ranks goes on with the others, as as many replicas of the model as they make.
//
// What a lost rank held, its peers along the data axis hold too: a replica needs ranks, not certain ones. So whoever
// has no replica any more takes the place of a lost rank in another, and gets what belongs there from its new peers.
// Where ranks of different parts of the model make their updates together (Strategy::agree_by), all parts are those
// of one step.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "ringfold/communicator.h"
#include "sync/mesh.h"
#include "sync/strategy.h"

namespace ringfold::sync {

// Who takes which place: `held`, by survivor, is where it was. Gives the new mesh, as long along pipeline and tensor
// as `before`, and by survivor its rank there, or -1: it is left over. Ranks keep their part of the model where they
// can. kPeerLost: there are too few for one replica, or a part of the model is lost.
struct Seats {
  Mesh mesh;
  std::vector<int> rank_of;
};
Result<Seats> seats_of(const Mesh& before, std::span<const MeshPoint> held);

struct MeshRecovery {
  uint64_t steps = 0;          // of the run that are behind all of them
  bool member = true;          // this rank goes on
  std::vector<int> left_over;  // those that do not, as the job numbers them
};

struct Remake {
  // What uses the communicators along the axes goes, but for the strategy.
  std::function<void()> drop;
  // Collective over `job` and along the axes: a strategy on `parts.data`, for the parameters that belong to this
  // rank's new place.
  std::function<Result<std::unique_ptr<Strategy>>()> make;
};

// As recover() in strategy.h, for ranks that `parts` has cut `job` into, all with a strategy that agrees on updates.
// `job` and `parts` become those of the ranks that go on. A rank that does not has neither any more; its strategy is
// as it was. Not ok: as there, and seats_of.
Result<MeshRecovery> recover(Communicator& job, MeshCommunicators& parts, std::unique_ptr<Strategy>& strategy,
                             const Remake& remake, uint64_t steps);

}  // namespace ringfold::sync
