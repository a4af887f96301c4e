// What a rank brings to the rendezvous about itself.
#pragma once

#include <string>
#include <string_view>

#include "comm/control.h"
#include "ringfold/status.h"

namespace ringfold::comm {

// This process, without candidates.
PeerInfo describe_self(int rank);

std::string write_card(const PeerInfo& me);
// Fills `peer`, whose rank is set. kMismatch when it runs another build than `me`: the message names both.
Status read_card(std::string_view card, const PeerInfo& me, PeerInfo* peer);

}  // namespace ringfold::comm
