// What ranks tell each other before they use UCX.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "ringfold/status.h"
#include "transports/ucx/standing.h"

namespace ringfold::transport::ucx {

// Of this boot of this host: shared memory reaches whoever says the same.
std::string host_id();

struct Address {
  uint64_t nonce = 0;  // of the communicator
  int rank = -1;
  size_t size = 0;
  int slots = 0;
  size_t slot_bytes = 0;
  std::string version, host;  // of UCX; host_id()
  Standing::Place standing;
  std::string worker;  // UCX's own address of it, bytes

  std::string to_string() const;
  // What `peer` published.
  static Result<Address> parse(std::string_view text, int peer);
  // May this rank use what `peer` published?
  Status check(const Address& theirs, int peer) const;
};

}  // namespace ringfold::transport::ucx
