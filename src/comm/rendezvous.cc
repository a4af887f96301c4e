#include "comm/rendezvous.h"

#include <fmt/format.h>

#include <boost/asio/connect.hpp>
#include <charconv>
#include <thread>

#include "base/log.h"
#include "comm/rendezvous_frames.h"
#include "comm/wire.h"

namespace ringfold::comm {
namespace {

using base::Clock;
using base::Deadline;
using boost::system::error_code;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::string_view kDirectory = "dir:";

}  // namespace

std::vector<tcp::endpoint> resolve(asio::io_context& io, const std::string& host, uint16_t port, error_code& error) {
  tcp::resolver resolver(io);
  std::vector<tcp::endpoint> result;
  auto found = resolver.resolve(host, std::to_string(port), tcp::resolver::numeric_service, error);
  if (error &&
      host == "localhost") {  // a container without /etc/hosts; the name means the loopback address (RFC 6761)
    found = resolver.resolve("127.0.0.1", std::to_string(port), tcp::resolver::numeric_service, error);
  }
  for (const auto& entry : found) {
    if (std::find(result.begin(), result.end(), entry.endpoint()) == result.end()) result.push_back(entry.endpoint());
  }
  return result;
}

Result<Place> parse_place(std::string_view text) {
  Place place;
  auto colon = text.rfind(':');
  auto host = text.substr(0, colon);
  bool good = colon != text.npos && !host.empty();
  if (good && host.front() == '[') {
    good = host.back() == ']' && host.size() > 2;
    host = host.substr(1, host.size() - std::min<size_t>(2, host.size() - 1));
  }
  if (good) {
    const auto ports = text.substr(colon + 1);
    const auto dash = ports.find('-');
    auto number = [&](std::string_view digits, uint16_t* out) {
      auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), *out);
      good = good && error == std::errc() && end == digits.data() + digits.size() && *out > 0;
    };
    number(ports.substr(0, dash), &place.first);
    place.last = place.first;
    if (dash != ports.npos) number(ports.substr(dash + 1), &place.last);
    good = good && place.first <= place.last;
  }
  if (!good) {
    return Status(
        Code::kInvalid,
        fmt::format("the rendezvous \"{}\" is not valid: it must be host:port, host:first-last or dir:/path", text));
  }
  place.host = host;
  return place;
}

namespace {

// Attempts at the endpoints of the meeting place, one after another, on the calling thread.
class Visit {
 public:
  Visit(const Launch& launch, const base::Key& key, const std::string& card, Deadline deadline)
      : launch_(launch), key_(key), card_(card), deadline_(deadline) {}

  Result<Roster> at(const tcp::endpoint& endpoint) {
    auto socket = open_socket(io_, endpoint.protocol());
    if (!socket.ok()) return socket.status();
    error_code outcome = asio::error::would_block;
    socket->async_connect(endpoint, [&](const error_code& error) { outcome = error; });
    run_until([&] { return outcome != asio::error::would_block; }, deadline_.within(seconds(3)));
    if (outcome == asio::error::would_block) {
      socket->close();
      run_until([&] { return outcome != asio::error::would_block; }, Deadline::after(seconds(1)));
      return Status(Code::kIo, fmt::format("{}: no answer", text_of(endpoint)));
    }
    if (outcome) return Status(Code::kIo, fmt::format("{}: {}", text_of(endpoint), outcome.message()));

    bool done = false;
    Result<Roster> result = Status(Code::kInternal, "no answer");
    auto finish = [&](Result<Roster> r) {
      result = std::move(r);
      done = true;
    };
    std::weak_ptr<Channel> weak;
    auto channel = Channel::start(
        *std::move(socket), key_, base::Handshake::Role::kInitiator, std::string(kRendezvousHello),
        std::min<base::Duration>(seconds(2), deadline_.left()),
        {[&] {
           registered_ = true;
           // The server is to give up a little before we do, so that its answer still reaches us.
           const auto left = std::chrono::duration_cast<milliseconds>(deadline_.left());
           const auto patience =
               std::min<int64_t>(left.count() - std::min<int64_t>(200, left.count() / 10), UINT32_MAX);
           weak.lock()->send(launch_.comes_back ? kReturn : kRegister, Writer()
                                                                           .number(launch_.rank)
                                                                           .number(launch_.size)
                                                                           .number(static_cast<uint32_t>(patience))
                                                                           .text(card_)
                                                                           .take());
         },
         [&](uint8_t type, std::string_view body) { finish(parse(type, body)); },
         [&](const Status& status) {
           if (!done) finish(Status(status.code(), fmt::format("{}: {}", text_of(endpoint), status.message())));
         }});
    weak = channel;
    if (!run_until([&] { return done; }, deadline_))
      finish(Status(Code::kTimeout, text_of(endpoint) + ": no answer"));
    channel->close();
    channel.reset();
    io_.restart();
    io_.poll();
    return result;
  }
  bool registered() const { return registered_; }
  bool final() const { return final_; }  // the server has spoken: trying again is of no use
  asio::io_context& io() { return io_; }

