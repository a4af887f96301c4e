// A rank's segment and how a peer reaches it: addresses, and the checks on them.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/mapping.h"
#include "ringfold/status.h"
#include "transports/shm/ring_transport.h"

namespace ringfold::shm {

using base::Fd;
using base::Mapping;

inline constexpr uint64_t kSegmentMagic = 0x31'6d'68'73'2d'66'72'1b;
inline constexpr uint32_t kLayoutVersion = 5;

// What a receiver can do with a sender's memory; the receiver finds out and writes it for the sender to read.
enum Reads : uint32_t { kReadsKnown = 1, kReadsRegions = 2, kReadsMemory = 4 };

struct SegmentHeader {
  // Constant once the address is published.
  uint64_t magic;
  uint32_t version;
  int32_t rank;
  int32_t size;
  Geometry geometry;
  uint64_t nonce;         // of this segment
  uint64_t communicator;  // of all segments that belong together
  uint64_t probe;         // address, in its owner's memory, of a copy of the nonce: can it be read from outside?
  uint64_t sample;        // address of memory there to time reads with: reads.h
  Bell bell;
  // After the header: `size` words of Reads, atomic, one per peer.
};

struct SegmentLayout {
  int size;
  Geometry geometry;
  size_t header_bytes() const {
    return round_up(sizeof(SegmentHeader) + sizeof(uint32_t) * static_cast<size_t>(size), kPageBytes);
  }
  size_t block_bytes() const { return transport::kLanes * geometry.ring_bytes(); }
  // The rings from `peer`, all lanes.
  size_t block_offset(int peer) const { return header_bytes() + static_cast<size_t>(peer) * block_bytes(); }
  size_t bytes() const { return block_offset(size); }
};

// Where to find a segment, as published.
struct Address {
  std::string host;       // boot id: the same for all containers of one running kernel
  std::string pid_space;  // PID namespace
  pid_t pid = 0;
  uid_t uid = 0;
  int segment_fd = -1, pipe_fd = -1, directory_fd = -1;
  uint64_t nonce = 0;

  // Of this process, without file descriptors.
  static Result<Address> here();
  std::string to_string() const;
  static Result<Address> parse(std::string_view text);
  // Opens a file descriptor of that process. The status says what to do about a refusal.
  Result<Fd> open(int fd, int flags) const;
};

}  // namespace ringfold::shm
