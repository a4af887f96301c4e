// Error feedback: what lossy codes have missed so far, by tensor, so that later calls make up for it. Without it
// coarse codecs lose the small components of a gradient for good.
//
// For a tensor x that is all_reduced again and again, each rank keeps one f32 for each element: what its own codes
// have missed of the sum. It is added to what the rank encodes next, on its way to the owner of the element or, where
// this rank is the owner, on the way of the sum to everybody. So, up to rounding, after any number of calls
//   sum of all results = sum of all inputs of all ranks - what all ranks still hold back.
// Held in units of the inputs' sum, also for averages.
//
// It belongs to the communicator (Communicator::error_feedback) and passes to the one that reconfigure() makes. What
// a lost rank held back is lost with it. An element whose code was not finite starts again from zero.
//
// A call that fails has used up what its codes took from here: after a failure in the middle of a step, load what was
// saved or go on with a small loss. One call at a time should use a name: two in flight lose nothing either, but
// which comes first may differ from run to run.
//
// Threads: any. get, save, load, add and reset between calls, not while one that uses the tensor is in flight.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "ringfold/status.h"
#include "ringfold/types.h"

namespace ringfold {

class RINGFOLD_API ErrorFeedback {
 public:
  // Tensors with state, in order of their names.
  std::vector<std::string> names() const;
  // A copy; empty: there is no such tensor.
  std::vector<float> get(std::string_view name) const;

  // Forgets one tensor, or all: after parameters were set anew (a checkpoint without this state, another model).
  void reset(std::string_view name);
  void reset();

  // This rank's state as bytes for a checkpoint, and back: load replaces all that is here. kInvalid: damaged.
  std::string save() const;
  Status load(std::string_view saved);
  // Adds the state that another rank has saved: where a job goes on with fewer ranks, each of those that are left
  // adds what some of the others held back. (With more ranks the new ones begin with nothing.) kInvalid: damaged, or
  // a tensor that is here has another size.
  Status add(std::string_view saved);

  // For the runtime: the state of a tensor of `elems` elements, zeros if it is new. kInvalid: it has another size.
  Result<std::shared_ptr<float>> state(std::string_view name, size_t elems);

 private:
  using Tensor = std::shared_ptr<std::vector<float>>;
  using Tensors = std::map<std::string, Tensor, std::less<>>;
  static Result<Tensors> parse(std::string_view saved);
  mutable std::mutex mutex_;
  Tensors tensors_;
};

}  // namespace ringfold
