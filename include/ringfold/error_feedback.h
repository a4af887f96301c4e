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
// saved or go on with a small loss. One call at a time should use a name: two in flight lose nothing either, if both
// are on memory of hosts or both of devices, but which comes first may differ from run to run.
//
// Where codes are made on a GPU, the state is in its memory, and is fetched when it is asked for here. What a device
// that failed has held is lost: it starts again from zero.
//
// Threads: any. get, save, load, add and reset between calls, not while one that uses the tensor is in flight.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
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
  // The same in other memory than the host's.
  class Elsewhere {
   public:
    virtual ~Elsewhere() = default;
    virtual const void* place() const = 0;
    // Its values, when all use of it that was begun is over.
    virtual Status fetch(float* to) = 0;
  };
  // That of a tensor at `place`: what is there already, or what `make` makes of the state (empty: zeros).
  using Make = std::function<Result<std::shared_ptr<Elsewhere>>(std::span<const float> values)>;
  Result<std::shared_ptr<Elsewhere>> state_at(const void* place, std::string_view name, size_t elems,
                                              const Make& make);

 private:
  struct Tensor {
    size_t elems = 0;
    std::shared_ptr<std::vector<float>> values;  // or it is elsewhere
    std::shared_ptr<Elsewhere> elsewhere;
    explicit Tensor(size_t n) : elems(n), values(std::make_shared<std::vector<float>>(n)) {}
    std::vector<float>& fetched();
  };
  using Tensors = std::map<std::string, Tensor, std::less<>>;
  static Result<Tensors> parse(std::string_view saved);
  mutable std::mutex mutex_;
  mutable Tensors tensors_;  // looking at one may fetch it
};

}  // namespace ringfold
