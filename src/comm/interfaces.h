// This host's network addresses, and in which order it makes sense to try another rank's.
//
// Nothing here decides by name or guess which network is the right one: names only order the attempts. What is used
// is what answered and proved to be the wanted rank (control.h).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::comm {

// From most to least promising for traffic between hosts.
enum class AddressKind : uint8_t { kNetwork, kVirtual, kLoopback, kLinkLocal, kDown };
std::string_view name_of(AddressKind kind);

struct Interface {
  std::string name;     // "eth0"
  std::string address;  // "10.0.0.1", "fd00::1"
  int prefix = 0;       // bits of the network part
  AddressKind kind = AddressKind::kNetwork;
  std::string to_string() const { return name + " " + address; }
};

// All addresses of this host, most promising first, the unusable ones (down, link-local) included.
Result<std::vector<Interface>> list_interfaces();
// Decides from name, address and whether the link is up.
AddressKind classify(std::string_view name, std::string_view address, bool up);

// Those to listen on. `wanted` (RINGFOLD_INTERFACE) holds names, addresses or CIDR blocks and overrides the
// classification; without it the down and link-local ones are left out. kInvalid lists what exists when nothing
// matches.
Result<std::vector<Interface>> select_interfaces(const std::vector<Interface>& all,
                                                 const std::vector<std::string>& wanted);

// An address at which a rank says it can be reached.
struct Candidate {
  Interface interface;
  uint16_t port = 0;
  std::string to_string() const;  // "eth0 10.0.0.1:4000"
};

struct DialOrder {
  std::vector<Candidate> tries;      // in this order
  std::vector<std::string> skipped;  // "docker0 172.17.0.1: also an address of this host", for people
};
// The order in which a rank whose addresses are `mine` should try `theirs`. On the same network stack (`same_stack`)
// loopback comes first; otherwise shared subnets do, addresses that also lie on this host are skipped (they would
// lead to ourselves), and loopback is the last.
DialOrder dial_order(const std::vector<Interface>& mine, const std::vector<Candidate>& theirs, bool same_stack);

// Which of this host's addresses are used and why the others are not, for people: "eth0 10.0.0.1 for ranks 1-3; not
// docker0 172.17.0.1 (not needed)". `offered` are those that were listened on, `used` says for which ranks each
// address is used, `failures` why another rank could not use a candidate (by its text).
std::string explain_choice(const std::vector<Interface>& mine, const std::vector<Candidate>& offered,
                           const std::map<std::string, std::vector<int>>& used,
                           const std::map<std::string, std::string>& failures);

// Do two addresses agree in their first `prefix` bits? False for different families or text that is no address.
bool same_subnet(std::string_view a, std::string_view b, int prefix);

}  // namespace ringfold::comm
