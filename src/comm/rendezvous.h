// How the ranks of a job find each other, once, at its start: every rank brings a *card* (some bytes about itself) to
// a meeting place and leaves with the cards of all.
//
// At an address ("host:port", or "host:first-last" when the port may be taken): a RendezvousServer listens there. The
// launcher hosts it, or else rank 0 does when the address is its own. Ranks connect, prove the key, hand in their
// card, and get the table once it is complete. Whoever cannot prove the key is dropped before anything it says is
// read.
//
// Through an exchange of the program's own (Launch::exchange): each rank hands in its card, sealed with the key.
//
// In a shared directory ("dir:/path"): every rank writes a file sealed with the key, always complete, by rename.
// Files of an earlier job may lie there, so nothing counts unless it answers a fresh random number: rank r's file
// must repeat the number in rank 0's present file, and rank 0's table must repeat the number in rank r's. A stale
// file cannot.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/handshake.h"
#include "comm/launch.h"
#include "ringfold/status.h"

namespace ringfold::comm {

struct Roster {
  std::string job;                 // a name that no other job has, equal on all ranks
  std::vector<std::string> cards;  // by rank
  std::function<void()> clean_up;  // may be empty; rank 0 calls it when all ranks have their roster
};

// Meets the other ranks at launch.rendezvous. Blocks. On kTimeout the message names the ranks that are missing.
// `listen_any`: rank 0 listens on the wildcard address instead of the named one. launch.size > 1.
Result<Roster> rendezvous(const Launch& launch, const base::Key& key, std::string card, bool listen_any,
                          base::Deadline deadline);

// Finds a job that has met there before, in the place of a rank of it: its name, and the cards of the others as far
// as there are ("": none). `card`: this process's own, for those that come after it. Blocks until there is such a
// job.
Result<Roster> rendezvous_again(const Launch& launch, const base::Key& key, std::string card,
                                base::Deadline deadline);
// Where a job that is open met in a directory, each rank leaves its card for those that come back; and takes it away.
// Elsewhere there is nothing to do.
Status leave_card(const Launch& launch, const base::Key& key, const std::string& job, const std::string& card);
void take_card_away(const Launch& launch, const base::Key& key);

// The listening side, with its own thread. Serves one roster after another, so a job that is started again by the
// same launcher meets at the same place.
class RendezvousServer {
 public:
  struct Options {
    std::string host;                        // an address of this host, or a name of it
    uint16_t first_port = 0, last_port = 0;  // 0: chosen by the system
    int size = 0;
    bool listen_any = false;
  };
  // kUnavailable: the address is not this host's, or every port is taken.
  static Result<std::unique_ptr<RendezvousServer>> start(const Options& options, const base::Key& key);
  // Waits a moment for ranks that are still receiving their roster.
  ~RendezvousServer();
  const std::string& address() const { return address_; }  // "host:port", as given to RINGFOLD_RENDEZVOUS

 private:
  class Impl;
  explicit RendezvousServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
  std::string address_;
};

// "host:port", "host:first-last", "[v6]:port" taken apart. kInvalid says what is allowed.
struct Place {
  std::string host;
  uint16_t first = 0, last = 0;
};
Result<Place> parse_place(std::string_view text);

// 128 random bits as hexadecimal text.
std::string random_name();

// `body` under a seal that only who holds the key can make, for this name only; and back: nullopt for bytes that are
// no sealed record, "" in `body` with `foreign` set for one of another key or name.
std::string seal(const base::Key& key, std::string_view name, std::string_view body);
struct Unsealed {
  bool foreign = false;
  std::string body;
};
std::optional<Unsealed> unseal(const base::Key& key, std::string_view name, std::string_view bytes);

// The directory forms, behind leave_card() and rendezvous_again().
Status leave_in_directory(const std::string& folder, int rank, int size, const base::Key& key, const std::string& job,
                          const std::string& card);
void remove_from_directory(const std::string& folder, int rank, const base::Key& key);
Result<Roster> find_in_directory(const std::string& folder, int rank, int size, const base::Key& key,
                                 base::Deadline deadline);

// The directory form, behind rendezvous(). Rank 0 leaves the table and clean_up removes it.
Result<Roster> meet_in_directory(const std::string& folder, int rank, int size, const base::Key& key,
                                 const std::string& card, base::Deadline deadline);

}  // namespace ringfold::comm