 private:
  template <typename Done>
  bool run_until(Done done, Deadline deadline) {
    io_.restart();
    while (!done() && !deadline.passed() && io_.run_one_for(deadline.left()) > 0) {
    }
    return done();
  }

  Result<Roster> parse(uint8_t type, std::string_view body) {
    Reader reader(body);
    final_ = true;
    if (type == kRefused) {
      const auto code = reader.number<uint8_t>();
      std::string text(reader.text());
      if (reader.done() && code > 0 && code <= static_cast<uint8_t>(Code::kInternal))
        return Status(static_cast<Code>(code), text);
    } else if (type == kRoster) {
      Roster roster{std::string(reader.text()), {}, {}};
      for (int r = 0; r < launch_.size; ++r) roster.cards.emplace_back(reader.text());
      if (reader.done()) return roster;
    }
    return Status(Code::kProtocol, "the rendezvous server sent what no Ringfold sends");
  }

  const Launch& launch_;
  const base::Key& key_;
  const std::string& card_;
  Deadline deadline_;
  asio::io_context io_{1};
  bool registered_ = false, final_ = false;
};

Result<Roster> meet_at_address(const Launch& launch, const base::Key& key, const std::string& card,
                               const Place& place, Deadline deadline) {
  const auto begin = Clock::now();
  Status last(Code::kTimeout, "nobody listens there");
  base::Duration pause = milliseconds(10);
  base::TimePoint first_denied = base::TimePoint::max();
  while (true) {
    Visit visit(launch, key, card, deadline);
    for (uint32_t port = place.first; port <= place.last && !deadline.passed(); ++port) {
      error_code error;
      const auto endpoints = resolve(visit.io(), place.host, static_cast<uint16_t>(port), error);
      if (error) last = Status(Code::kIo, fmt::format("cannot resolve {}: {}", place.host, error.message()));
      for (const auto& endpoint : endpoints) {
        auto roster = visit.at(endpoint);
        if (roster.ok() || visit.final()) return roster;
        // Of several ports, the one that spoke says more than those where nobody listens.
        if (last.code() != Code::kDenied || roster.status().code() == Code::kDenied) last = roster.status();
      }
    }
    // A wrong key does not mend itself, but whoever holds the port may be about to leave it.
    if (last.code() == Code::kDenied) first_denied = std::min(first_denied, Clock::now());
    const bool denied = last.code() == Code::kDenied && Clock::now() - first_denied > seconds(2);
    if (deadline.passed() || denied) {
      return Status(
          denied ? Code::kDenied : Code::kTimeout,
          fmt::format(
              "rank {} of {} could not meet the others at {} within {:.3g} s: {}{}", launch.rank, launch.size,
              launch.rendezvous, base::seconds_of(Clock::now() - begin), last.message(),
              visit.registered() || denied ? "" : "; is rank 0 started, and the address reachable from here?"));
    }
    std::this_thread::sleep_for(std::min(pause, deadline.left()));
    pause = std::min<base::Duration>(pause * 2, milliseconds(500));
  }
}

// Rank 0's random number becomes the name of the job.
Result<Roster> meet_by_exchange(const Launch& launch, const base::Key& key, const std::string& card,
                                Deadline deadline) {
  auto name_of_card = [](int rank) { return fmt::format("card-{}", rank); };
  const auto mine =
      seal(key, name_of_card(launch.rank), Writer().text(random_name()).number(launch.size).text(card).take());
  auto records = launch.exchange(mine, base::seconds_of(deadline.left()));
  if (!records.ok()) return records.status();
  if (std::ssize(*records) != launch.size) {
    return Status(Code::kInvalid,
                  fmt::format("the exchange returned {} records for {} ranks", records->size(), launch.size));
  }
  Roster roster;
  for (int r = 0; r < launch.size; ++r) {
    auto record = unseal(key, name_of_card(r), (*records)[r]);
    if (record && record->foreign) {
      return Status(Code::kDenied, fmt::format("what rank {} handed in was not sealed with the key of rank {}: give "
                                               "all ranks the same RINGFOLD_KEY_FILE",
                                               r, launch.rank));
    }
    Reader reader(record ? std::string_view(record->body) : std::string_view());
    const auto number = reader.text();
    const int size = reader.number<int>();
    roster.cards.emplace_back(reader.text());
    if (!reader.done()) {
      return Status(Code::kProtocol, fmt::format("what the exchange returned for rank {} is no card", r));
    }
    if (size != launch.size) {
      return Status(Code::kInvalid, fmt::format("rank {} was started with {} ranks, rank {} with {}", launch.rank,
                                                launch.size, r, size));
    }
    if (r == 0) roster.job = number;
  }
  return roster;
}

}  // namespace

