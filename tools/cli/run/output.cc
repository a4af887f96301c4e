#include "tools/cli/run/output.h"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

namespace ringfold::cli {
namespace {
constexpr size_t kLongestLine = 64 << 10;
}

LineStream::LineStream(LineStream&& other) noexcept
    : from_(std::exchange(other.from_, -1)),
      to_(other.to_),
      prefix_(std::move(other.prefix_)),
      pending_(std::exchange(other.pending_, {})) {}

LineStream& LineStream::operator=(LineStream&& other) noexcept {
  std::swap(from_, other.from_);
  std::swap(to_, other.to_);
  prefix_.swap(other.prefix_);
  pending_.swap(other.pending_);
  return *this;
}

LineStream::~LineStream() {
  if (from_ < 0) return;
  if (!pending_.empty()) pass_on(prefix_ + pending_ + "\n");
  ::close(from_);
}

bool LineStream::pump() {
  std::array<char, 16 << 10> buffer;  // NOLINT: written by read
  const ssize_t got = ::read(from_, buffer.data(), buffer.size());
  if (got < 0) return errno == EINTR || errno == EAGAIN;
  if (got == 0) return false;
  std::string lines;
  std::string_view text(buffer.data(), static_cast<size_t>(got));
  while (!text.empty()) {
    const auto end = text.find('\n');
    pending_ += text.substr(0, end);
    if (end == text.npos) break;
    lines += prefix_ + pending_ + "\n";
    pending_.clear();
    text.remove_prefix(end + 1);
  }
  if (pending_.size() > kLongestLine) {
    lines += prefix_ + pending_ + "\n";
    pending_.clear();
  }
  pass_on(lines);
  return true;
}

void LineStream::pass_on(std::string_view text) const {
  while (!text.empty()) {
    const ssize_t sent = ::write(to_, text.data(), text.size());
    if (sent > 0) text.remove_prefix(static_cast<size_t>(sent));
    if (sent >= 0 || errno == EINTR) continue;
    if (errno != EAGAIN) return;  // nobody reads us any more; a broken pipe has ended us already
    pollfd wait{to_, POLLOUT, 0};
    ::poll(&wait, 1, 1000);
  }
}

}  // namespace ringfold::cli
