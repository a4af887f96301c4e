// BucketReducer: gradients summed over all ranks while backward still computes the rest of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ringfold/communicator.h"
#include "ringfold/memory.h"

namespace ringfold::sync {

// Memory of a device that gradients are made in: laid out as the reducer's own, reduced where it is, and fetched when
// all of it is.
class DeviceGradients {
 public:
  virtual ~DeviceGradients() = default;
  virtual Result<float*> make(size_t elems) = 0;  // anew, of zeros
  virtual void zero() = 0;
  virtual void wait() = 0;  // until all work on gradients that the device was given is done
  virtual void fetch(float* to, size_t offset, size_t elems) = 0;
};

struct BucketOptions {
  // A bucket closes at this size: large enough that the cost per call is small, small enough that many overlap.
  size_t bucket_bytes = size_t{1} << 20;
  // The first bucket is smaller, so that communication starts soon after backward does.
  size_t first_bucket_bytes = size_t{128} << 10;
  ReduceOp op = kAvg;
  // How gradients travel (kNone: as the communicator's default says); with error feedback, kept by the communicator
  // under the names "<name> <bucket>", unless `feedback` is off (to see what it is good for). Reducers that live on
  // one communicator at the same time need names of their own.
  std::string name = "gradients";
  Codec codec = {};
  bool feedback = true;
  // Buckets are reduce_scattered: rank r ends with the sums of block r of each (see block()), and what the rest of a
  // bucket then holds is of no use. Buckets are padded so that their blocks are equal in size.
  bool scatter = false;
  std::shared_ptr<DeviceGradients> device;  // null: gradients are made in the reducer's memory
};

// Where the time of communication went, since the reducer was made.
struct BucketTimes {
  double exposed_s = 0;    // the caller was held up: starting and driving calls, waiting in finish()
  double in_flight_s = 0;  // at least one call was under way, as far as ready() and finish() could see
  uint64_t calls = 0;
  uint64_t bytes = 0;  // of gradients, or of their codes
};

// Synchronous data-parallel SGD's one collective. Parameters are numbered in the order in which forward uses them;
// backward finishes their gradients roughly in reverse. So the gradients lie in memory in reverse order, cut into
// buckets at parameter boundaries, and each bucket is all-reduced in place once all its gradients are ready and all
// buckets before it have been started: the order of calls is the same on all ranks, whatever the order in which
// gradients become ready.
//
// The reducer owns the gradients (from ringfold::allocate, which ranks of one host read in place); the caller lets
// its autograd add into them. One step is
//   begin();                          // all gradients are zero
//   ... backward adds into gradient(p), then ready(p), for each p in any order ...
//   Status s = finish();              // all gradients are reduced
// A parameter for which ready() was not called takes part with what its gradient holds: zero, where nothing was
// added.
//
// When finish() fails all gradients are zero: no rank goes on with a half-made sum. It returns the first error, and
// no call uses the memory any more.
//
// Threads: one at a time. The communicator must outlive the reducer, and all ranks must make their other calls on it
// outside begin .. finish. The destructor waits for calls in flight (until their deadline).
class BucketReducer {
 public:
  // counts[p]: elements of parameter p, which may be 0. plain[p]: it travels as f32 whatever the codec, as biases and
  // the scales of normalisations should: they are small and do not bear errors; empty: none does. They share buckets
  // of their own, started last. The same counts and options on all ranks; makes no calls itself. kInvalid for bucket
  // sizes of 0 and for codecs that are not valid.
  static Result<std::unique_ptr<BucketReducer>> make(Communicator& comm, std::span<const size_t> counts,
                                                     const BucketOptions& options = {},
                                                     const std::vector<bool>& plain = {});
  ~BucketReducer();
  BucketReducer(const BucketReducer&) = delete;
  BucketReducer& operator=(const BucketReducer&) = delete;

  std::span<float> gradient(size_t parameter);
  // Where it is made, if on a device.
  float* device_gradient(size_t p) { return device_ != nullptr ? device_ + parameters_[p].offset : nullptr; }
  void begin();
  // Once for each parameter and step: a second time, or an unknown parameter, makes finish() return kInvalid.
  void ready(size_t parameter);
  Status finish();

  size_t buckets() const { return buckets_.size(); }
  // All gradients, with the gaps between buckets, which are zero; and where parameter p lies in them.
  std::span<float> all() { return {memory_.get(), elems_}; }
  size_t offset(size_t parameter) const { return parameters_[parameter].offset; }
  // With `scatter`: this rank's block of a bucket, as a part of all().
  struct Block {
    size_t offset = 0;
    size_t elems = 0;
  };
  Block block(size_t bucket) const;
  // What one step's gradients take, as they travel.
  uint64_t bytes() const;
  const BucketTimes& times() const { return times_; }

 private:
  struct Parameter {
    size_t offset = 0;
    size_t elems = 0;
    size_t bucket = 0;
    bool ready = false;
  };
  struct Bucket {
    size_t offset = 0;
    size_t elems = 0;  // with padding
    size_t parameters = 0;
    size_t pending = 0;          // parameters not ready in this step
    std::optional<Codec> codec;  // unset: the communicator's
    std::string feedback;        // name of its error feedback; empty: none
    uint64_t bytes = 0;          // as it travels
    Work work;
  };

  BucketReducer(Communicator& comm, const BucketOptions& options) : comm_(comm), options_(options) {}
  void lay_out(std::span<const size_t> counts, const std::vector<bool>& plain);
  void pad();
  void start_next();
  void land(bool wait);
  void fetch();

  Communicator& comm_;
  BucketOptions options_;
  std::vector<Parameter> parameters_;
  std::vector<Bucket> buckets_;
  size_t elems_ = 0;  // of memory_, with the gaps between buckets
  Buffer<float> memory_;
  float* device_ = nullptr;
  size_t started_ = 0;  // buckets [landed_, started_) are in flight
  size_t landed_ = 0;
  double flight_began_s_ = 0;
  Status error_;  // first of this step
  BucketTimes times_;
};

}  // namespace ringfold::sync
