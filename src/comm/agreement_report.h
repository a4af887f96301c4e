// What ranks tell each other when they agree on a failure, its encoding, and the judgement over it (agreement.h).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::comm {

// A call that a rank made.
struct Made {
  uint64_t sequence = 0;
  std::array<uint8_t, 24> contract{};
  std::string call;
  friend bool operator==(const Made&, const Made&) = default;
};
inline constexpr int kMostMade = 64;

// Where a rank was when it aborted.
struct Standing {
  uint64_t sequence = 0;               // of the call it is in, or of its last one; 0: none yet
  bool inside = false;                 // has not returned from it
  std::array<uint8_t, 24> contract{};  // what must be equal on all ranks for the same sequence number
  std::string call;                    // for people; its first word is the operation: "all_reduce f32 sum x100"
  int waits_for = -1;                  // the peer whose bytes or credit it lacks; -1: nobody
  std::vector<Made> recent;            // its last calls, also those behind the one it is in; at most kMostMade
  std::string operation() const { return call.substr(0, call.find(' ')); }
  friend bool operator==(const Standing&, const Standing&) = default;
};

struct Decision {
  Verdict verdict;             // byte for byte the same on all survivors
  std::vector<int> survivors;  // ascending
  friend bool operator==(const Decision&, const Decision&) = default;
};

struct Suspicion {
  bool silent = false;  // it stopped answering, rather than ended
  Code code = Code::kPeerLost;
  std::string cause;
};

struct Loss {
  Code code = Code::kPeerLost;
  std::string cause;
};

struct Evidence {
  std::optional<std::string> timeout, abort;
  std::map<int, std::string> mismatches;  // by peer
  std::map<int, Loss> broken_links;       // by peer
};

// A decision and the leader that issued it (which need not be the one that made it).
struct Issued {
  int leader = -1;
  Decision decision;
};

struct Report {
  std::map<int, Suspicion> suspects;
  bool stands = false;  // it has said where
  Standing standing;
  Evidence evidence;
  std::optional<Issued> accepted;
};

// A message is one of the two.
struct Decoded {
  uint32_t epoch = 0;
  std::optional<Report> report;
  std::optional<Issued> issued;
};
std::string encode(const Report& report, uint32_t epoch);
std::string encode(const Issued& issued, uint32_t epoch);
// nullopt: no message that encode() makes for a communicator of `size` ranks.
std::optional<Decoded> decode(std::string_view bytes, int size);

// Who is to blame, from all reports by rank and the suspects. Pure and total. The order of evidence:
//   1. contracts that differ for the same call, the first such: the minority, or the one that differs from the lowest
//      rank; where nobody remembers that call, the rank that most accusations of a mismatch involve
//   2. ranks that ended, the lowest first           3. ranks that stopped answering, the lowest first
//   4. links that broke between ranks that answer: the rank at whose end most of them are
//   5. a deadline passed: the rank that has not made the call that the others wait in; or where the chain of who
//      waits for whom ends                                6. a request to abort
Verdict judge(const std::map<int, Report>& reports, const std::map<int, Suspicion>& suspects,
              const std::vector<std::string>& hosts, uint32_t epoch);

}  // namespace ringfold::comm
