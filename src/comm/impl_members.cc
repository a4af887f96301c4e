// Communicators of other members: without those that were lost, and with one that has come back.
//
// All survivors of a verdict make the same exchanges in the same order, and go by what these said, not by what each
// of them knows: which process is taken in is the lowest rank that has arrived at all of them. The name of the new
// communicator says who its members are, with the numbers of their processes, so that attempts that differ cannot be
// mixed up. Who comes back is told that name by each of them.
#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "comm/impl.h"
#include "comm/wire.h"

namespace ringfold {
namespace {

constexpr const char* kInvitations = "join";  // topic

// Of one length, however often members change: who they are, and what they came from, in 48 bits.
std::string name_of(const std::string& id, const comm::Control& control, const std::vector<int>& members) {
  uint64_t who = 0xcbf29ce484222325ULL;
  const auto add = [&](uint64_t part) { who = (who ^ part) * 0x100000001b3ULL; };
  for (const char c : id) add(static_cast<unsigned char>(c));
  for (int m : members) {
    add(static_cast<uint64_t>(m));
    add(static_cast<uint64_t>(control.peer(m).pid));
  }
  return fmt::format("{}~{:012x}", id.substr(0, id.find('~')), (who ^ who >> 32) & 0xffffffffffff);
}

struct Invitation {
  std::string id;
  uint32_t epoch = 0;
  std::vector<int> members;

  std::string to_bytes() const {
    comm::Writer writer;
    writer.text(id).number(epoch).number(static_cast<uint32_t>(members.size()));
    for (int m : members) writer.number(m);
    return writer.take();
  }
  static std::optional<Invitation> parse(std::string_view bytes, int ranks) {
    comm::Reader reader(bytes);
    Invitation in;
    in.id = reader.text(4096);
    in.epoch = reader.number<uint32_t>();
    const auto count = reader.number<uint32_t>();
    for (uint32_t i = 0; i < count && reader.ok(); ++i) in.members.push_back(reader.number<int>());
    const bool valid = std::all_of(in.members.begin(), in.members.end(), [&](int m) { return m >= 0 && m < ranks; });
    return reader.done() && valid ? std::optional(in) : std::nullopt;
  }
};

// The lowest rank that has arrived at all of `members`; -1: there is none.
Result<int> common_guest(comm::Control& control, const std::vector<int>& members, const std::string& name,
                         base::Deadline until) {
  comm::Writer mine;
  for (const auto& arrival : control.arrivals()) mine.number(arrival.rank);
  // Who has seen a member go meanwhile is among fewer by now, whatever that one had said.
  auto all = control.exchange("guests/" + name, members, mine.take(), until, comm::Control::WhenGone::kFail);
  if (!all.ok()) return all.status();
  std::vector<size_t> seen(static_cast<size_t>(control.size()));
  for (const std::string& bytes : *all) {
    comm::Reader reader(bytes);
    for (size_t i = 0; i < bytes.size() / sizeof(int); ++i) {
      if (const int r = reader.number<int>(); r >= 0 && r < control.size()) ++seen[static_cast<size_t>(r)];
    }
  }
  const auto guest = std::find(seen.begin(), seen.end(), members.size());
  return guest == seen.end() ? -1 : static_cast<int>(guest - seen.begin());
}

}  // namespace

Result<std::shared_ptr<Communicator::Impl>> Communicator::Impl::reconfigure(bool admit) {
  const auto decision = guard_->decision();
  if (!decision) {
    return Status(Code::kInvalid, "reconfigure: the communicator has no verdict; it is for the time after a failure");
  }
  std::vector<int> survivors;
  bool among = false;
  for (int r : decision->survivors) {
    survivors.push_back(members_[r]);
    among |= r == me_;
  }
  if (!among) return Status(Code::kDenied, "the other ranks left this one out: " + decision->verdict.to_string());
  // Ranks that die from now on are left out, too: each attempt is among those who are alive by now.
  comm::Control& control = *session->control;
  const auto lost = [&](int m) { return m != control.rank() && !control.alive(m).ok(); };
  const auto until = base::Deadline::after(session->timeout);
  for (;;) {
    std::vector<int> members;
    std::copy_if(survivors.begin(), survivors.end(), std::back_inserter(members), [&](int m) { return !lost(m); });
    const auto attempt = [&]() -> Result<std::shared_ptr<Impl>> {
      if (control.open() && admit) {
        auto guest =
            common_guest(control, members, fmt::format("{}.{}", name_of(id_, control, members), epoch_), until);
        if (!guest.ok()) return guest.status();
        if (*guest >= 0) {
          control.admit(*guest);
          members.push_back(*guest);
          const Invitation invitation{name_of(id_, control, members), epoch_ + 1, members};
          control.send(*guest, kInvitations, invitation.to_bytes());
        }
      }
      return make(session, members, name_of(id_, control, members), epoch_ + 1, until, this);
    };
    auto made = attempt();
    if (made.ok()) (*made)->feedback = feedback;
    if (made.ok() || until.passed()) return made;
    // A rank that is gone may first be noticed by others, or by the transports.
    const auto patience = until.within(std::chrono::seconds(1));
    while (std::none_of(members.begin(), members.end(), lost)) {
      if (patience.passed()) return made;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    log::info("reconfigure: {}; trying again without", made.status().message());
  }
}

Result<std::shared_ptr<Communicator::Impl>> Communicator::Impl::join(const std::shared_ptr<comm::Session>& session,
                                                                     base::Deadline until) {
  comm::Control& control = *session->control;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Invitation> invitations;
  const auto alone = [&] {
    for (int m = 0; m < control.size(); ++m) {
      if (m != control.rank() && control.alive(m).ok()) return false;
    }
    return true;
  };
  control.subscribe(
      kInvitations,
      [&](int, std::string_view bytes) {
        const std::lock_guard lock(mutex);
        auto invitation = Invitation::parse(bytes, control.size());
        if (invitation) invitations.push_back(*std::move(invitation));
        changed.notify_all();
      },
      [&](int, const Status&) {
        const std::lock_guard lock(mutex);
        changed.notify_all();
      });
  Result<std::shared_ptr<Impl>> made = Status(Code::kTimeout, "no rank of the job has taken this one in");
  std::string tried;
  for (;;) {
    std::unique_lock lock(mutex);
    while (invitations.empty() && !alone() && !until.passed()) changed.wait_for(lock, until.left());
    if (invitations.empty()) {
      if (alone()) made = Status(Code::kPeerLost, "the job has ended before this rank was taken in");
      break;
    }
    const Invitation invitation = std::move(invitations.front());
    invitations.pop_front();
    lock.unlock();
    const std::string name = fmt::format("{}.{}", invitation.id, invitation.epoch);
    if (name == tried) continue;  // every member sends it
    tried = name;
    // One that has come back since this rank did, and was taken in before.
    for (int m : invitation.members) control.admit(m);
    if (std::find(invitation.members.begin(), invitation.members.end(), control.rank()) == invitation.members.end())
      continue;
    made = make(session, invitation.members, invitation.id, invitation.epoch, until);
    if (made.ok()) {
      // Others that are coming back have met this rank on its way, and wait as it did.
      for (int m = 0; m < control.size(); ++m) {
        if (std::find(invitation.members.begin(), invitation.members.end(), m) == invitation.members.end())
          control.expect(m);
      }
      break;
    }
    log::info("join: {}; waiting for the next invitation", made.status().message());
  }
  control.unsubscribe(kInvitations);
  return made;
}

}  // namespace ringfold
