// How the ranks of a job hold the model: each the whole of it, or the parts that a mesh cuts it into. Costs
// libtorch's headers.
#pragma once

#include <memory>
#include <optional>

#include "ringfold/communicator.h"
#include "sync/mesh.h"
#include "train/args.h"
#include "train/dataset.h"
#include "train/loop.h"
#include "train/passes.h"
#include "train/tensor.h"

namespace ringfold::train {

// `job` outlives it, and becomes that of the ranks that go on when some are lost, as its parts do.
class Layout {
 public:
  // Collective over `job`: with args.pipeline and args.tensor_parallel. kInvalid as Mesh::make.
  static Result<std::unique_ptr<Layout>> make(Communicator& job, const Args& args);

  Axes axes() { return {.job = job_, .parts = cut_ ? &parts_ : nullptr}; }
  // Collective over all axes: of what belongs to this rank. kInvalid as PipelinedPasses::make and device_of.
  Result<std::unique_ptr<Passes>> make_passes(const Args& args, const Dataset& data);

 private:
  Layout(Communicator& job, bool cut) : job_(job), cut_(cut) {}
  Communicator& job_;
  const bool cut_;
  sync::MeshCommunicators parts_;
  std::optional<TensorGroup> tensor_;
};

}  // namespace ringfold::train