Result<Roster> rendezvous(const Launch& launch, const base::Key& key, std::string card, bool listen_any,
                          Deadline deadline) {
  if (launch.exchange) return meet_by_exchange(launch, key, card, deadline);
  if (launch.rendezvous.starts_with(kDirectory)) {
    return meet_in_directory(launch.rendezvous.substr(kDirectory.size()), launch.rank, launch.size, key, card,
                             deadline);
  }
  auto place = parse_place(launch.rendezvous);
  if (!place.ok()) return place.status();
  std::shared_ptr<RendezvousServer> server;
  if (launch.rank == 0) {
    auto started = RendezvousServer::start({place->host, place->first, place->last, launch.size, listen_any}, key);
    if (started.ok()) {
      server = *std::move(started);
      log::debug("rank 0 hosts the rendezvous at {}", server->address());
    } else {  // the launcher hosts it, here or elsewhere
      log::debug("rank 0 does not host the rendezvous: {}", started.status().message());
    }
  }
  return meet_at_address(launch, key, card, *place, deadline);
}

Result<Roster> rendezvous_again(const Launch& launch, const base::Key& key, std::string card, Deadline deadline) {
  if (launch.exchange || !launch.rendezvous.starts_with(kDirectory)) {
    if (launch.exchange)
      return Status(Code::kInvalid,
                    "a rank that comes back cannot find the job through an exchange of cards (the program's own, or "
                    "PMIx's): set RINGFOLD_RENDEZVOUS");
    auto place = parse_place(launch.rendezvous);
    if (!place.ok()) return place.status();
    return meet_at_address(launch, key, card, *place, deadline);
  }
  const std::string folder = launch.rendezvous.substr(kDirectory.size());
  auto found = find_in_directory(folder, launch.rank, launch.size, key, deadline);
  if (!found.ok()) return found;
  // Of two that come back at a time at least one sees the other: each leaves its card before it looks again.
  RINGFOLD_TRY(leave_in_directory(folder, launch.rank, launch.size, key, found->job, card));
  return find_in_directory(folder, launch.rank, launch.size, key, deadline);
}

Status leave_card(const Launch& launch, const base::Key& key, const std::string& job, const std::string& card) {
  if (launch.exchange || !launch.rendezvous.starts_with(kDirectory)) return {};
  return leave_in_directory(launch.rendezvous.substr(kDirectory.size()), launch.rank, launch.size, key, job, card);
}

void take_card_away(const Launch& launch, const base::Key& key) {
  if (launch.exchange || !launch.rendezvous.starts_with(kDirectory)) return;
  remove_from_directory(launch.rendezvous.substr(kDirectory.size()), launch.rank, key);
}

}  // namespace ringfold::comm
