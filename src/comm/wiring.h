// Wiring a communicator: its members tell each other how they can be reached, pick a transport for every pair, and
// agree on sizes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/session.h"
#include "ringfold/transport.h"
#include "transports/verbs/verbs.h"

namespace ringfold::comm {

struct Wiring {
  std::vector<std::unique_ptr<transport::Transport>> transports;
  std::vector<int> route;           // by member: index of the transport that reaches it
  std::vector<int> host_of;         // by member: host number, in order of first appearance
  std::vector<int> cores;           // by host: processors that its ranks may use
  int me = 0;                       // this rank as a member
  uint64_t message_tile_bytes = 0;  // of sends and receives: the least of all members' transports
  uint64_t tile_bytes = 0;          // of collectives
  int slots = 0;
};

// Collective among `members` (ranks of the session's control; `me` indexes this rank). `name` is unique to the
// communicator and epoch. Says in one info line what reaches whom, and why not otherwise.
Result<Wiring> wire(Session& session, const std::vector<int>& members, int me, const std::string& name,
                    uint32_t epoch, base::Deadline deadline);

// What the settings say of RDMA.
verbs::Options rdma_options(const Config& config);

// The largest tile of collectives whose slots have so many bytes, unless somebody asks for another: `tcp` carries
// some of them, and the ranks are on so many hosts.
uint64_t most_tile(uint64_t slot_bytes, bool tcp, size_t hosts);

// Where rank `me` listens for `peers`: the address that reached the most of those on other network stacks. When there
// are none, every address reaches everybody, and which one won the race of two ranks (control.h) says nothing: all
// take the first that they would dial, so that all take the same.
std::string listen_address(const PeerInfo& me, const std::vector<const PeerInfo*>& peers);

}  // namespace ringfold::comm
