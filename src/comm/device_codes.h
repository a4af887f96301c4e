// A sum with a codec of memory on devices, where it passes through the host (comm/staging.h): codes are made, folded
// and decoded on the GPU, so that the bus to the host and the network carry codes alone.
//
// As two shots (algo/direct.cc): every rank sends each part's code to the part's owner; an owner adds what has come
// to its own values, encodes once more and sends to all. So a call is two calls of the host, of bytes: an all_to_all
// of codes, and an all_gather. Between them and around them is work on one stream, in three phases, each of which
// ends with a copy to the host or from it. All parts have the same room, and whole groups but for the last, so codes
// of parts are codes of the whole.
#pragma once

#include <functional>
#include <memory>

#include "comm/device_coder.h"
#include "comm/gpu_feedback.h"
#include "ringfold/work.h"
#include "transports/nvlink/memory.h"

namespace ringfold::comm {

class DeviceCodes {
 public:
  struct Options {
    DeviceCoder coder;
    int me = 0, ranks = 0;
    uint64_t elems = 0;
    uint64_t draw = 0;  // key of random numbers
    // The host's calls, of slot_bytes() for each rank, within so many seconds.
    std::function<Work(const std::byte*in, std::byte*out, double seconds)> to_owners, to_all;
  };
  // "" or why such a call goes another way, as all ranks know.
  static std::string why_not(const Codec& codec, uint64_t elems, int ranks);
  // Bytes of a part's code, of each rank's.
  static uint64_t slot_bytes(const Codec& codec, uint64_t elems, int ranks);
  // Makes memory of the device for the codes.
  static Result<std::shared_ptr<DeviceCodes>> make(Options options, int ordinal);

  // The phases, on one stream. `host` is pinned, of slot_bytes() for each rank, and so is `arrived`.
  Status encode(device::OwnStream& stream, const float* in, GpuFeedback* missed, std::byte* host);
  Status fold(device::OwnStream& stream, const float* in, float* out, GpuFeedback* missed, const std::byte* arrived,
              std::byte* host);
  Status decode(device::OwnStream& stream, float* out, const std::byte* arrived);
  Work send(bool to_all, const std::byte* in, std::byte* out, double seconds) const {
    return (to_all ? options_.to_all : options_.to_owners)(in, out, seconds);
  }

  // Without memory: of a rank that says that it cannot.
  explicit DeviceCodes(Options options)
      : options_(std::move(options)), slot_(slot_bytes(options_.coder.codec, options_.elems, options_.ranks)) {}

 private:
  struct Part {
    uint64_t first = 0, elems = 0;
  };
  Part part(int rank) const;
  std::byte* code(int rank) const {
    return reinterpret_cast<std::byte*>(memory_->address()) + slot_ * static_cast<uint64_t>(rank);
  }
  uint64_t all() const { return slot_ * static_cast<uint64_t>(options_.ranks); }

  const Options options_;
  const uint64_t slot_;
  std::unique_ptr<nvlink::Mapping> memory_;  // a code for each rank, and this rank's
};

}  // namespace ringfold::comm
