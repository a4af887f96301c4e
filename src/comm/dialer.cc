#include "comm/dialer.h"

namespace ringfold::comm {

using base::Deadline;
using boost::system::error_code;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {
constexpr auto kStagger = milliseconds(100);
constexpr auto kAttemptLimit = seconds(3);
constexpr base::Duration kLongestPause = seconds(2);
}  // namespace

void Dialer::stop(const std::shared_ptr<Channel>& winner) {
  stopped_ = true;
  timer_.cancel();
  if (auto won = attempts_.extract(winner)) under_way_.erase(won.mapped());
  for (const auto& [attempt, candidate] : attempts_) attempt->close();
  attempts_.clear();
  for (const auto& other : under_way_) failures_.emplace(other, "no answer before another address had answered");
}

std::vector<std::string> Dialer::explain() const {
  auto reasons = order_.skipped;
  for (const auto& [candidate, why] : failures_) reasons.push_back(candidate + ": " + why);
  return reasons;
}

void Dialer::next() {
  if (stopped_) return;
  if (order_.tries.empty()) {
    failures_.emplace("nothing to try", "it published no address that is not also this host's");
    (void)events_.exhausted();
    return;
  }
  if (tried_ == order_.tries.size()) {
    if (!under_way_.empty()) return;  // the last one to fail comes back here
    if (!events_.exhausted()) return;
    tried_ = 0;
    pause_ = std::min(pause_ * 2, kLongestPause);
    return next_after(pause_);
  }
  const auto& candidate = order_.tries[tried_++];
  under_way_.insert(candidate.to_string());
  dial(candidate);
  next_after(kStagger);
}

void Dialer::next_after(base::Duration pause) {
  timer_.expires_after(pause);
  timer_.async_wait([this](const error_code& error) {
    if (!error) next();
  });
}

void Dialer::failed(const std::string& candidate, std::string_view why) {
  under_way_.erase(candidate);
  failures_[candidate] = why;
  if (under_way_.empty() || tried_ < order_.tries.size()) next();
}

void Dialer::dial(const Candidate& candidate) {
  const auto name = candidate.to_string();
  error_code error;
  const tcp::endpoint endpoint(asio::ip::make_address(candidate.interface.address, error), candidate.port);
  auto opened =
      error ? Result<tcp::socket>(Status(Code::kProtocol, "not an address")) : open_socket(io_, endpoint.protocol());
  if (!opened.ok()) {
    asio::post(io_, [this, name, why = opened.status().message()] { failed(name, why); });
    return;
  }
  auto socket = std::make_shared<tcp::socket>(*std::move(opened));
  auto limit = std::make_shared<asio::steady_timer>(io_, kAttemptLimit);
  limit->async_wait([socket](const error_code& cancelled) {
    if (!cancelled) socket->close();
  });
  socket->async_connect(endpoint, [this, name, socket, limit](const error_code& error) {
    limit->cancel();
    if (error == asio::error::operation_aborted) return failed(name, "not reachable (no answer)");
    if (error) return failed(name, "not reachable (" + error.message() + ")");
    if (!stopped_) shake(name, std::move(*socket));
  });
}

void Dialer::shake(const std::string& candidate, tcp::socket socket) {
  auto self = std::make_shared<std::weak_ptr<Channel>>();
  const auto judged = [this, candidate](const std::shared_ptr<Channel>& channel, const Status& verdict) {
    if (verdict.ok()) return;
    attempts_.erase(channel);
    channel->close();
    failed(candidate, verdict.message());
  };
  auto channel = Channel::start(std::move(socket), key_, base::Handshake::Role::kInitiator, hello_, kAttemptLimit,
                                {[this, self, judged] {
                                   auto channel = self->lock();
                                   judged(channel, events_.proved(channel));
                                 },
                                 [this, self, judged](uint8_t type, std::string_view body) {
                                   auto channel = self->lock();
                                   judged(channel, events_.frame(channel, type, body));
                                 },
                                 [this, self, candidate](const Status& why) {
                                   attempts_.erase(self->lock());
                                   failed(candidate, "no proof of the key (" + why.message() + ")");
                                 }});
  *self = channel;
  attempts_.emplace(std::move(channel), candidate);
}

}  // namespace ringfold::comm
